package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// refusedAtOnce is how many messages of one credential are refused at once in a second. The answers to others come after refusalDelay: a
	// publisher that waits for its answers and ignores what they say would otherwise keep the relay busy.
	refusedAtOnce = 10
	refusalDelay  = time.Second
	// mostRefusals bounds the answers that wait.
	mostRefusals = 4096
)

// refusals counts the messages that were refused, by credential.
type refusals struct {
	waiting atomic.Int64

	mu    sync.Mutex
	since time.Time
	of    map[string]int
}

// often counts a refusal, and tells whether its answer is to wait. If so, it counts in waiting until it does not wait any more.
func (r *refusals) often(credential string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= time.Second {
		r.since, r.of = now, map[string]int{}
	}
	r.of[credential]++
	if r.of[credential] <= refusedAtOnce {
		return false
	}
	if r.waiting.Add(1) > mostRefusals {
		r.waiting.Add(-1)
		return false
	}
	return true
}
