package schema_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Requirement Q7: each field of a filter alone chooses the event that has its value, and not one that differs in it.
func TestFilter(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	e := schema.Event{
		OccurredAt: at, Trail: schema.Activity, Source: "s", Event: "report.published", Action: "create", Outcome: schema.Success,
		Actor: schema.Actor{ID: "u", Name: "Ünal"}, Target: schema.Target{Type: "report", ID: "r"}, AppID: "a", DataType: "d",
		Context: schema.Context{IP: "::1"}, Data: []byte(`{"Path":"/X"}`),
	}
	for name, c := range map[string]struct{ yes, no schema.Filter }{
		"all":     {schema.Filter{}, schema.Filter{Source: "S"}},
		"start":   {schema.Filter{Start: at}, schema.Filter{Start: at.Add(1)}},
		"end":     {schema.Filter{End: at.Add(1)}, schema.Filter{End: at}},
		"trail":   {schema.Filter{Trail: schema.Activity}, schema.Filter{Trail: schema.Access}},
		"event":   {schema.Filter{Event: "report.published"}, schema.Filter{Event: "report"}},
		"action":  {schema.Filter{Action: "create"}, schema.Filter{Action: "Create"}},
		"outcome": {schema.Filter{Outcome: schema.Success}, schema.Filter{Outcome: schema.Denied}},
		"actor":   {schema.Filter{ActorID: "u"}, schema.Filter{ActorID: "v"}},
		"type":    {schema.Filter{TargetType: "report"}, schema.Filter{TargetType: "task"}},
		"target":  {schema.Filter{TargetID: "r"}, schema.Filter{TargetID: "R"}},
		"app":     {schema.Filter{AppID: "a"}, schema.Filter{AppID: "b"}},
		"ip":      {schema.Filter{IP: "::1"}, schema.Filter{IP: "::2"}},
		"data":    {schema.Filter{DataType: "d"}, schema.Filter{DataType: "e"}},
		"text":    {schema.Filter{Text: `"path":"/x`}, schema.Filter{Text: "ü"}},
		"both":    {schema.Filter{ActorID: "u", AppID: "a"}, schema.Filter{ActorID: "u", AppID: "b"}},
	} {
		if !c.yes.Match(&e) || c.no.Match(&e) {
			t.Errorf("%s: %v, %v", name, c.yes.Match(&e), c.no.Match(&e))
		}
	}
	// Each text but Text is a term, so that a database is asked the same.
	texts := 0
	v := reflect.TypeFor[schema.Filter]()
	for i := range v.NumField() {
		if v.Field(i).Type.Kind() == reflect.String {
			texts++
		}
	}
	full := schema.Filter{
		Trail: "x", Source: "x", Event: "x", Action: "x", Outcome: "x", ActorID: "x", TargetType: "x", TargetID: "x", AppID: "x", IP: "x", DataType: "x", Text: "x",
	}
	if n := len(full.Terms()); n != texts-1 {
		t.Errorf("%d terms, %d texts", n, texts)
	}
	for _, f := range []schema.Filter{{Trail: "x"}, {Outcome: "ss fail"}, {Start: at, End: at}} {
		if f.Check() == nil {
			t.Errorf("%+v is taken", f)
		}
	}
}
