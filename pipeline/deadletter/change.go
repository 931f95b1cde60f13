package deadletter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Change is what is done to a letter before it is published again. The zero value publishes its
// bytes where they came from.
type Change struct {
	// Data is published in place of the letter's bytes.
	Data []byte
	// Mapping makes an event of the bytes, as kansa publish --mapping does.
	Mapping *mapping.Mapping
	// Set gives fields of the events a value, by their names in JSON with dots: actor.id. An empty
	// value removes the field.
	Set map[string]string
	// Organization and Trail are published to, in place of those of the subject, and replace those
	// of the events.
	Organization string
	Trail        schema.Trail
	// Only, if set, is the organization that may be published to.
	Only string
}

// ErrUnfit means that a letter cannot be published as it is meant to be. Nothing was published.
var ErrUnfit = errors.New("cannot be replayed so")

func unfit(l *Letter, problem, remedy string) error {
	return fmt.Errorf("dead letter %d %w: %s: %s", l.Seq, ErrUnfit, problem, remedy)
}

// Changes reports whether anything about a letter's bytes changes.
func (c *Change) Changes() bool {
	return c.Data != nil || c.Mapping != nil || len(c.Set) > 0 || c.Organization != "" || c.Trail != ""
}

// outgoing is a letter as it is published again.
type outgoing struct {
	subject               string
	contentType, encoding string
	data                  []byte
	changed               bool // it is not what its publisher published
}

// apply makes of a letter what is published. Organization and trail are those of the change; or of
// events that a person has changed; or of the subject. An event as its publisher made it decides
// only if the subject names none: otherwise one organization could plant events in the trail of
// another through a replay.
func (c *Change) apply(l *Letter) (*outgoing, error) {
	out := &outgoing{subject: l.Subject, contentType: l.ContentType, encoding: l.ContentEncoding, data: l.Data, changed: c.Changes()}
	organization, trail, invalid := schema.ParseEventSubject(l.Subject)
	fromEvents := c.Data != nil || c.Mapping != nil || invalid != nil
	if c.Data != nil {
		out.data = c.Data
		if text := bytes.TrimSpace(c.Data); len(text) > 0 && (text[0] == '{' || text[0] == '[') {
			out.encoding = ""
			if l.ContentEncoding != "" || !isJSON(l.ContentType) {
				out.contentType = jsonType(text)
			}
		}
	}
	if c.Mapping != nil {
		if out.encoding != "" {
			return nil, unfit(l, "its bytes are compressed by "+out.encoding, "give the events by --data")
		}
		events, err := c.Mapping.Events(bytes.NewReader(out.data))
		if err == nil {
			out.data, err = appendEvents(nil, events)
		}
		if err != nil {
			return nil, unfit(l, "the mapping fails: "+err.Error(), "correct the mapping, or give the event by --data")
		}
		out.contentType = codec.ContentNDJSON
	}
	set := maps.Clone(c.Set)
	if set == nil {
		set = map[string]string{}
	}
	for field, to := range map[string]string{"organization": c.Organization, "trail": string(c.Trail)} {
		_, given := c.Set[field]
		fromEvents = fromEvents || given
		if to != "" && !given {
			set[field] = to
		}
	}
	var events []map[string]any
	var err error
	if fromEvents || len(set) > 0 {
		events, err = objects(out)
	}
	switch {
	case err == nil && len(set) > 0:
		for _, e := range events {
			for _, field := range slices.Sorted(maps.Keys(set)) {
				if err := assign(e, field, set[field]); err != nil {
					return nil, unfit(l, err.Error(), "correct --set")
				}
			}
		}
		if out.data, err = join(events, out.data); err != nil {
			return nil, err
		}
	case err != nil && len(c.Set) > 0:
		return nil, unfit(l, err.Error(), "give the events by --data")
	}
	if fromEvents && err == nil {
		org, tr, err := placeOf(events)
		if err != nil {
			return nil, unfit(l, err.Error(), "replay it to one organization and trail, or give the events by --data")
		}
		chosen := c.Data != nil || c.Mapping != nil || c.Set["organization"] != "" || c.Organization != ""
		if said := organizationIn(l.Subject); !chosen && said != "" && org != said {
			return nil, unfit(l, fmt.Sprintf("its subject is of organization %q, and its event of %q", said, org), "name the organization by --organization")
		}
		if org != "" {
			organization = org
		}
		if tr != "" {
			trail = tr
		}
	}
	if c.Organization != "" {
		organization = c.Organization
	}
	if c.Trail != "" {
		trail = c.Trail
	}
	if f := schema.CheckOrganization(organization); f != nil {
		return nil, unfit(l, f.Error(), "name the organization by --organization")
	}
	if f := schema.CheckTrail(trail); f != nil {
		return nil, unfit(l, f.Error(), "name the trail by --trail")
	}
	if c.Only != "" && organization != c.Only {
		return nil, unfit(l, fmt.Sprintf("it would go to organization %q", organization), "replay it to "+c.Only)
	}
	if was, wasTrail, err := schema.ParseEventSubject(l.Subject); err != nil || was != organization || wasTrail != trail {
		out.subject, out.changed = schema.EventSubject(organization, trail), true
	}
	return out, nil
}

