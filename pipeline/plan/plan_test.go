package plan_test

import (
	"math"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/plan"
)

const years = 2 * 365 * 24 * time.Hour

func line(t *testing.T, p *plan.Plan, part string) plan.Line {
	t.Helper()
	for _, l := range p.Lines {
		if l.Part == part {
			return l
		}
	}
	t.Fatalf("the plan says nothing of %s", part)
	return plan.Line{}
}

func TestTenMillionEventsASecond(t *testing.T) {
	t.Parallel()
	p, err := plan.For(plan.Question{EventsPerSecond: 10e6, Retention: years})
	if err != nil {
		t.Fatal(err)
	}
	for part, want := range map[string]float64{
		"streams": 7, "shards of each stream": 12, "servers of NATS": 21, "shards of ClickHouse": 7,
		"cores for NATS": 33.6, "cores for writers": 27.4, "cores for ClickHouse": 64, "disk for ClickHouse": 10e6 * 86400 * 730 * 90 / 1e12,
	} {
		if got := line(t, p, part).Number; math.Abs(got-want) > want/1000 {
			t.Errorf("%s: %g, want %g", part, got, want)
		}
	}
	if len(p.Caveats) != 3 {
		t.Errorf("caveats: %q", p.Caveats)
	}
}

// Twice the events, or events of twice the size, take twice as much.
func TestPlansGrowWithTheirLoad(t *testing.T) {
	t.Parallel()
	one, err := plan.For(plan.Question{EventsPerSecond: 1e6, Retention: years})
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]plan.Question{
		"events": {EventsPerSecond: 2e6, Retention: years}, "size": {EventsPerSecond: 1e6, Retention: years, BytesPerEvent: 2 * plan.EventBytes.Value},
	} {
		two, err := plan.For(q)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"cores for NATS", "cores for gateways", "cores for writers", "cores for ClickHouse", "cores for rollups", "disk for NATS", "disk for ClickHouse"} {
			if a, b := line(t, one, part).Number, line(t, two, part).Number; math.Abs(b-2*a) > a/1000 {
				t.Errorf("twice the %s: %s %g and %g", name, part, a, b)
			}
		}
	}
	// What one machine does needs no cluster.
	small, err := plan.For(plan.Question{EventsPerSecond: 1000, Retention: years})
	if err != nil {
		t.Fatal(err)
	}
	if n := line(t, small, "servers of NATS").Number; n != 1 {
		t.Errorf("1,000 events a second take %g servers", n)
	}
	for _, q := range []plan.Question{{}, {EventsPerSecond: 1}, {EventsPerSecond: -1, Retention: years}, {EventsPerSecond: math.Inf(1), Retention: years}, {EventsPerSecond: 1, Retention: years, BytesPerEvent: -1}} {
		if _, err := plan.For(q); err == nil {
			t.Errorf("%+v has a plan", q)
		}
	}
}
