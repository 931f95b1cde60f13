package mapping

import (
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// events makes the events of a record. They are not validated. A record that the mapping leaves out has none.
//
// visit is called with each event or what is wrong with it (a *schema.Fault); more says that another follows.
// Before, explained gets what the events leave of the record; it may be nil.
func (m *Mapping) events(rec *record, now time.Time, explained func(*Explained), visit func(e schema.Event, err error, more bool) bool) bool {
	s, err := m.open(rec)
	if err != nil {
		return visit(schema.Event{}, err, false)
	}
	if len(m.Input.Only) > 0 && !anyHolds(m.Input.Only, s) || anyHolds(m.Input.Skip, s) {
		return visit(schema.Event{}, errSkipped, false)
	}
	items := []gjson.Result{{}}
	if m.Input.Each != "" {
		if found := s.get(m.Input.Each); found.IsArray() {
			items = elements(found)
		} else if found.IsObject() {
			items[0] = found
		}
	}
	if len(items) == 0 { // an array without elements is one event about the record
		items = []gjson.Result{{}}
	}
	if explained != nil {
		explained(m.explain(s, items, now))
	}
	for i, item := range items {
		s.item = item
		e, err := m.apply(s, i, now)
		if !visit(e, err, i < len(items)-1) {
			return false
		}
	}
	return true
}

// elements are those of an array, with their places in the record.
func elements(array gjson.Result) (all []gjson.Result) {
	array.ForEach(func(_, element gjson.Result) bool {
		all = append(all, element)
		return true
	})
	return all
}

// errSkipped says that a mapping leaves a record out on purpose.
var errSkipped = errors.New("left out by the mapping")

// open reads a record as far as rules need it.
func (m *Mapping) open(rec *record) (*source, error) {
	text := rec.doc
	if text == "" {
		text = string(rec.raw)
		var repeated *repeatedError
		err := checkJSON(text)
		if errors.As(err, &repeated) && m.Input.Repeated == "list" {
			text, err = listRepeated(text), nil
		}
		if err == nil && !gjson.Parse(text).IsObject() {
			err = errNotObject
		}
		if err != nil {
			return nil, recordFault(nil, err)
		}
	}
	s := &source{m: m, raw: string(rec.raw), doc: gjson.Parse(text)}
	for _, p := range m.Input.Unwrap {
		if v := s.get(p); v.IsObject() {
			v.Index = 0
			s.doc = v
			break
		}
	}
	for i := range m.Input.Parse {
		step := &m.Input.Parse[i]
		v := s.get(step.Path)
		if v.Type != gjson.String {
			continue
		}
		if s.doc.Get(gjsonName(step.Into)).Exists() {
			return nil, &schema.Fault{Problem: "the record has a member " + step.Into, Remedy: "give another name in input.parse of the mapping"}
		}
		made, err := step.parse(textOf(v), m.Input.Repeated == "list")
		if err != nil && step.Optional {
			continue
		}
		if err != nil {
			return nil, &schema.Fault{Problem: "the value of " + step.Path + " (" + step.Format.Format + ") " + err.Error(), Value: textOf(v), Remedy: "correct input.parse of the mapping, or make the step optional"}
		}
		s.doc = withMember(s.doc, step.Into, made)
	}
	return s, nil
}

// withMember adds a member at the end of an object.
func withMember(doc gjson.Result, name, value string) gjson.Result {
	text := strings.TrimRight(doc.Raw, " \t\r\n")
	text = strings.TrimRight(text[:len(text)-1], " \t\r\n")
	out := []byte(text)
	if !strings.HasSuffix(text, "{") {
		out = append(out, ',')
	}
	out = append(append(appendText(out, name), ':'), value...)
	return gjson.ParseBytes(append(out, '}'))
}

// gjsonName escapes a name for a path.
func gjsonName(name string) string {
	var b strings.Builder
	for _, r := range name {
		if strings.ContainsRune(`.*?|#@\!{}[]()=<>%`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// apply makes the event of one item of a record. It is not validated.
func (m *Mapping) apply(s *source, item int, now time.Time) (schema.Event, error) {
	var e schema.Event
	e.Organization = m.text(s, "organization")
	e.Trail = schema.Trail(m.text(s, "trail"))
	var id string
	for i := range schema.Fields {
		f := &schema.Fields[i]
		rule, ok := m.Fields[f.Name]
		if !ok {
			continue
		}
		switch f.Kind {
		case schema.KindID:
			id = rule.value(s)
			if id != "" && item > 0 && !rule.usesItem() {
				id += "\x00" + itoa(item)
			}
		case schema.KindTime:
			if err := m.time(s, &rule, &e, now); err != nil {
				return e, err
			}
		case schema.KindText:
			f.SetText(&e, rule.value(s))
		case schema.KindJSON:
			f.SetText(&e, rule.raw(s))
		case schema.KindMap:
		}
	}
	if err := m.outcome(&e); err != nil {
		return e, err
	}
	e.ID = eventID(e.Source, id)
	for name, rule := range m.Attributes {
		if v := rule.value(s); v != "" {
			setAttribute(&e, name, v)
		}
	}
	return e, nil
}

// outcome completes the event's: what a log does not say is not a success.
func (m *Mapping) outcome(e *schema.Event) error {
	if e.Outcome != "" {
		return nil
	}
	if _, ok := m.Fields["outcome"]; ok {
		return &schema.Fault{Field: "outcome", Problem: "has no value: no rule of the mapping applies to this record", Remedy: "add one, or a default such as unknown"}
	}
	e.Outcome = schema.Unknown
	return nil
}

func (m *Mapping) time(s *source, rule *Rule, e *schema.Event, now time.Time) error {
	v := rule.value(s)
	if v == "" {
		return nil // validation reports that it is missing
	}
	zone, assumed := m.zone, m.assumed
	if rule.zone != nil {
		zone, assumed = rule.zone, false
	}
	t, zoneUsed, err := parseTime(v, rule.Time, zone, now)
	if err != nil {
		return timeFault(v, rule.Time, err)
	}
	e.OccurredAt = t
	if zoneUsed && assumed {
		setAttribute(e, "time_zone_assumed", zone.String())
	}
	return nil
}

func setAttribute(e *schema.Event, name, value string) {
	if e.Attributes == nil {
		e.Attributes = map[string]string{}
	}
	e.Attributes[name] = value
}

func (r *Rule) usesItem() bool {
	for _, p := range r.Path {
		if strings.HasPrefix(p, pathItem) {
			return true
		}
	}
	for i := range r.Choose {
		if r.Choose[i].usesItem() {
			return true
		}
	}
	return strings.Contains(r.Template, "${"+pathItem)
}

// eventID is the id of the event that a source calls id. An id that is not a UUID is hashed with the source, as
// that of a CloudEvent is, so that a record keeps its id in every file and batch. It is uuid.Nil if there is no id.
func eventID(source, id string) uuid.UUID {
	if id == "" {
		return uuid.Nil
	}
	// With an error, Parse returns the part that it has read, which other ids have in common.
	if parsed, err := uuid.Parse(id); err == nil && parsed != uuid.Nil {
		return parsed
	}
	return codec.HashedID("mapping", source, id)
}

func (m *Mapping) text(s *source, field string) string {
	rule, ok := m.Fields[field]
	if !ok {
		return ""
	}
	return rule.value(s)
}

// listRepeated returns valid JSON in which the values of a repeated name are an array.
func listRepeated(text string) string {
	doc := gjson.Parse(text)
	return string(appendListed(nil, doc))
}

func appendListed(dst []byte, v gjson.Result) []byte {
	switch {
	case v.IsObject():
		var names []string
		values := map[string][]gjson.Result{}
		v.ForEach(func(name, value gjson.Result) bool {
			n := textOf(name)
			if _, ok := values[n]; !ok {
				names = append(names, n)
			}
			values[n] = append(values[n], value)
			return true
		})
		dst = append(dst, '{')
		for i, n := range names {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendText(dst, n), ':')
			if len(values[n]) == 1 {
				dst = appendListed(dst, values[n][0])
				continue
			}
			dst = appendElements(dst, values[n])
		}
		return append(dst, '}')
	case v.IsArray():
		return appendElements(dst, v.Array())
	}
	return append(dst, v.Raw...)
}

func appendElements(dst []byte, all []gjson.Result) []byte {
	dst = append(dst, '[')
	for i, v := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendListed(dst, v)
	}
	return append(dst, ']')
}