// organizationIn is the organization in a subject, which need not be valid otherwise; empty if
// there is none.
func organizationIn(subject string) string {
	rest, _ := strings.CutPrefix(subject, schema.SubjectEvents+".")
	organization, _, _ := strings.Cut(rest, ".")
	if schema.CheckOrganization(organization) != nil {
		return ""
	}
	return organization
}

func isJSON(contentType string) bool {
	return contentType == "" || contentType == codec.ContentJSON || contentType == codec.ContentNDJSON || strings.HasPrefix(contentType, "application/cloudevents")
}

// jsonType is the content type of JSON: of one value, or of several in lines.
func jsonType(text []byte) string {
	if json.Valid(text) {
		return codec.ContentJSON
	}
	return codec.ContentNDJSON
}

// objects are the events of JSON that can be changed.
func objects(out *outgoing) ([]map[string]any, error) {
	if out.encoding != "" {
		return nil, fmt.Errorf("its bytes are compressed by %s", out.encoding)
	}
	if !isJSON(out.contentType) {
		return nil, fmt.Errorf("its bytes are %s", out.contentType)
	}
	d := json.NewDecoder(bytes.NewReader(out.data))
	d.UseNumber()
	var events []map[string]any
	add := func(v any) error {
		e, ok := v.(map[string]any)
		if !ok {
			return errors.New("its bytes hold something that is not a JSON object")
		}
		events = append(events, e)
		return nil
	}
	for {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("its bytes are not JSON: %w", err)
		}
		if all, ok := v.([]any); ok {
			for _, one := range all {
				if err := add(one); err != nil {
					return nil, err
				}
			}
		} else if err := add(v); err != nil {
			return nil, err
		}
	}
	if len(events) == 0 {
		return nil, errors.New("its bytes hold no event")
	}
	return events, nil
}

// join writes events in the form that they had.
func join(events []map[string]any, was []byte) ([]byte, error) {
	var out []byte
	array := bytes.HasPrefix(bytes.TrimSpace(was), []byte("["))
	for i, e := range events {
		text, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("write the changed event: %w", err)
		}
		if i > 0 {
			out = append(out, map[bool]byte{true: ',', false: '\n'}[array])
		}
		out = append(out, text...)
	}
	if array {
		out = append(append([]byte{'['}, out...), ']')
	}
	return out, nil
}

// anyJSON are the fields that hold any JSON; all others that can be set hold text.
var anyJSON = []string{"before", "after", "data"}

// assign sets a field of an event, or removes it.
func assign(e map[string]any, field, value string) error {
	first, rest, deeper := strings.Cut(field, ".")
	if first == "" || deeper && rest == "" {
		return fmt.Errorf("field %q is empty", field)
	}
	var v any = value
	if slices.Contains(anyJSON, first) && json.Valid([]byte(value)) {
		d := json.NewDecoder(strings.NewReader(value))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return fmt.Errorf("value of %s: %w", field, err)
		}
	}
	at := e
	path := []string{first}
	if deeper {
		if first == "attributes" { // their names may have dots
			path = append(path, rest)
		} else {
			path = append(path, strings.Split(rest, ".")...)
		}
	}
	for _, name := range path[:len(path)-1] {
		next, ok := at[name].(map[string]any)
		if !ok {
			if at[name] != nil {
				return fmt.Errorf("field %s is not an object, so that %s cannot be set", name, field)
			}
			if value == "" {
				return nil
			}
			next = map[string]any{}
			at[name] = next
		}
		at = next
	}
	name := path[len(path)-1]
	if value == "" {
		delete(at, name)
	} else {
		at[name] = v
	}
	return nil
}

// placeOf is the organization and trail of all events.
func placeOf(events []map[string]any) (organization string, trail schema.Trail, err error) {
	for i, e := range events {
		org, _ := e["organization"].(string)
		tr, _ := e["trail"].(string)
		if i > 0 && (org != organization || tr != string(trail)) {
			return "", "", errors.New("its events are of several organizations or trails")
		}
		organization, trail = org, schema.Trail(tr)
	}
	return organization, trail, nil
}

// appendEvents appends events as lines.
func appendEvents(dst []byte, events []schema.Event) ([]byte, error) {
	for i := range events {
		var err error
		if dst, err = codec.AppendJSON(dst, &events[i]); err != nil {
			return nil, err
		}
		dst = append(dst, '\n')
	}
	return dst, nil
}
