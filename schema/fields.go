package schema

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"
)

// Limits that hold at every way in.
const (
	// MaxEventBytes bounds one event: its JSON line, and the sum of its values.
	MaxEventBytes = 256 << 10
	// MaxMessageBytes bounds one message of many events, as stored and as decompressed.
	MaxMessageBytes = 4 << 20
	// MaxMessageEvents bounds the events of one message.
	MaxMessageEvents = 1 << 16
	// MaxAttributes, MaxAttributeKey and MaxAttributeValue bound the attributes of one event.
	MaxAttributes     = 256
	MaxAttributeKey   = 256
	MaxAttributeValue = 16 << 10
	// MaxClockAhead is how far in the future OccurredAt may lie: clocks differ, time zones get
	// confused, but what has not happened is no audit event.
	MaxClockAhead = 24 * time.Hour
)

// MinOccurredAt is the earliest time that ClickHouse's DateTime64 holds.
var MinOccurredAt = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)

// Kind is the shape of a field's value.
type Kind uint8

// The kinds of fields.
const (
	KindID   Kind = iota // a UUID
	KindTime             // microseconds since 1970, UTC
	KindText             // UTF-8
	KindJSON             // any JSON value, as text; empty for none
	KindMap              // string to string
)

// Field describes one field of an event, once for every encoding: its name in JSON, its column,
// and its rules.
type Field struct {
	Name     string // dotted path in JSON
	Column   string // name in ClickHouse, in CSV and in columnar blocks
	Kind     Kind
	Required bool
	MaxBytes int // of the value, for KindText and KindJSON
	// check has the rules beyond length and UTF-8; it returns the fault in words, or nothing.
	check  func(value string) (problem, remedy string)
	text   func(*Event) *string
	json   func(*Event) *json.RawMessage
	remedy string // for a missing value
	// offset is where text or json points to within an Event. A call through a func would make every event
	// that is published escape to the heap.
	offset uintptr
}

func init() {
	for i := range Fields {
		f, e := &Fields[i], new(Event)
		switch at := unsafe.Pointer(e); f.Kind {
		case KindText:
			f.offset = uintptr(unsafe.Pointer(f.text(e))) - uintptr(at)
		case KindJSON:
			f.offset = uintptr(unsafe.Pointer(f.json(e))) - uintptr(at)
		default:
			continue
		}
		if f.check == nil && f.Kind == KindText {
			plain = append(plain, plainText{f.offset, f.MaxBytes})
		} else {
			special = append(special, f)
		}
	}
}

// plain are the texts without rules of their own, and special the others: what the fast way through an event
// needs of Fields, close together.
var (
	plain   []plainText
	special []*Field
)

type plainText struct {
	offset   uintptr
	maxBytes int
}

