package schema_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// property is what the test reads of a JSON Schema.
type property struct {
	Type                 any                 `json:"type"`
	AdditionalProperties any                 `json:"additionalProperties"`
	Required             []string            `json:"required"`
	Properties           map[string]property `json:"properties"`
	MinLength            int                 `json:"minLength"`
	MaxLength            int                 `json:"maxLength"`
	MaxProperties        int                 `json:"maxProperties"`
	PropertyNames        *property           `json:"propertyNames"`
	Enum                 []any               `json:"enum"`
}

// The schema is written by hand, for the sake of its descriptions. This holds it to the table of fields,
// to their limits and to the Go type.
func TestJSONSchemaHasTheFieldsAndLimits(t *testing.T) {
	t.Parallel()
	var root property
	if err := json.Unmarshal(schema.JSONSchema, &root); err != nil {
		t.Fatal(err)
	}
	have := map[string]property{}
	var walk func(prefix string, p property)
	walk = func(prefix string, p property) {
		if p.AdditionalProperties != false {
			t.Errorf("%q takes properties it does not know", prefix)
		}
		for name, child := range p.Properties {
			if len(child.Properties) > 0 {
				walk(prefix+name+".", child)
				continue
			}
			have[prefix+name] = child
		}
	}
	walk("", root)
	want := []string{"organization", "trail"}
	required := []string{"organization", "trail"}
	for i := range schema.Fields {
		f := &schema.Fields[i]
		want = append(want, f.Name)
		if f.Required {
			required = append(required, f.Name)
		}
		p, ok := have[f.Name]
		switch {
		case !ok:
			t.Errorf("%s is not in the schema", f.Name)
		case f.Kind == schema.KindText && f.Name != "outcome" && p.MaxLength != f.MaxBytes:
			t.Errorf("%s: maxLength %d, want %d", f.Name, p.MaxLength, f.MaxBytes)
		case f.Kind == schema.KindText && (p.MinLength == 1) != f.Required:
			t.Errorf("%s: minLength %d", f.Name, p.MinLength)
		case f.Kind == schema.KindJSON && (p.Type != nil || p.Enum != nil):
			t.Errorf("%s takes %v only", f.Name, p.Type)
		case f.Kind == schema.KindMap && (p.MaxProperties != schema.MaxAttributes || p.PropertyNames.MaxLength != schema.MaxAttributeKey ||
			p.AdditionalProperties.(map[string]any)["maxLength"] != float64(schema.MaxAttributeValue)):
			t.Errorf("%s: limits differ: %+v", f.Name, p)
		}
	}
	var names []string
	for name := range have {
		names = append(names, name)
	}
	same := func(what string, a, b []string) {
		slices.Sort(a)
		slices.Sort(b)
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	same("fields of the schema and of schema.Fields", want, names)
	same("required", required, root.Required)
	same("fields of the Go type and of the schema", jsonNames(reflect.TypeFor[schema.Event](), ""), names)
}

// jsonNames lists the leaves of a struct by their names in JSON.
func jsonNames(t reflect.Type, prefix string) (names []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch f.Type {
		case reflect.TypeFor[schema.Actor](), reflect.TypeFor[schema.Target](), reflect.TypeFor[schema.Context]():
			names = append(names, jsonNames(f.Type, name+".")...)
		default:
			names = append(names, prefix+name)
		}
	}
	return names
}

