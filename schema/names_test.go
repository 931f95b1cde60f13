package schema_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

func TestEventSubjects(t *testing.T) {
	t.Parallel()
	for _, org := range []string{"a", "Acme_2-x", strings.Repeat("o", 64)} {
		for _, trail := range schema.Trails {
			gotOrg, gotTrail, err := schema.ParseEventSubject(schema.EventSubject(org, trail))
			if err != nil || gotOrg != org || gotTrail != trail {
				t.Errorf("%s, %s: got %q, %q, %v", org, trail, gotOrg, gotTrail, err)
			}
			gotOrg, gotTrail, err = schema.ParseEventSubject(schema.SlotSubject(org, trail, schema.Slots-1))
			if err != nil || gotOrg != org || gotTrail != trail {
				t.Errorf("%s, %s, in a slot: got %q, %q, %v", org, trail, gotOrg, gotTrail, err)
			}
			gotOrg, gotTrail, err = schema.ParseEventSubject(schema.BulkSubject(org, trail, schema.Slots-1))
			if err != nil || gotOrg != org || gotTrail != trail {
				t.Errorf("%s, %s, in the bulk lane: got %q, %q, %v", org, trail, gotOrg, gotTrail, err)
			}
		}
	}
	for _, subject := range []string{
		"", "audit", "audit.events", "audit.events.", "audit.events.acme", "audit.events..activity", "audit.events.acme.",
		"audit.events.acme.Activity", "audit.events.acme.activity.x", "audit.events.acme.activity.60", "audit.events.acme.activity.-1", "audit.events.acme.activity.1.2", "audit.events.acme.activity.bulk", "audit.events.acme.activity.bulk.60", "audit.events.acme.activity.bulk.bulk.1", "audit.events.acme.activity.", "audit.events.a b.activity", "audit.events.*.activity",
		"audit.events.acme.>", "audit.event.acme.activity", "Audit.events.acme.activity", "audit.eventsacme.activity",
		"audit.events." + strings.Repeat("o", 65) + ".activity", "audit.deadletter.acme.activity",
	} {
		org, trail, err := schema.ParseEventSubject(subject)
		var fault *schema.Fault
		if !errors.As(err, &fault) || !errors.Is(err, schema.ErrInvalid) || org != "" || trail != "" {
			t.Errorf("%q: got %q, %q, %v", subject, org, trail, err)
		}
	}
}

func TestPartitionPaths(t *testing.T) {
	t.Parallel()
	hour := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	p := schema.Partition{Organization: "acme", Trail: schema.Access, Hour: hour.In(time.FixedZone("JST", 9*3600)), Length: time.Hour}
	if got, want := p.Path(), "acme/access/2026/11/22/04"; got != want || p.String() != want {
		t.Errorf("path %q, want %q", got, want)
	}
	if got, want := p.CSVKey(), "acme/access/2026/11/22/04.csv.gz"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := p.ManifestKey(), "acme/access/2026/11/22/04.manifest"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := p.End(), hour.Add(time.Hour); !got.Equal(want) {
		t.Errorf("end %v, want %v", got, want)
	}
	// Hours of seconds, as in tests and the demo, need the minute and the second to differ.
	seen := map[string]bool{}
	for i := range 100 {
		p := schema.Partition{Organization: "acme", Trail: schema.Access, Hour: hour.Add(time.Duration(i) * 5 * time.Second), Length: 5 * time.Second}
		if seen[p.Path()] {
			t.Fatalf("%s twice", p)
		}
		seen[p.Path()] = true
	}
	if !seen["acme/access/2026/11/22/04-05-30"] && !seen["acme/access/2026/11/22/04-05-10"] {
		t.Errorf("paths: %v", seen)
	}
}
