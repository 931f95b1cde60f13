package mapping

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

var testNow = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

// apply makes the event of one record.
func apply(m *Mapping, record string) (schema.Event, error) {
	events, err := m.Events(strings.NewReader(record))
	if err != nil || len(events) != 1 {
		return schema.Event{}, err
	}
	return events[0], nil
}

// required has rules for the fields an event must have; more are appended.
const required = `
fields:
  occurred_at: t
  organization: {const: acme}
  trail: {const: access}
  source: {const: s}
  event: {const: e}
  action: {const: a}
`

func mustParse(t testing.TB, more string) *Mapping {
	t.Helper()
	m, err := Parse("test", []byte(required+more))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRules(t *testing.T) {
	t.Parallel()
	const record = `{"t":"2026-11-22T04:05:06Z","a":{"b":["x","Y"]},"n":7,"f":1.50,"yes":true,"nil":null,"empty":"","dot.ted":"d","@at":"at","o":{"k": [1, 2]}}`
	for rule, want := range map[string]string{
		`a.b.0`:      "x",
		`n`:          "7",
		`yes`:        "true",
		`'dot\.ted'`: "d",
		`'\@at'`:     "at",
		`nil`:        "",
		`missing`:    "",
		`{path: [nil, empty, a.b.1], lower: true}`:     "y",
		`{path: [nil, empty, missing], default: dflt}`: "dflt",
		`{const: C}`: "C",
		`{template: '${n}-${a.b.0}-${missing}.'}`: "7-x-.",
		`{template: 'plain'}`:                     "plain",
		`{path: n, match: [{pattern: '^8', value: eight}, {pattern: '^7', value: seven}, {pattern: '.*', value: any}]}`: "seven",
		`{path: n, match: [{pattern: '^8', value: eight}]}`:                                                             "7",
		`{path: missing, match: [{pattern: '.+', value: failure}], default: success}`:                                   "success",
		`{path: n, match: [{pattern: '7', value: ''}], default: none}`:                                                  "none",
		`{const: ABC, lower: true}`: "abc",
	} {
		e, err := apply(mustParse(t, "  description: "+rule+"\n"), record)
		if err != nil || e.Description != want {
			t.Errorf("%s: %q, %v, want %q", rule, e.Description, err, want)
		}
	}
	for rule, want := range map[string]string{
		`'@this'`:                            record,
		`o`:                                  `{"k": [1, 2]}`,
		`f`:                                  `1.50`,
		`nil`:                                ``,
		`a.b.0`:                              `"x"`,
		`{const: "say \"x\""}`:               `"say \"x\""`,
		`{path: [nil, missing], default: d}`: `"d"`,
	} {
		e, err := apply(mustParse(t, "  data: "+rule+"\n"), record)
		if err != nil || string(e.Data) != want {
			t.Errorf("data %s: %s, %v, want %s", rule, e.Data, err, want)
		}
	}
	e, err := apply(mustParse(t, "attributes: {n: n, none: nil, c: {const: x}}\n"), record)
	if diff := gocmp.Diff(map[string]string{"n": "7", "c": "x"}, e.Attributes); err != nil || diff != "" {
		t.Errorf("attributes: %v (-want +got):\n%s", err, diff)
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	second := time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC)
	for _, c := range []struct {
		form, value string
		want        time.Time // zero: refused
	}{
		{"", `"2026-11-22T04:05:06Z"`, second},
		{"rfc3339", `"2026-11-22T13:05:06.123456+09:00"`, second.Add(123456 * time.Microsecond)},
		{"", `"2026-11-22T04:05:06.5"`, time.Time{}},
		{"", `"2026-11-22 04:05:06+0000"`, second},
		{"unix_ns", `1795320306000001999`, second.Add(1999 * time.Nanosecond)},
		{"unix", `1.795320306e9`, second},
		{"unix", `1e999999999`, time.Time{}},
		{"filetime", `134397939060000000`, second},
		{"ticks", `639309171060000000`, second},
		{"Jan _2 15:04:05 MST", `"Nov 22 04:05:06 UTC"`, second},
		{"2006-01-02 15:04:05 MST", `"2026-11-22 13:05:06 JST"`, time.Time{}},
		{"unix", `1795320306`, second},
		{"unix", `"1795320306"`, second},
		{"unix", `1795320306.123457`, second.Add(123457 * time.Microsecond)},
		{"unix_ms", `1795320306001`, second.Add(time.Millisecond)},
		{"unix_us", `1795320306000001`, second.Add(time.Microsecond)},
		{"unix", `0`, time.Unix(0, 0).UTC()},
		{"02/Jan/2006:15:04:05 -0700", `"22/Nov/2026:13:05:06 +0900"`, second},
		{"", `"yesterday"`, time.Time{}},
		{"", `1795320306`, time.Time{}},
		{"unix", `"soon"`, time.Time{}},
		{"unix", `1795320306000001000`, time.Time{}}, // nanoseconds: times a million it wraps around
		{"unix", `1e300`, time.Time{}},
		{"unix", `"NaN"`, time.Time{}},
		{"unix", `"Inf"`, time.Time{}},
	} {
		m, err := Parse("test", []byte(strings.Replace(required, "occurred_at: t", "occurred_at: {path: t, time: '"+cmp.Or(c.form, "rfc3339")+"'}", 1)))
		if err != nil {
			t.Fatal(err)
		}
		e, err := apply(m, `{"t":`+c.value+`}`)
		var fault *schema.Fault
		switch {
		case c.want.IsZero():
			if !errors.As(err, &fault) || fault.Field != "occurred_at" || fault.Remedy == "" {
				t.Errorf("%s %s: %v, %v", c.form, c.value, e.OccurredAt, err)
			}
		case err != nil || e.OccurredAt != c.want:
			t.Errorf("%s %s: %v, %v, want %v", c.form, c.value, e.OccurredAt, err, c.want)
		}
	}
}

func TestForeignIDs(t *testing.T) {
	t.Parallel()
	m := mustParse(t, "  id: id\n")
	for id, want := range map[string]uuid.UUID{
		"6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5f60": uuid.MustParse("6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5f60"),
		"6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5fxx": codec.HashedID("mapping", "s", "6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5fxx"),
		"7":                                    codec.HashedID("mapping", "s", "7"),
		"":                                     uuid.Nil,
	} {
		e, err := apply(m, `{"t":"2026-11-22T04:05:06Z","id":"`+id+`"}`)
		if err != nil || e.ID != want {
			t.Errorf("%q: %s, %v, want %s", id, e.ID, err, want)
		}
	}
}

// Polls that overlap read the same records in other places, and with other bytes.
func TestForeignIDsDependOnSourceAndIDOnly(t *testing.T) {
	t.Parallel()
	m := mustParse(t, "  id: id\n")
	ids := func(mapping *Mapping, lines ...string) (ids []uuid.UUID) {
		for line, err := range Lines(strings.NewReader(strings.Join(lines, "\n")), Options{Mapping: mapping, Now: func() time.Time { return testNow }}) {
			if err != nil || line.Err != nil {
				t.Fatal(err, line.Err)
			}
			ids = append(ids, line.Event.ID)
		}
		return ids
	}
	const at = `{"t":"2026-11-22T04:05:06Z","id":`
	first := ids(m, at+`"a"}`, at+`"b"}`, at+`12}`)
	second := ids(m, at+`"b" , "page": 2}`, at+`"12"}`, at+`"c"}`)
	if first[1] != second[0] || first[2] != second[1] {
		t.Errorf("records have other ids in another batch: %v, %v", first, second)
	}
	all := append(first, second[2])
	other := mustParse(t, "  id: id\n")
	name := "other"
	other.Fields["source"] = Rule{Const: &name}
	all = append(all, ids(other, at+`"a"}`)...)
	for i, id := range all {
		if slices.Contains(all[:i], id) || id.Version() != 8 || id.Variant() != uuid.RFC4122 {
			t.Errorf("id %d of %v", i, all)
		}
	}
	// Equal lines without an id get different ids, made of their places.
	if none := ids(m, at+`null}`, at+`null}`); none[0] == none[1] {
		t.Errorf("two records without an id have the id %s", none[0])
	}
}

func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	for record, want := range map[string]string{
		`{"a":`:                       `record 1: the record (json) is not JSON: correct the record, or the mapping's input`,
		`[7]`:                         `record record 1: the record (json) is not a JSON object: correct the record, or the mapping's input`,
		`"x"`:                         `record 1: the record (json) is not a JSON object: correct the record, or the mapping's input`,
		`{"a":1,"a":2}`:               `record 1: the record (json) has the name "a" twice: rename one, or set input.repeated to list, which keeps both`,
		`{"t":"tomorrow"}`:            `record 1: occurred_at "tomorrow" does not have the form rfc3339: set time in the mapping's rule for occurred_at to its form: rfc3339, unix, unix_ms, unix_us, unix_ns, filetime, ticks or a Go layout`,
		`{"t":"2026-11-22 04:05:06"}`: `record 1: occurred_at "2026-11-22 04:05:06" does not say its time zone: name it in input.zone of the mapping, or by --zone`,
	} {
		_, err := apply(mustParse(t, ""), record)
		if err == nil || err.Error() != want || !errors.Is(err, schema.ErrInvalid) {
			t.Errorf("%s\ngot  %v\nwant %s", record, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`fields: {}`:                                                "fields.occurred_at is missing: every event needs it",
		required + "  colour: x\n":                                  "fields.colour is not a field of an event: use organization, trail, id",
		required + "  attributes: x\n":                              "fields.attributes is not a field of an event",
		required + "  app_id: {path: a, const: b}\n":                "fields.app_id has 2 of path, const, template and choose: give one",
		required + "  app_id: {default: b}\n":                       "fields.app_id has 0 of path, const, template and choose: give one",
		required + "  app_id: {path: a, match: [{pattern: '('}]}\n": `pattern "(": error parsing regexp`,
		required + "  app_id: {path: [a, [b]]}\n":                   "[b] is not a text",
		required + "  app_id: {path: 7}\n":                          "7: give a text or a list of texts",
		required + "attributes: {x: {}}\n":                          "attributes.x has 0 of path, const, template and choose",
		"input: {records: $v}" + required:                           `input.records: "$v" is not a path in a document`,
		"input: {only: [{$v: x}]}" + required:                       `input: there is no value "v": define it under values`,
		"input: {each: $v}" + required:                              `input: there is no value "v": define it under values`,
		required + "values: {a: $b, b: $a}\n":                       `values.a: the value "b" uses itself`,
		required + "  app_id: $v\n":                                 `fields.app_id: there is no value "v"`,
		required + "  app_id: {path: a, lookup: t}\n":               `fields.app_id.lookup: there is no table "t"`,
		required + "  app_id: {path: a, time: unix}\n":              "fields.app_id.time and zone belong to occurred_at",
		"input: {format: xml}" + required:                           `input.format "xml" is unknown`,
		"input: {columns: [a]}" + required:                          `input.columns does not belong to format ""`,
		required + "colour: x\n":                                    `unknown field "colour"`,
		"fields: [":                                                 "test",
	} {
		m, err := Parse("test", []byte(text))
		if !errors.Is(err, ErrInvalid) || m != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
	if _, err := Load("nowhere"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "auditd, cloudtrail") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(required), []byte(`{"t":"2026-11-22T04:05:06Z"}`))
	f.Add([]byte(required+"  data: '@this'\n  app_id: {template: '${a'}\nattributes: {x: {path: [a, b], match: [{pattern: '.', value: y}]}}\n"), []byte(`{"a":{}}`))
	for _, name := range Builtin() {
		text, _ := builtin.ReadFile("builtin/" + name + "/mapping.yaml")
		f.Add(text, []byte(`{"eventTime":"2026-11-22T04:05:06Z","EventID":1,"TimeCreated":"x"}`))
	}
	f.Fuzz(func(t *testing.T, text, record []byte) {
		m, err := Parse("fuzz", text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is no ErrInvalid", err)
			}
			return
		}
		for line, err := range Lines(bytes.NewReader(record), Options{Mapping: m, Explain: true}) {
			if err == nil && line.Err != nil && !errors.Is(line.Err, schema.ErrInvalid) {
				t.Errorf("%v, %v is not a fault", err, line.Err)
			}
		}
	})
}
