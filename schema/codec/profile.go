package codec

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/kansa-audit/kansa/schema"
)

// QlikColumns are the columns of ProfileQlik, in order (requirement Q8).
var QlikColumns = []string{
	"EventTime", "Source", "Event", "Target", "TargetId", "TargetName", "Action", "AppId", "UserId", "UserName", "IpAddress", "Description", "Data", "DataType",
}

var qlikColumns = []column{
	{"EventTime", columnText, occurredAt},
	{"Source", columnText, func(_ *Encoder, s *Stored) string { return s.Source }},
	{"Event", columnText, func(_ *Encoder, s *Stored) string { return s.Event.Event }},
	{"Target", columnText, func(_ *Encoder, s *Stored) string { return s.Target.Type }},
	{"TargetId", columnText, func(_ *Encoder, s *Stored) string { return s.Target.ID }},
	{"TargetName", columnText, func(_ *Encoder, s *Stored) string { return s.Target.Name }},
	{"Action", columnText, func(_ *Encoder, s *Stored) string { return s.Action }},
	{"AppId", columnText, func(_ *Encoder, s *Stored) string { return s.AppID }},
	{"UserId", columnText, func(_ *Encoder, s *Stored) string { return s.Actor.ID }},
	{"UserName", columnText, func(_ *Encoder, s *Stored) string { return s.Actor.Name }},
	{"IpAddress", columnText, func(_ *Encoder, s *Stored) string { return s.Context.IP }},
	{"Description", columnText, func(_ *Encoder, s *Stored) string { return s.Description }},
	{"Data", columnJSON, func(_ *Encoder, s *Stored) string { return text(s.Data) }},
	{"DataType", columnText, func(_ *Encoder, s *Stored) string { return s.DataType }},
}

// prepColumns stand before those of ProfileKansa in ProfileDataPrep.
var prepColumns = []column{
	{"_zl_timestamp", columnNumber, func(e *Encoder, s *Stored) string {
		e.scratch = strconv.AppendInt(e.scratch[:0], s.OccurredAt.UnixMilli(), 10)
		return text(e.scratch)
	}},
	{"domain_name", columnText, attribute("domain_name")},
	{"pipeline_id", columnText, attribute("pipeline_id")},
	{"pipeline_name", columnText, attribute("pipeline_name")},
}

var kansaColumns = func() []column {
	all := []column{
		{"recorded_at", columnText, recordedAt},
		{"stream_seq", columnNumber, func(e *Encoder, s *Stored) string {
			e.scratch = strconv.AppendUint(e.scratch[:0], s.StreamSeq, 10)
			return text(e.scratch)
		}},
		{"batch_index", columnNumber, func(e *Encoder, s *Stored) string {
			e.scratch = strconv.AppendUint(e.scratch[:0], uint64(s.BatchIndex), 10)
			return text(e.scratch)
		}},
		{"organization", columnText, func(_ *Encoder, s *Stored) string { return s.Organization }},
		{"trail", columnText, func(_ *Encoder, s *Stored) string { return string(s.Trail) }},
		{"recorded_by", columnText, func(_ *Encoder, s *Stored) string { return s.RecordedBy }},
	}
	for i := range schema.Fields {
		f := &schema.Fields[i]
		c := column{f.Column, columnText, func(_ *Encoder, s *Stored) string { return f.Text(&s.Event) }}
		switch f.Kind {
		case schema.KindID:
			c.value = func(e *Encoder, s *Stored) string {
				e.scratch = appendID(e.scratch[:0], s)
				return text(e.scratch)
			}
		case schema.KindTime:
			c.value = occurredAt
		case schema.KindJSON:
			c.kind = columnJSON
		case schema.KindMap:
			c.kind, c.value = columnJSON, attributes
		case schema.KindText:
		}
		all = append(all, c)
	}
	return all
}()

func columnsOf(p Profile) []column {
	switch p {
	case ProfileQlik:
		return qlikColumns
	case ProfileDataPrep:
		return slices.Concat(prepColumns, kansaColumns)
	default:
		return kansaColumns
	}
}

// Columns lists the names of a profile's columns, in order.
func Columns(p Profile) []string {
	columns := columnsOf(p)
	all := make([]string, len(columns))
	for i := range columns {
		all[i] = columns[i].name
	}
	return all
}

func appendID(dst []byte, s *Stored) []byte {
	id := &s.ID
	at := len(dst)
	dst = append(dst, "00000000-0000-0000-0000-000000000000"...)
	b := dst[at:]
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	return dst
}

// Mark is put before a value that a spreadsheet would take for a formula: one that begins with = + - @, their
// full-width forms, a tab, a carriage return or a line feed. A value that begins with the mark gets it as well, so
// that taking one away gives every value back.
const Mark = '\''

// Dangerous reports whether a value gets the mark.
func Dangerous(v string) bool {
	if v == "" {
		return false
	}
	switch v[0] {
	case '=', '+', '-', '@', '\t', '\r', '\n', Mark:
		return true
	case 0xef:
		return strings.HasPrefix(v, "＝") || strings.HasPrefix(v, "＋") || strings.HasPrefix(v, "－") || strings.HasPrefix(v, "＠")
	}
	return false
}

func (e *Encoder) appendHeader(dst []byte, separator byte) []byte {
	for i := range e.columns {
		if i > 0 {
			dst = append(dst, separator)
		}
		if separator == ',' {
			dst = appendQuoted(dst, e.columns[i].name)
		} else {
			dst = append(dst, e.columns[i].name...)
		}
	}
	return append(dst, '\r', '\n')
}

