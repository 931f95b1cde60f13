package store

import (
	"slices"
	"testing"
	"time"
)

// What a search goes through is all of time, each instant once, the nearest first.
func TestWidening(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	for _, span := range []time.Duration{time.Microsecond, time.Minute, 365 * 24 * time.Hour, 30 * 365 * 24 * time.Hour} {
		for _, newest := range []bool{true, false} {
			near := stretch{from: noon.Add(-span), to: noon}
			all := near.widening(newest)
			first := all[0]
			if newest {
				slices.Reverse(all) // so that they are in the order of time
			}
			if newest && first.from != near.from || !newest && first.to != near.to {
				t.Errorf("%s, newest %t: begins with %v", span, newest, first)
			}
			if !all[0].from.IsZero() || !all[len(all)-1].to.IsZero() {
				t.Errorf("%s, newest %t: %v is not all of time", span, newest, all)
			}
			for i := range all[1:] {
				if all[i].to != all[i+1].from || all[i].to.IsZero() || i > 0 && !all[i].from.Before(all[i].to) {
					t.Errorf("%s, newest %t: %v and %v do not meet", span, newest, all[i], all[i+1])
				}
			}
			if far := noon.AddDate(-200, 0, 0); len(all) < 2 || !all[0].to.After(far) { // what ClickHouse's times reach
				t.Errorf("%s, newest %t: %v", span, newest, all)
			}
		}
	}
}
