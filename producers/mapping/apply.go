package mapping

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Apply makes the event of one record. The error is a *schema.Fault. It does not validate the event.
func (m *Mapping) Apply(record []byte) (schema.Event, error) {
	var e schema.Event
	if !gjson.ValidBytes(record) {
		return e, &schema.Fault{Problem: "the record is not JSON", Remedy: "give one JSON object a line"}
	}
	doc := gjson.ParseBytes(record)
	if !doc.IsObject() {
		return e, &schema.Fault{Problem: "the record is no JSON object", Remedy: "give one JSON object a line"}
	}
	e.Organization = m.text(doc, "organization")
	e.Trail = schema.Trail(m.text(doc, "trail"))
	var id string
	for i := range schema.Fields {
		f := &schema.Fields[i]
		rule, ok := m.Fields[f.Name]
		if !ok {
			continue
		}
		switch f.Kind {
		case schema.KindID:
			id = rule.value(doc)
		case schema.KindTime:
			t, err := rule.time(doc)
			if err != nil {
				return e, err
			}
			e.OccurredAt = t
		case schema.KindText:
			f.SetText(&e, rule.value(doc))
		case schema.KindJSON:
			f.SetText(&e, rule.raw(doc))
		case schema.KindMap:
		}
	}
	e.ID = eventID(e.Source, id)
	for name, rule := range m.Attributes {
		if v := rule.value(doc); v != "" {
			if e.Attributes == nil {
				e.Attributes = map[string]string{}
			}
			e.Attributes[name] = v
		}
	}
	return e, nil
}

// eventID is the id of the event that a source calls id. An id that is not a UUID is hashed with the source, as that of a CloudEvent
// is, so that a record keeps its id in every file and batch. It is uuid.Nil if there is no id.
func eventID(source, id string) uuid.UUID {
	if id == "" {
		return uuid.Nil
	}
	// With an error, Parse returns the part that it has read, which other ids have in common.
	if parsed, err := uuid.Parse(id); err == nil {
		return parsed
	}
	return codec.HashedID("mapping", source, id)
}

func (m *Mapping) text(doc gjson.Result, field string) string {
	rule, ok := m.Fields[field]
	if !ok {
		return ""
	}
	return rule.value(doc)
}

// value is the rule's value as text.
func (r *Rule) value(doc gjson.Result) string {
	v := r.source(doc)
	for _, m := range r.Match {
		if m.re.MatchString(v) {
			v = m.Value
			break
		}
	}
	if r.Lower {
		v = strings.ToLower(v)
	}
	if v == "" {
		return r.Default
	}
	return v
}

func (r *Rule) source(doc gjson.Result) string {
	switch {
	case r.Const != nil:
		return *r.Const
	case r.Template != "":
		return expand(r.Template, doc)
	}
	for _, p := range r.Paths {
		if v := doc.Get(p); v.Exists() && v.Type != gjson.Null && v.String() != "" {
			return v.String()
		}
	}
	return ""
}

// raw is the rule's value as JSON: the record's own bytes, if it is a path.
func (r *Rule) raw(doc gjson.Result) string {
	for _, p := range r.Paths {
		if p == "@this" {
			return doc.Raw
		}
		if v := doc.Get(p); v.Exists() && v.Type != gjson.Null {
			return v.Raw
		}
	}
	if v := r.value(doc); v != "" {
		text, _ := json.Marshal(v) // a string: it can't fail
		return string(text)
	}
	return ""
}

func expand(template string, doc gjson.Result) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(template, "${")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		path, after, _ := strings.Cut(rest, "}")
		b.WriteString(doc.Get(path).String())
		template = after
	}
}

func (r *Rule) time(doc gjson.Result) (time.Time, error) {
	v := r.value(doc)
	if v == "" {
		return time.Time{}, nil // validation says that it is missing
	}
	switch r.Time {
	case "unix", "unix_ms", "unix_us":
		unit := map[string]float64{"unix": 1e6, "unix_ms": 1e3, "unix_us": 1}[r.Time]
		// What lies beyond all calendars is of another unit than the rule says, and would wrap around into
		// a time that looks right.
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || !(math.Abs(f*unit) < 1<<61) {
			break
		}
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return time.UnixMicro(n * int64(unit)).UTC(), nil
		}
		return time.UnixMicro(int64(math.Round(f * unit))).UTC(), nil
	case "", "rfc3339":
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"} {
			if t, err := time.Parse(layout, v); err == nil {
				return t.UTC(), nil
			}
		}
	default:
		if t, err := time.Parse(r.Time, v); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, &schema.Fault{
		Field: "occurred_at", Value: v, Problem: fmt.Sprintf("is no time of the form %s", r.timeForm()),
		Remedy: "set time in the mapping's rule to rfc3339, unix, unix_ms, unix_us or a Go layout",
	}
}

func (r *Rule) timeForm() string {
	if r.Time == "" {
		return "rfc3339"
	}
	return r.Time
}
