package pipeline

import (
	"testing"
	"time"
)

// While the writer is behind, organizations with more than their share of what waits are refused, and others are not.
func TestBacklogRefusesWhoCausedIt(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	b := newBacklog(time.Second, func() time.Time { return now })
	floor := uint64(0)
	second := func(lag time.Duration, published map[string]int) {
		for name, n := range published {
			b.count(name, n)
		}
		floor++
		b.observe(lag, floor)
		now = now.Add(time.Second)
	}
	refused := func(want ...string) {
		t.Helper()
		for _, name := range []string{"loud", "large", "quiet", "new"} {
			is, should := b.refuses(name), false
			for _, w := range want {
				should = should || w == name
			}
			if is != should {
				t.Errorf("%s is refused: %t, want %t", name, is, should)
			}
		}
	}
	second(0, map[string]int{"loud": 100 << 20})
	refused()
	second(5*time.Second, map[string]int{"loud": 100 << 20})
	refused() // it is alone: it delays its own events only
	second(5*time.Second, map[string]int{"loud": 100 << 20, "quiet": 1000})
	refused("loud")
	second(5*time.Second, map[string]int{"large": 200 << 20})
	refused("loud", "large")
	second(500*time.Millisecond, map[string]int{"loud": 100 << 20})
	refused()
	// An hour later, the past does not count.
	now = now.Add(time.Hour)
	second(5*time.Second, map[string]int{"loud": 1000, "quiet": 1001})
	refused("quiet")
	// While the writer stores nothing, none are refused: it would make no event arrive sooner.
	b.count("loud", 100<<20)
	now = now.Add(2 * backlogStuck)
	b.observe(time.Minute, floor)
	refused()
}
