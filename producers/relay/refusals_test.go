package relay

import (
	"testing"
	"time"
)

// The first refusals of a credential in a second are answered at once, and others later, up to a bound.
func TestRefusalsOfOneCredentialAreDelayed(t *testing.T) {
	t.Parallel()
	var r refusals
	now := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	delayed := func(credential string, n int) (count int) {
		for range n {
			if r.often(credential, now) {
				count++
			}
		}
		return count
	}
	if n := delayed("a", refusedAtOnce); n != 0 {
		t.Errorf("%d of the first are delayed", n)
	}
	if n := delayed("a", 5); n != 5 {
		t.Errorf("%d of 5 more are delayed", n)
	}
	if n := delayed("b", refusedAtOnce); n != 0 {
		t.Errorf("%d of another credential are delayed", n)
	}
	if n := delayed("a", 2*mostRefusals); n != mostRefusals-5 || r.waiting.Load() != mostRefusals {
		t.Errorf("%d are delayed and %d wait, want %d", n, r.waiting.Load(), mostRefusals)
	}
	r.waiting.Store(0)
	now = now.Add(time.Second)
	if n := delayed("a", refusedAtOnce); n != 0 {
		t.Errorf("%d of the next second are delayed", n)
	}
}
