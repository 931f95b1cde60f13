package settings_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

func yes() *bool { b := true; return &b }
func no() *bool  { return new(bool) }

// Requirements Z1, Z2: two switches, each turned by itself, with a reason, told to the own trail with before and after;
// what was off before stays known, and of two who switch at once, one is told.
func TestSwitchTrails(t *testing.T) {
	t.Parallel()
	f := open(t)
	s, err := f.ShowTrails(t.Context(), "acme")
	if err != nil || !s.Activity.On || !s.Access.On || s.HIPAA || s.Revision != 0 {
		t.Fatalf("without a decision: %+v, %v", s, err)
	}
	var fault *schema.Fault
	for _, reason := range []string{"", " \t", "two\nlines", strings.Repeat("long", 200)} {
		if _, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: no(), Reason: reason}, settings.Change{By: "ann"}); !errors.As(err, &fault) || fault.Field != "reason" {
			t.Errorf("for reason %q: %v", reason, err)
		}
	}
	if len(f.events) != 0 {
		t.Errorf("what was refused is told: %+v", f.events)
	}
	off, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: no(), Reason: " privacy review "}, settings.Change{By: "ann"})
	if err != nil || off.Access.On || !off.Activity.On || off.Revision == 0 || off.By != "ann" || len(off.Access.Gaps) != 1 || len(off.Activity.Gaps) != 0 {
		t.Fatalf("%+v, %v", off, err)
	}
	if g := off.Access.Gaps[0]; !g.To.IsZero() || g.By != "ann" || g.Reason != "privacy review" || !g.From.Equal(off.Updated.Truncate(time.Microsecond)) {
		t.Errorf("the gap is %+v", g)
	}
	if _, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: yes()}, settings.Change{By: "bob"}); !errors.Is(err, settings.ErrChanged) {
		t.Errorf("who did not see that it was switched: %v", err)
	}
	again, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: no(), Reason: "another"}, settings.Change{By: "bob", Revision: off.Revision})
	if err != nil || again.Revision != off.Revision || len(f.events) != 1 {
		t.Errorf("off again: %+v, %v", again, err)
	}
	on, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: yes(), Activity: no(), Reason: "the other"}, settings.Change{By: "bob", Revision: off.Revision})
	if err != nil || !on.Access.On || on.Activity.On || len(on.Access.Gaps) != 1 {
		t.Fatalf("%+v, %v", on, err)
	}
	if g := on.Access.Gaps[0]; !g.From.Equal(off.Access.Gaps[0].From) || !g.To.Equal(on.Updated.Truncate(time.Microsecond).Add(schema.RecordingDelay)) || g.By != "ann" {
		t.Errorf("the gap is %+v", g)
	}
	if len(f.events) != 2 || f.events[0].Event != "trails.updated" || f.events[0].Actor.ID != "ann" || f.events[0].Description != "privacy review" ||
		string(f.events[0].Before) != `{"hipaa":false,"activity":true,"access":true}` || string(f.events[0].After) != `{"hipaa":false,"activity":true,"access":false}` {
		t.Errorf("told: %+v", f.events)
	}
	if all, err := f.ListTrails(t.Context()); err != nil || len(all) != 1 || all[0].Organization != "acme" {
		t.Errorf("%+v, %v", all, err)
	}
}

// Requirement Z3: while an organization is under HIPAA nothing of it is switched off, and it switches on what was off. The
// system's own trails are never off.
func TestHIPAA(t *testing.T) {
	t.Parallel()
	f := open(t)
	s, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: no(), Reason: "privacy"}, settings.Change{By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{HIPAA: yes()}, settings.Change{By: "ann", Revision: s.Revision}); err != nil || !s.Access.On || !s.HIPAA {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, want := range map[string]settings.SwitchTrails{
		"off":              {Activity: no(), Reason: "why"},
		"off, with a flag": {Activity: no(), HIPAA: yes(), Reason: "why"},
	} {
		if _, err := f.SwitchTrails(t.Context(), "acme", want, settings.Change{By: "ann", Revision: s.Revision}); !errors.Is(err, settings.ErrKeptOn) || !strings.Contains(err.Error(), "HIPAA") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.SwitchTrails(t.Context(), owntrail.Organization, settings.SwitchTrails{Activity: no(), Reason: "why"}, settings.Change{By: "ann"}); !errors.Is(err, settings.ErrKeptOn) {
		t.Errorf("the own trail: %v", err)
	}
	if s, err = f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{HIPAA: no()}, settings.Change{By: "ann", Revision: s.Revision}); err != nil {
		t.Fatal(err)
	}
	if s, err = f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Activity: no(), Reason: "why"}, settings.Change{By: "ann", Revision: s.Revision}); err != nil || s.Activity.On {
		t.Errorf("no more under HIPAA: %+v, %v", s, err)
	}
	f.HIPAA = true // the configuration's
	if _, err := f.SwitchTrails(t.Context(), "globex", settings.SwitchTrails{Activity: no(), Reason: "why"}, settings.Change{By: "ann"}); !errors.Is(err, settings.ErrKeptOn) {
		t.Errorf("by default: %v", err)
	}
	if s, err = f.SwitchTrails(t.Context(), "globex", settings.SwitchTrails{HIPAA: no(), Activity: no(), Reason: "why"}, settings.Change{By: "ann"}); err != nil || s.HIPAA || s.Activity.On {
		t.Errorf("decided otherwise: %+v, %v", s, err)
	}
}

// A switch that somebody turns all the time does not fill the broker: of long ago, the gaps are in the manifests.
func TestSwitchThatIsTurnedAllTheTime(t *testing.T) {
	t.Parallel()
	f := open(t)
	r, err := schema.ParseRecording(nil, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		r.Turns[schema.Access] = append(r.Turns[schema.Access], schema.Turn{On: i%2 == 1, By: "cron", At: time.Now().Add(time.Duration(i) * time.Minute)})
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := f.Trails.Put(t.Context(), "acme", data)
	if err != nil {
		t.Fatal(err)
	}
	want := settings.SwitchTrails{Access: no(), Reason: "why"}
	var fault *schema.Fault
	if _, err := f.SwitchTrails(t.Context(), "acme", want, settings.Change{By: "ann", Revision: revision}); !errors.As(err, &fault) {
		t.Errorf("got %v", err)
	}
	f.Now = func() time.Time { return time.Now().AddDate(0, 3, 0) }
	s, err := f.SwitchTrails(t.Context(), "acme", want, settings.Change{By: "ann", Revision: revision})
	if err != nil || s.Access.On || len(s.Access.Gaps) != 500 {
		t.Errorf("%d gaps, %v", len(s.Access.Gaps), err)
	}
}
