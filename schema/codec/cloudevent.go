package codec

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"mime"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// cloudEvent makes an event of a CloudEvent (version 1.0).
//
//	id               id, if it is a UUID; otherwise an id made of source and id, with the attribute ce_id
//	source           source
//	type             event; its last dotted part is the action, unless the extension action says one
//	time             occurred_at; required here, for an audit event without a time says little
//	subject          target.id
//	data             data; what is no JSON becomes a JSON string: text as it is, bytes in base64
//	dataschema       data_type
//	datacontenttype  the attribute datacontenttype, if it is not JSON
//	traceparent      context.trace_id, and an attribute as any other extension
//
// The extensions organization, trail, action, outcome, actortype, actorid, actorname, targettype, targetname, appid,
// ip, useragent, sessionid, location and description are the fields of these names; any other extension is an
// attribute.
type cloudEvent struct {
	e           *schema.Event
	seen        uint32
	id          string
	contentType string
}

// ceTexts are the attributes that are fields; the index is the bit in cloudEvent.seen.
var ceTexts = []struct {
	name string
	text func(*schema.Event) *string
}{
	{"source", func(e *schema.Event) *string { return &e.Source }},
	{"type", func(e *schema.Event) *string { return &e.Event }},
	{"subject", func(e *schema.Event) *string { return &e.Target.ID }},
	{"dataschema", func(e *schema.Event) *string { return &e.DataType }},
	{"organization", func(e *schema.Event) *string { return &e.Organization }},
	{"trail", func(e *schema.Event) *string { return (*string)(&e.Trail) }},
	{"action", func(e *schema.Event) *string { return &e.Action }},
	{"outcome", func(e *schema.Event) *string { return (*string)(&e.Outcome) }},
	{"actortype", func(e *schema.Event) *string { return &e.Actor.Type }},
	{"actorid", func(e *schema.Event) *string { return &e.Actor.ID }},
	{"actorname", func(e *schema.Event) *string { return &e.Actor.Name }},
	{"targettype", func(e *schema.Event) *string { return &e.Target.Type }},
	{"targetname", func(e *schema.Event) *string { return &e.Target.Name }},
	{"appid", func(e *schema.Event) *string { return &e.AppID }},
	{"ip", func(e *schema.Event) *string { return &e.Context.IP }},
	{"useragent", func(e *schema.Event) *string { return &e.Context.UserAgent }},
	{"sessionid", func(e *schema.Event) *string { return &e.Context.SessionID }},
	{"location", func(e *schema.Event) *string { return &e.Context.Location }},
	{"description", func(e *schema.Event) *string { return &e.Description }},
}

// Bits of the attributes that have their own treatment.
const (
	ceID = 1 << (24 + iota)
	ceVersion
	ceTime
	ceContentType
	ceData
)

func (c *cloudEvent) once(bit uint32, name string) *schema.Fault {
	if c.seen&bit != 0 {
		return twice(name)
	}
	c.seen |= bit
	return nil
}

// set takes one attribute. Its value is shared.
func (c *cloudEvent) set(p *parser, name, value string) *schema.Fault {
	for i := range ceTexts {
		if ceTexts[i].name == name {
			*ceTexts[i].text(c.e) = value
			return c.once(1<<i, name)
		}
	}
	switch name {
	case "specversion":
		if value != "1.0" {
			return &schema.Fault{Field: name, Value: value, Problem: "is no version of CloudEvents that is known", Remedy: "use 1.0"}
		}
		return c.once(ceVersion, name)
	case "id":
		c.id = value
		return c.once(ceID, name)
	case "time":
		at, ok := parseTime(value)
		if !ok {
			return &schema.Fault{Field: name, Value: value, Problem: "is no time", Remedy: "use RFC 3339: 2026-11-22T04:05:06.789Z"}
		}
		c.e.OccurredAt = at
		return c.once(ceTime, name)
	case "datacontenttype":
		c.contentType = value
		return c.once(ceContentType, name)
	case "traceparent":
		if parts := strings.Split(value, "-"); len(parts) >= 4 && len(parts[1]) == 32 {
			c.e.Context.TraceID = parts[1]
		}
	}
	if p.attrs == nil {
		p.attrs = map[string]string{}
	}
	if _, ok := p.attrs[name]; ok {
		return twice(name)
	}
	p.attrs[name] = value
	return nil
}