func (e *Encoder) appendCSV(dst []byte, s *Stored) []byte {
	for i := range e.columns {
		c := &e.columns[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		switch v := c.value(e, s); {
		case c.kind == columnNumber:
			dst = append(dst, v...)
		case e.o.SpreadsheetSafe && Dangerous(v):
			at := len(dst) + 1
			dst = appendQuoted(append(dst, Mark), v)
			dst[at-1], dst[at] = '"', Mark // within the quotes
		default:
			dst = appendQuoted(dst, v)
		}
	}
	return append(dst, '\r', '\n')
}

// needQuotes are the bytes for which a value of TSV is put in quotes.
const needQuotes = "\t\"\r\n"

func (e *Encoder) appendTSV(dst []byte, s *Stored) []byte {
	for i := range e.columns {
		if i > 0 {
			dst = append(dst, '\t')
		}
		v := e.columns[i].value(e, s)
		marked := e.o.SpreadsheetSafe && e.columns[i].kind != columnNumber && Dangerous(v)
		if !strings.ContainsAny(v, needQuotes) {
			if marked {
				dst = append(dst, Mark)
			}
			dst = append(dst, v...)
			continue
		}
		at := len(dst)
		if marked {
			dst = append(dst, Mark)
		}
		dst = appendQuoted(dst, v)
		if marked {
			dst[at], dst[at+1] = '"', Mark
		}
	}
	return append(dst, '\r', '\n')
}

// appendAttributes is attributesJSON without garbage.
func (e *Encoder) appendAttributes(dst []byte, m map[string]string) []byte {
	e.keys = e.keys[:0]
	for k := range m {
		e.keys = append(e.keys, k)
	}
	slices.Sort(e.keys)
	dst = append(dst, '{')
	for i, k := range e.keys {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendJSONString(dst, k), ':')
		dst = appendJSONString(dst, m[k])
	}
	return append(dst, '}')
}

// appendOneLine appends JSON as it was recorded, without its line breaks, which can only be white space in it.
func appendOneLine(dst []byte, v string) []byte {
	for {
		i := strings.IndexAny(v, "\r\n")
		if i < 0 {
			return append(dst, v...)
		}
		dst = append(dst, v[:i]...)
		v = v[i+1:]
	}
}

// appendFlat appends an object with a member for each column.
func (e *Encoder) appendFlat(dst []byte, s *Stored) []byte {
	for i := range e.columns {
		c := &e.columns[i]
		dst = append(dst, "{,"[min(i, 1)])
		dst = append(appendJSONString(dst, c.name), ':')
		switch v := c.value(e, s); {
		case c.kind == columnText:
			dst = appendJSONString(dst, v)
		case v == "":
			dst = append(dst, "null"...)
		default:
			dst = appendOneLine(dst, v)
		}
	}
	return append(dst, '}')
}

// A member of an event's object, with what stands before its value.
type member struct {
	field         *schema.Field
	object, begin string // "actor", `"id":`
}

var members = func() (all []member) {
	for i := range schema.Fields {
		f := &schema.Fields[i]
		object, name, nested := strings.Cut(f.Name, ".")
		if !nested {
			object, name = "", f.Name
		}
		all = append(all, member{f, object, `"` + name + `":`})
	}
	return all
}()

// appendNested appends an event as JSON has it at every other place, and where it was stored. Empty members are
// left out.
func (e *Encoder) appendNested(dst []byte, s *Stored) []byte {
	dst = append(dst, '{')
	if e.o.Profile == ProfileDataPrep {
		for i := range prepColumns {
			c := &prepColumns[i]
			dst = append(appendJSONString(dst, c.name), ':')
			if v := c.value(e, s); c.kind == columnNumber {
				dst = append(dst, v...)
			} else {
				dst = appendJSONString(dst, v)
			}
			dst = append(dst, ',')
		}
	}
	dst = append(dst, `"recorded_at":"`...)
	dst = e.times[0].append(dst, s.RecordedAt.UnixMicro())
	dst = strconv.AppendUint(append(dst, `","stream_seq":`...), s.StreamSeq, 10)
	dst = strconv.AppendUint(append(dst, `,"batch_index":`...), uint64(s.BatchIndex), 10)
	dst = appendJSONString(append(dst, `,"organization":`...), s.Organization)
	dst = appendJSONString(append(dst, `,"trail":`...), string(s.Trail))
	dst = appendJSONString(append(dst, `,"recorded_by":`...), s.RecordedBy)
	object := ""
	for i := range members {
		m := &members[i]
		v := ""
		switch m.field.Kind {
		case schema.KindText, schema.KindJSON:
			if v = m.field.Text(&s.Event); v == "" {
				continue
			}
		case schema.KindMap:
			if len(s.Attributes) == 0 {
				continue
			}
		case schema.KindID, schema.KindTime:
		}
		if m.object != object && object != "" {
			dst = append(dst, '}')
		}
		dst = append(dst, ',')
		if m.object != object {
			if object = m.object; object != "" {
				dst = append(append(append(dst, '"'), object...), `":{`...)
			}
		}
		dst = append(dst, m.begin...)
		switch m.field.Kind {
		case schema.KindID:
			dst = append(appendID(append(dst, '"'), s), '"')
		case schema.KindTime:
			dst = append(e.times[1].append(append(dst, '"'), s.OccurredAt.UnixMicro()), '"')
		case schema.KindText:
			dst = appendJSONString(dst, v)
		case schema.KindJSON:
			dst = appendOneLine(dst, v)
		case schema.KindMap:
			dst = e.appendAttributes(dst, s.Attributes)
		}
	}
	if object != "" {
		dst = append(dst, '}')
	}
	return append(dst, '}')
}