// Fields lists the fields that travel inside a message, in the order of the columns of a block.
// Organization and trail are not among them: a message's subject says both for all its events.
var Fields = []Field{
	{Name: "id", Column: "id", Kind: KindID},
	{Name: "occurred_at", Column: "occurred_at", Kind: KindTime, Required: true},
	{
		Name: "source", Column: "source", Kind: KindText, Required: true, MaxBytes: 256, check: noControls,
		text: func(e *Event) *string { return &e.Source }, remedy: "name the service that speaks",
	},
	{
		Name: "event", Column: "event", Kind: KindText, Required: true, MaxBytes: 256, check: isCode,
		text: func(e *Event) *string { return &e.Event }, remedy: "give the event type's dotted code, such as report.published",
	},
	{
		Name: "action", Column: "action", Kind: KindText, Required: true, MaxBytes: 64, check: isLower,
		text: func(e *Event) *string { return &e.Action }, remedy: "say what was done: create, read, update, delete, …",
	},
	{
		Name: "outcome", Column: "outcome", Kind: KindText, MaxBytes: 16, check: isOutcome,
		text: func(e *Event) *string { return (*string)(&e.Outcome) },
	},
	{Name: "actor.type", Column: "actor_type", Kind: KindText, MaxBytes: 256, text: func(e *Event) *string { return &e.Actor.Type }},
	{Name: "actor.id", Column: "actor_id", Kind: KindText, MaxBytes: 1024, text: func(e *Event) *string { return &e.Actor.ID }},
	{Name: "actor.name", Column: "actor_name", Kind: KindText, MaxBytes: 1024, text: func(e *Event) *string { return &e.Actor.Name }},
	{Name: "target.type", Column: "target_type", Kind: KindText, MaxBytes: 256, text: func(e *Event) *string { return &e.Target.Type }},
	{Name: "target.id", Column: "target_id", Kind: KindText, MaxBytes: 4096, text: func(e *Event) *string { return &e.Target.ID }},
	{Name: "target.name", Column: "target_name", Kind: KindText, MaxBytes: 4096, text: func(e *Event) *string { return &e.Target.Name }},
	{Name: "app_id", Column: "app_id", Kind: KindText, MaxBytes: 1024, text: func(e *Event) *string { return &e.AppID }},
	{Name: "context.ip", Column: "ip", Kind: KindText, MaxBytes: 256, text: func(e *Event) *string { return &e.Context.IP }},
	{Name: "context.user_agent", Column: "user_agent", Kind: KindText, MaxBytes: 4096, text: func(e *Event) *string { return &e.Context.UserAgent }},
	{Name: "context.session_id", Column: "session_id", Kind: KindText, MaxBytes: 1024, text: func(e *Event) *string { return &e.Context.SessionID }},
	{Name: "context.trace_id", Column: "trace_id", Kind: KindText, MaxBytes: 256, text: func(e *Event) *string { return &e.Context.TraceID }},
	{Name: "context.location", Column: "location", Kind: KindText, MaxBytes: 1024, text: func(e *Event) *string { return &e.Context.Location }},
	{Name: "description", Column: "description", Kind: KindText, MaxBytes: MaxEventBytes, text: func(e *Event) *string { return &e.Description }},
	{Name: "before", Column: "before", Kind: KindJSON, MaxBytes: MaxEventBytes, json: func(e *Event) *json.RawMessage { return &e.Before }},
	{Name: "after", Column: "after", Kind: KindJSON, MaxBytes: MaxEventBytes, json: func(e *Event) *json.RawMessage { return &e.After }},
	{Name: "data", Column: "data", Kind: KindJSON, MaxBytes: MaxEventBytes, json: func(e *Event) *json.RawMessage { return &e.Data }},
	{Name: "data_type", Column: "data_type", Kind: KindText, MaxBytes: 256, text: func(e *Event) *string { return &e.DataType }},
	{Name: "attributes", Column: "attributes", Kind: KindMap},
}

// Text is the field's value in e, for KindText and KindJSON. It may share memory with e.
func (f *Field) Text(e *Event) string {
	// A slice of bytes begins with what a string is: its address and its length.
	return *(*string)(unsafe.Add(unsafe.Pointer(e), f.offset))
}

// SetText sets the field in e, for KindText and KindJSON.
func (f *Field) SetText(e *Event, value string) {
	if f.text != nil {
		*f.text(e) = value
		return
	}
	*f.json(e) = nil
	if value != "" {
		*f.json(e) = json.RawMessage(value)
	}
}

// ShareText is SetText without a copy: value shares its memory with e, which is read-only from then on.
func (f *Field) ShareText(e *Event, value string) {
	if f.text != nil {
		*f.text(e) = value
		return
	}
	*f.json(e) = unsafe.Slice(unsafe.StringData(value), len(value))
}

// Plain reports whether the field has no rules but its length and UTF-8.
func (f *Field) Plain() bool { return f.Kind == KindText && f.check == nil }

// CheckText applies the field's rules to a value of KindText or KindJSON. It makes nothing unless
// there is a fault, so it can stand in the path of every event.
func (f *Field) CheckText(value string) *Fault {
	if len(value) <= f.MaxBytes && !IsASCII(value) && !utf8.ValidString(value) {
		return &Fault{Field: f.Name, Value: value, Problem: "is not valid UTF-8", Remedy: "encode it as UTF-8"}
	}
	return f.CheckASCII(value)
}

func (f *Field) checkText(value string, isUTF8 bool) *Fault {
	if isUTF8 {
		return f.CheckASCII(value)
	}
	return f.CheckText(value)
}

// IsASCII reports whether all bytes of s are ASCII. It looks at eight at a time, the last of them perhaps
// twice: most values are short, and for those it takes half as long as utf8.ValidString.
func IsASCII(s string) bool {
	const high = 0x8080808080808080
	at, n := unsafe.Pointer(unsafe.StringData(s)), len(s)
	if n < 8 {
		var bits byte
		for i := range n {
			bits |= s[i]
		}
		return bits < 0x80
	}
	bits := *(*uint64)(unsafe.Add(at, n-8))
	for i := 0; i < n-8; i += 8 {
		bits |= *(*uint64)(unsafe.Add(at, i))
	}
	return bits&high == 0
}