func compile(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema.JSONSchema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("event.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("event.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func TestJSONSchemaAgreesOnEventsOfGo(t *testing.T) {
	t.Parallel()
	compiled := compile(t)
	check := func(name string, e *schema.Event, want bool) {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := compiled.Validate(doc); (err == nil) != want {
			t.Errorf("%s: the JSON Schema says %v", name, err)
		}
	}
	e := validEvent()
	check("a valid event", &e, true)
	for _, c := range bad {
		if c.inJSON {
			e := validEvent()
			c.spoil(&e)
			check(c.name, &e, false)
		}
	}
}

// What arrives is text, in which more can be wrong than in a Go value.
func TestJSONSchemaAgreesOnTexts(t *testing.T) {
	t.Parallel()
	compiled := compile(t)
	const base = `"organization":"acme","trail":"access","source":"s","event":"e","action":"a"`
	with := func(rest string) string { return `{"occurred_at":"2026-11-22T04:05:06Z",` + base + rest + `}` }
	at := func(when string) string { return `{"occurred_at":` + when + `,` + base + `}` }
	for text, want := range map[string]bool{
		with(``):                                true,
		`{}`:                                    false,
		`[]`:                                    false,
		`"event"`:                               false,
		`null`:                                  false,
		with(`,"unknown":1`):                    false,
		with(`,"Description":""`):               false,
		with(`,"actor":{"id":"u","email":"x"}`): false,
		with(`,"actor":{"ID":"u"}`):             false,
		with(`,"actor":{"id":1}`):               false,
		with(`,"actor":{}`):                     true,
		with(`,"actor":null`):                   true,
		with(`,"actor":[]`):                     false,
		with(`,"context":{"ip":null}`):          true,
		with(`,"description":null`):             true,
		with(`,"description":""`):               true,
		with(`,"description":7`):                false,
		with(`,"outcome":""`):                   true,
		with(`,"outcome":null`):                 true,
		with(`,"outcome":"denied"`):             true,
		with(`,"outcome":"Denied"`):             false,
		with(`,"before":null,"after":[1,{}],"data":1e3`):              true,
		with(`,"attributes":{"a":"b"}`):                               true,
		with(`,"attributes":{"a":1}`):                                 false,
		with(`,"attributes":{"":"b"}`):                                false,
		with(`,"attributes":null`):                                    true,
		with(`,"id":null`):                                            true,
		with(`,"id":""`):                                              false,
		with(`,"id":"0193500b-7c00-7abc-8def-0123456789ab"`):          true,
		with(`,"id":"0193500B-7C00-7ABC-8DEF-0123456789AB"`):          true,
		with(`,"id":"{0193500b-7c00-7abc-8def-0123456789ab}"`):        true,
		with(`,"id":"x0193500b-7c00-7abc-8def-0123456789abx"`):        false,
		with(`,"id":"urn:uuid:0193500b-7c00-7abc-8def-0123456789ab"`): true,
		with(`,"id":"0193500b7c007abc8def0123456789ab"`):              true,
		with(`,"id":"0193500b-7c00-7abc-8def-0123456789ag"`):          false,
		with(`,"id":7`): false,
		`{"occurred_at":"2026-11-22T04:05:06Z","organization":null,"trail":"access","source":"s","event":"e","action":"a"}`: false,
		at(`"2026-11-22T13:05:06.123456789+09:00"`): true,
		at(`"2026-11-22T04:05:06"`):                 false,
		at(`"2026-11-22 04:05:06Z"`):                false,
		at(`"2026-11-22t04:05:06z"`):                false,
		at(`"2026-11-22T04:05:06,5Z"`):              false,
		at(`"2026-11-22T4:05:06Z"`):                 false,
		at(`"2026-11-31T04:05:06Z"`):                false,
		at(`"2016-12-31T23:59:60Z"`):                false,
		at(`"2026-11-22T24:00:00Z"`):                false,
		at(`"2026-11-22T04:05:06+25:00"`):           false,
		at(`1763784306`):                            false,
		at(`null`):                                  false,
	} {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		e, err := codec.ParseEvent([]byte(text))
		if err == nil {
			err = e.Validate(now)
		}
		if (err == nil) != want {
			t.Errorf("%s\nGo says %v", text, err)
		}
		if err := compiled.Validate(doc); (err == nil) != want {
			t.Errorf("%s\nthe JSON Schema says %v", text, err)
		}
	}
}
