package codec

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Stored is an event as the table has it.
type Stored struct {
	schema.Event
	RecordedAt time.Time
	StreamSeq  uint64
	BatchIndex uint32
	// RecordedBy names the credential that published the event: see schema.HeaderRecordedBy.
	RecordedBy string
}

// Place is where an event lies in the stream: the message, and the position in it.
type Place struct {
	StreamSeq  uint64 `json:"stream_seq"`
	BatchIndex uint32 `json:"batch_index"`
}

// Place returns where e lies in the stream.
func (e *Stored) Place() Place { return Place{e.StreamSeq, e.BatchIndex} }

// TimeLayout is how times are written in exports: RFC 3339 in UTC, always with microseconds.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// CSVColumns lists the columns of an exported CSV file, in order. They are fixed for a schema version.
//
// The text is RFC 4180 with CRLF and a header line, as ClickHouse's FORMAT CSV writes it: every value
// but a number is in quotes, whether it needs them or not. Times are in TimeLayout; before, after and
// data are the JSON as it was recorded; attributes is a JSON object of strings.
var CSVColumns = csvColumns()

func csvColumns() []string {
	columns := []string{"recorded_at", "stream_seq", "batch_index", "organization", "trail", "recorded_by"}
	for i := range schema.Fields {
		columns = append(columns, schema.Fields[i].Column)
	}
	return columns
}

// AppendCSVHeader appends the header line.
func AppendCSVHeader(dst []byte) []byte {
	for i, c := range CSVColumns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendQuoted(dst, c)
	}
	return append(dst, '\r', '\n')
}

// AppendCSV appends the line of e.
func AppendCSV(dst []byte, e *Stored) []byte {
	dst = appendQuoted(dst, e.RecordedAt.UTC().Format(TimeLayout))
	dst = strconv.AppendUint(append(dst, ','), e.StreamSeq, 10)
	dst = strconv.AppendUint(append(dst, ','), uint64(e.BatchIndex), 10)
	dst = appendQuoted(append(dst, ','), e.Organization)
	dst = appendQuoted(append(dst, ','), string(e.Trail))
	dst = appendQuoted(append(dst, ','), e.RecordedBy)
	for i := range schema.Fields {
		dst = append(dst, ',')
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			dst = appendQuoted(dst, e.ID.String())
		case schema.KindTime:
			dst = appendQuoted(dst, e.OccurredAt.UTC().Format(TimeLayout))
		case schema.KindText, schema.KindJSON:
			dst = appendQuoted(dst, f.Text(&e.Event))
		case schema.KindMap:
			dst = appendQuoted(dst, attributesJSON(e.Attributes))
		}
	}
	return append(dst, '\r', '\n')
}

func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for {
		i := strings.IndexByte(s, '"')
		if i < 0 {
			break
		}
		dst = append(dst, s[:i+1]...)
		dst = append(dst, '"')
		s = s[i+1:]
	}
	dst = append(dst, s...)
	return append(dst, '"')
}

// attributesJSON is m as a JSON object, its keys sorted, in the bytes of ClickHouse's toJSONString.
func attributesJSON(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b := []byte{'{'}
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, k)
		b = append(b, ':')
		b = appendJSONString(b, m[k])
	}
	return string(append(b, '}'))
}

// escaped marks the bytes with which something begins that may have to be escaped.
var escaped = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'], t[0xe2] = true, true, true
	return t
}()

// appendJSONString escapes what ClickHouse escapes, and as it does: the digits of \u00XX are upper case.
func appendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	dst = append(dst, '"')
	plain := 0
	for plain < len(s) && !escaped[s[plain]] {
		plain++
	}
	dst = append(dst, s[:plain]...)
	for i := plain; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\b':
			dst = append(dst, `\b`...)
		case c == '\f':
			dst = append(dst, `\f`...)
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c == 0xe2 && i+2 < len(s) && s[i+1] == 0x80 && s[i+2]&^1 == 0xa8: // U+2028, U+2029
			dst = append(dst, `\u202`...)
			dst = append(dst, "89"[s[i+2]&1])
			i += 2
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
