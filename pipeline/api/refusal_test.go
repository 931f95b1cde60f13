package api

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Refusals of one network are answered at once up to a rate, and later beyond it. So many wait at most.
func TestRefusalsAreDelayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRefusals(time.Now)
		took := func(ctx context.Context) time.Duration {
			began := time.Now()
			r.wait(ctx)
			return time.Since(began)
		}
		for n := range 10 * refusalsPerSecond {
			if d := took(t.Context()); d != 0 {
				t.Fatalf("refusal %d waited %s", n, d)
			}
		}
		if d := took(t.Context()); d != refusalDelay {
			t.Errorf("one too many waited %s", d)
		}
		for range 10 * refusalsPerSecond { // what the time since then allows, and more
			go took(t.Context())
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if d := took(gone); d != 0 {
			t.Errorf("the refusal of a client that has gone waited %s", d)
		}
		for range 2 * refusalsWaiting {
			go took(t.Context())
		}
		synctest.Wait()
		if n := len(r.waiting); n != refusalsWaiting {
			t.Errorf("%d wait, want %d", n, refusalsWaiting)
		}
		if d := took(t.Context()); d != 0 {
			t.Errorf("beyond those that may wait, one waited %s", d)
		}
		time.Sleep(2 * refusalDelay)
		synctest.Wait()
		if n := len(r.waiting); n != 0 {
			t.Errorf("%d wait for ever", n)
		}
	})
}