// cloudEvent reads line, a CloudEvent in the structured mode, into e.
func (p *parser) cloudEvent(line []byte, e *schema.Event) *schema.Fault {
	*e = schema.Event{}
	if f := p.begin(line); f != nil {
		return f
	}
	c := cloudEvent{e: e}
	clear(p.attrs)
	p.i++
	for first := true; ; first = false {
		p.space()
		if first && p.take('}') {
			break
		}
		name, f := p.string()
		if f != nil {
			return f
		}
		if !p.colon() {
			return p.malformed()
		}
		if f := p.cloudEventMember(&c, name); f != nil {
			return f
		}
		more, f := p.comma('}')
		if f != nil {
			return f
		}
		if !more {
			break
		}
	}
	if p.space(); p.i < len(p.s) {
		return &schema.Fault{Value: p.s[p.i:], Problem: "follows the event", Remedy: "give one JSON object"}
	}
	return c.finish(p)
}

func (p *parser) cloudEventMember(c *cloudEvent, name string) *schema.Fault {
	end, ok := schema.SkipJSON(p.s, p.i)
	if !ok {
		p.i = end
		return p.malformed()
	}
	raw, kind := p.s[p.i:end], p.kind()
	switch {
	case name == "data":
		c.e.Data = json.RawMessage(unsafe.Slice(unsafe.StringData(raw), len(raw)))
		p.i = end
		return c.once(ceData, name)
	case kind == "null":
		p.i = end
		return nil
	case name == "data_base64":
		if _, err := base64.StdEncoding.DecodeString(strings.Trim(raw, `"`)); kind != "string" || err != nil {
			return &schema.Fault{Field: name, Problem: "is not base64", Remedy: "give a string in base64 of RFC 4648, section 4"}
		}
		c.e.Data = json.RawMessage(unsafe.Slice(unsafe.StringData(raw), len(raw)))
		p.i = end
		return c.once(ceData, "data")
	case kind == "string":
		value, f := p.string()
		if f != nil {
			return f
		}
		return c.set(p, name, value)
	case kind == "object" || kind == "array":
		return &schema.Fault{Field: name, Problem: "is a JSON " + kind, Remedy: "give a string, a number or a boolean; what has parts belongs in data"}
	default:
		p.i = end
		return c.set(p, name, raw)
	}
}

// binaryData is the body of the binary mode.
func (c *cloudEvent) binaryData(data []byte) *schema.Fault {
	if f := schema.CheckSize(len(data)); f != nil {
		return f
	}
	switch kind, _, _ := mime.ParseMediaType(c.contentType); {
	case len(data) == 0:
	case kind == ContentJSON || strings.HasSuffix(kind, "+json"):
		c.e.Data = data // whether it is JSON is a rule of the field
		if !utf8.Valid(data) {
			return &schema.Fault{Field: "data", Problem: "is not valid UTF-8", Remedy: "encode it as UTF-8"}
		}
	case strings.HasPrefix(kind, "text/") && utf8.Valid(data):
		c.e.Data, _ = json.Marshal(string(data))
	default:
		c.e.Data, _ = json.Marshal(data)
	}
	return nil
}

// finish checks and derives what only the whole event tells.
func (c *cloudEvent) finish(p *parser) *schema.Fault {
	missing := func(name string) *schema.Fault {
		return &schema.Fault{Field: name, Problem: "is missing", Remedy: "every CloudEvent has one"}
	}
	switch {
	case c.seen&ceVersion == 0:
		return missing("specversion")
	case c.id == "":
		return missing("id")
	case c.e.Source == "":
		return missing("source")
	case c.e.Event == "":
		return missing("type")
	case c.e.OccurredAt.IsZero():
		return &schema.Fault{Field: "time", Problem: "is missing", Remedy: "say when it happened, in RFC 3339: 2026-11-22T04:05:06.789Z"}
	}
	attribute := func(name, value string) {
		if p.attrs == nil {
			p.attrs = map[string]string{}
		}
		p.attrs[name] = value
	}
	if id, err := uuid.Parse(c.id); err == nil && len(c.id) == 36 {
		c.e.ID = id
	} else {
		c.e.ID = HashedID("cloudevents", c.e.Source, c.id)
		attribute("ce_id", c.id)
	}
	if c.e.Action == "" {
		c.e.Action = strings.ToLower(c.e.Event[strings.LastIndexByte(c.e.Event, '.')+1:])
	}
	if kind, _, _ := mime.ParseMediaType(c.contentType); c.contentType != "" && kind != ContentJSON {
		attribute("datacontenttype", c.contentType)
	}
	if len(p.attrs) > 0 {
		c.e.Attributes = p.attrs
	}
	return nil
}

// HashedID is a UUIDv8 (RFC 9562) made of parts: the same parts have the same id.
func HashedID(parts ...string) (id uuid.UUID) {
	h := sha256.New()
	var size [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(size[:], uint64(len(p)))
		h.Write(size[:])
		h.Write([]byte(p))
	}
	copy(id[:], h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