// CheckASCII is CheckText for a value that is known to be ASCII, or valid UTF-8.
func (f *Field) CheckASCII(value string) *Fault {
	switch {
	case value == "":
		if f.Required {
			return &Fault{Field: f.Name, Problem: "is missing", Remedy: f.remedy}
		}
		return nil
	case len(value) > f.MaxBytes:
		return &Fault{
			Field: f.Name, Value: value, Problem: fmt.Sprintf("has %d bytes", len(value)),
			Remedy: fmt.Sprintf("shorten it to %d", f.MaxBytes),
		}
	case f.Kind == KindJSON && !ValidJSON(value):
		return &Fault{Field: f.Name, Value: value, Problem: "is not JSON", Remedy: "give a JSON value; plain text goes in quotes"}
	case f.check != nil:
		if problem, remedy := f.check(value); problem != "" {
			return &Fault{Field: f.Name, Value: value, Problem: problem, Remedy: remedy}
		}
	}
	return nil
}

// CheckTime applies the rules of occurred_at; now is the clock of the one who checks.
func CheckTime(t, now time.Time) *Fault {
	switch {
	case t.IsZero():
		return &Fault{Field: "occurred_at", Problem: "is missing", Remedy: "say when it happened, in RFC 3339: 2026-11-22T04:05:06.789Z"}
	case t.Before(MinOccurredAt):
		return &Fault{
			Field: "occurred_at", Value: t.Format(time.RFC3339Nano), Problem: "is before 1900",
			Remedy: "check the unit of the time and the producer's clock",
		}
	case t.After(now.Add(MaxClockAhead)):
		return &Fault{
			Field: "occurred_at", Value: t.Format(time.RFC3339Nano), Problem: "is more than 24 hours in the future",
			Remedy: "check the producer's clock and time zone",
		}
	}
	return nil
}

// CheckAttribute applies the rules of one attribute.
func CheckAttribute(key, value string) *Fault {
	switch {
	case key == "":
		return &Fault{Field: "attributes", Problem: "has an empty name", Remedy: "name every attribute"}
	case len(key) > MaxAttributeKey:
		return &Fault{
			Field: "attributes", Value: key, Problem: fmt.Sprintf("has a name of %d bytes", len(key)),
			Remedy: fmt.Sprintf("shorten it to %d", MaxAttributeKey),
		}
	case len(value) > MaxAttributeValue:
		return &Fault{
			Field: "attributes." + key, Value: value, Problem: fmt.Sprintf("has %d bytes", len(value)),
			Remedy: fmt.Sprintf("shorten it to %d, or put it in data", MaxAttributeValue),
		}
	case !utf8.ValidString(key) || !utf8.ValidString(value):
		return &Fault{Field: "attributes", Value: key + "=" + value, Problem: "is not valid UTF-8", Remedy: "encode it as UTF-8"}
	}
	return nil
}

// CheckAttributeCount applies the limit on the number of attributes.
func CheckAttributeCount(n int) *Fault {
	if n > MaxAttributes {
		return &Fault{
			Field: "attributes", Problem: fmt.Sprintf("has %d entries", n),
			Remedy: fmt.Sprintf("keep at most %d, and put the rest in data", MaxAttributes),
		}
	}
	return nil
}

// CheckSize applies the limit on the whole event.
func CheckSize(n int) *Fault {
	if n > MaxEventBytes {
		return &Fault{
			Problem: fmt.Sprintf("the event has %d bytes", n),
			Remedy:  fmt.Sprintf("keep an event under %d bytes: store large documents elsewhere and record their hash", MaxEventBytes),
		}
	}
	return nil
}

// Classes of bytes that some fields may not contain.
const (
	control = 1 << iota
	space
	upper
)

var classes = func() (c [256]uint8) {
	for i := range 0x20 {
		c[i] = control
	}
	c[0x7f], c[' '] = control, space
	for i := 'A'; i <= 'Z'; i++ {
		c[i] = upper
	}
	return c
}()

func classesOf(s string) (found uint8) {
	for i := range len(s) {
		found |= classes[s[i]]
	}
	return found
}

func noControls(s string) (string, string) {
	if classesOf(s)&control != 0 {
		return "contains a control character", "remove it"
	}
	return "", ""
}

func isCode(s string) (string, string) {
	if classesOf(s)&(control|space) != 0 {
		return "contains white space or a control character", "use a dotted code such as report.published"
	}
	return "", ""
}

func isLower(s string) (string, string) {
	switch found := classesOf(s); {
	case found&(control|space) != 0:
		return isCode(s)
	case found&upper != 0:
		return "contains upper case", "write " + strings.ToLower(s)
	}
	return "", ""
}

func isOutcome(s string) (string, string) {
	switch Outcome(s) {
	case Success, Failure, Denied, Unknown:
		return "", ""
	}
	return "is not an outcome", "use success, failure, denied or unknown"
}
