package codec

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// A parser reads events from JSON without reflection. It is the one reader of events: [ParseEvent] and
// [Decode] use it.
//
// It is stricter than encoding/json where that would change or drop what an application says: names are
// matched exactly, none may occur twice in an object, and times have the form of RFC 3339 and no other.
// In everything else both accept the same texts with the same result, which a fuzz test compares.
//
// The texts of an event share memory with its line and with the parser: they are good until its next.
type parser struct {
	s       string // the line
	i       int    // the next byte
	scratch []byte // strings that had escapes
	attrs   map[string]string
}

// A slot is one member of an event's object in JSON, or of an object in it.
type slot struct {
	name    string
	text    func(*schema.Event) *string // of organization and trail, which are no fields of a block
	field   *schema.Field
	members []slot // of an object: actor, target, context
	path    string // dotted, of the member
}

// slots is the form of an event, made of schema.Fields.
var slots = func() []slot {
	all := []slot{
		{name: "organization", path: "organization", text: func(e *schema.Event) *string { return &e.Organization }},
		{name: "trail", path: "trail", text: func(e *schema.Event) *string { return (*string)(&e.Trail) }},
	}
	for i := range schema.Fields {
		f := &schema.Fields[i]
		object, member, nested := strings.Cut(f.Name, ".")
		if !nested {
			all = append(all, slot{name: f.Name, path: f.Name, field: f})
			continue
		}
		if last := &all[len(all)-1]; last.name != object {
			all = append(all, slot{name: object, path: object})
		}
		last := &all[len(all)-1]
		last.members = append(last.members, slot{name: member, path: f.Name, field: f})
	}
	return all
}()

// parse reads line into e, which is overwritten.
func (p *parser) parse(line []byte, e *schema.Event) *schema.Fault {
	*e = schema.Event{}
	if f := p.begin(line); f != nil {
		return f
	}
	if f := p.object(e, slots, nil); f != nil {
		return f
	}
	p.space()
	if p.i < len(p.s) {
		return &schema.Fault{Value: p.s[p.i:], Problem: "follows the event", Remedy: "put one event in a line"}
	}
	return nil
}

// begin makes p ready for line, and goes to the object that it has to be.
func (p *parser) begin(line []byte) *schema.Fault {
	if f := schema.CheckSize(len(line)); f != nil {
		return f
	}
	if !utf8.Valid(line) {
		return &schema.Fault{Problem: "the event is not valid UTF-8", Remedy: "encode it as UTF-8"}
	}
	p.s, p.i, p.scratch = unsafe.String(unsafe.SliceData(line), len(line)), 0, p.scratch[:0]
	p.space()
	if !p.at('{') {
		if _, ok := schema.SkipJSON(p.s, p.i); ok {
			return &schema.Fault{Problem: "the event is a JSON " + p.kind(), Remedy: "give a JSON object"}
		}
		return p.malformed()
	}
	return nil
}

// object reads the object at p.i, which is the event or the member within, into the slots of e.
func (p *parser) object(e *schema.Event, slots []slot, within *slot) *schema.Fault {
	if !p.take('{') {
		return p.malformed()
	}
	var seen uint32
	next := 0 // most producers write the members in one order: look where the last one was found
	for first := true; ; first = false {
		p.space()
		if first && p.take('}') {
			return nil
		}
		name, f := p.string()
		if f != nil {
			return f
		}
		at := -1
		for range slots {
			if slots[next].name == name {
				at = next
			}
			if next++; next == len(slots) {
				next = 0
			}
			if at >= 0 {
				break
			}
		}
		if !p.colon() {
			return p.malformed()
		}
		if at < 0 {
			return &schema.Fault{Field: within.pathOf(name), Problem: "is no field of an event", Remedy: "put it in data or attributes"}
		}
		if seen&(1<<at) != 0 {
			return twice(within.pathOf(name))
		}
		seen |= 1 << at
		if f := p.value(e, &slots[at]); f != nil {
			return f
		}
		if more, f := p.comma('}'); f != nil || !more {
			return f
		}
	}
}

// pathOf is the path of a member of s, or of the event.
func (s *slot) pathOf(name string) string {
	if s == nil {
		return name
	}
	return s.path + "." + name
}

func twice(field string) *schema.Fault {
	return &schema.Fault{Field: field, Problem: "is there twice", Remedy: "give one value"}
}

// value reads the value at p.i into a slot of e. null is as good as nothing, except where any JSON is
// welcome.
func (p *parser) value(e *schema.Event, s *slot) *schema.Fault {
	any := s.field != nil && s.field.Kind == schema.KindJSON
	if !any && strings.HasPrefix(p.s[p.i:], "null") {
		p.i += len("null")
		return nil
	}
	switch {
	case s.members != nil:
		if !p.at('{') {
			return p.mistyped("object", s.path)
		}
		return p.object(e, s.members, s)
	case any:
		end, ok := schema.SkipJSON(p.s, p.i)
		if !ok {
			p.i = end
			return p.malformed()
		}
		s.field.ShareText(e, p.s[p.i:end])
		p.i = end
		return nil
	case s.field != nil && s.field.Kind == schema.KindMap:
		return p.attributes(e)
	}
	if !p.at('"') {
		return p.mistyped("string", s.path)
	}
	v, f := p.string()
	if f != nil {
		return f
	}
	switch {
	case s.text != nil:
		*s.text(e) = v
	case s.field.Kind == schema.KindID:
		id, err := uuid.Parse(v)
		if err != nil || len(v) == 38 && (v[0] != '{' || v[37] != '}') { // Parse does not look at these two
			return &schema.Fault{Field: s.name, Value: v, Problem: "is no UUID", Remedy: "use a UUID, or leave it out"}
		}
		e.ID = id
	case s.field.Kind == schema.KindTime:
		at, ok := parseTime(v)
		if !ok {
			return &schema.Fault{Field: s.name, Value: v, Problem: "is no time", Remedy: "use RFC 3339: 2026-11-22T04:05:06.789Z"}
		}
		e.OccurredAt = at
	default:
		s.field.ShareText(e, v)
	}
	return nil
}

// parseTime reads the form of RFC 3339, with T and Z in upper case. time.Parse alone takes hours of one
// digit and commas for points, too.
func parseTime(v string) (time.Time, bool) {
	if len(v) < len("2006-01-02T15:04:05Z") || v[13] != ':' || v[19] == ',' {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, v)
	if err != nil || v[len(v)-1] == 'Z' {
		return at, err == nil
	}
	zone := v[len(v)-len("+09:00"):]
	return at, zone[1:3] <= "23" && zone[4:] <= "59"
}

func (p *parser) attributes(e *schema.Event) *schema.Fault {
	if !p.at('{') {
		return p.mistyped("object", "attributes")
	}
	p.i++
	clear(p.attrs)
	for first := true; ; first = false {
		p.space()
		if first && p.take('}') {
			return nil
		}
		name, f := p.string()
		if f != nil {
			return f
		}
		if !p.colon() {
			return p.malformed()
		}
		value := ""
		if strings.HasPrefix(p.s[p.i:], "null") {
			p.i += len("null")
		} else {
			if !p.at('"') {
				return p.mistyped("string", "attributes."+name)
			}
			if value, f = p.string(); f != nil {
				return f
			}
		}
		if p.attrs == nil {
			p.attrs = map[string]string{}
		}
		if _, ok := p.attrs[name]; ok {
			return twice("attributes." + name)
		}
		p.attrs[name] = value
		e.Attributes = p.attrs
		if more, f := p.comma('}'); f != nil || !more {
			return f
		}
	}
}

// at reports whether c is the next byte.
func (p *parser) at(c byte) bool { return p.i < len(p.s) && p.s[p.i] == c }

// mistyped is the fault of the value at p.i, which is of another kind than it should be.
func (p *parser) mistyped(want, field string) *schema.Fault {
	if _, ok := schema.SkipJSON(p.s, p.i); !ok {
		return p.malformed()
	}
	return &schema.Fault{Field: field, Problem: "is a JSON " + p.kind(), Remedy: "give a JSON " + want}
}

// kind names the JSON value that begins at p.i.
func (p *parser) kind() string {
	switch p.s[p.i] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "bool"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

// malformed is the fault of a line that is not JSON at p.i.
func (p *parser) malformed() *schema.Fault {
	if p.i >= len(p.s) {
		return &schema.Fault{Problem: fmt.Sprintf("the event is cut off after %d bytes", len(p.s)), Remedy: "give a whole JSON object"}
	}
	r, _ := utf8.DecodeRuneInString(p.s[p.i:])
	return &schema.Fault{Problem: fmt.Sprintf("the event is not JSON at byte %d: %q", p.i+1, r), Remedy: "give a JSON object"}
}

func (p *parser) space() { p.i = schema.SkipSpace(p.s, p.i) }

func (p *parser) take(c byte) bool {
	ok := p.at(c)
	if ok {
		p.i++
	}
	return ok
}

func (p *parser) colon() bool {
	p.space()
	ok := p.take(':')
	p.space()
	return ok
}

// comma reads what follows a member: a comma, and there is more; or the end.
func (p *parser) comma(end byte) (more bool, f *schema.Fault) {
	p.space()
	if p.take(',') {
		return true, nil
	}
	if p.take(end) {
		return false, nil
	}
	return false, p.malformed()
}

// string reads the string at p.i.
func (p *parser) string() (string, *schema.Fault) {
	if p.i >= len(p.s) || p.s[p.i] != '"' {
		return "", p.malformed()
	}
	end, escaped, ok := schema.SkipJSONString(p.s, p.i)
	if !ok {
		p.i = end
		return "", p.malformed()
	}
	text := p.s[p.i+1 : end-1]
	p.i = end
	if !escaped {
		return text, nil
	}
	first := len(p.scratch)
	p.scratch = schema.AppendUnescaped(p.scratch, text)
	v := p.scratch[first:]
	return unsafe.String(unsafe.SliceData(v), len(v)), nil
}

// ParseEvent reads one event from JSON. It refuses what it does not know, so that nothing an
// application says is dropped without a word: a field of another name belongs in data or attributes, and
// no name may occur twice. It does not validate the values. The error answers to schema.ErrInvalid.
func ParseEvent(line []byte) (schema.Event, error) {
	var p parser
	var e schema.Event
	if f := p.parse(bytes.Clone(line), &e); f != nil {
		return schema.Event{}, f
	}
	return e, nil
}
