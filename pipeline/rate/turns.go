package rate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrWaiting means that too many of a group wait for their turn.
var ErrWaiting = errors.New("too many wait for their turn")

// Turns bounds how many run at once: of a group, and in all. The others wait. The next turn goes to the group that runs the fewest, so a
// group waits for its own, and not behind all that another group has asked for. It is safe for concurrent use.
type Turns struct {
	group, all, queue int

	mu      sync.Mutex
	running map[string]int // by group
	total   int
	waiting []*turn // in the order in which they came
	queued  map[string]int
}

type turn struct {
	group string
	begin chan struct{} // closed when it is its turn
}

// NewTurns returns turns of which group run at once in each group and all in all, and queue of each group wait.
func NewTurns(group, all, queue int) *Turns {
	return &Turns{group: group, all: all, queue: queue, running: map[string]int{}, queued: map[string]int{}}
}

// Take waits for a turn. The caller calls release when it is over.
func (t *Turns) Take(ctx context.Context, group string) (release func(), err error) {
	t.mu.Lock()
	if t.queued[group] >= t.queue {
		t.mu.Unlock()
		return nil, ErrWaiting
	}
	one := &turn{group, make(chan struct{})}
	t.waiting = append(t.waiting, one)
	t.queued[group]++
	t.next()
	t.mu.Unlock()
	select {
	case <-one.begin:
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		if at := slices.Index(t.waiting, one); at >= 0 {
			t.drop(at)
		} else {
			t.end(group) // its turn came meanwhile
		}
		return nil, fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
	}
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.end(group)
	}), nil
}

func (t *Turns) drop(at int) {
	less(t.queued, t.waiting[at].group)
	t.waiting = slices.Delete(t.waiting, at, at+1)
}

func (t *Turns) end(group string) {
	less(t.running, group)
	t.total--
	t.next()
}

// next gives turns to those who wait. The caller holds mu.
func (t *Turns) next() {
	for t.total < t.all {
		best := -1
		for at, one := range t.waiting {
			n := t.running[one.group]
			if n < t.group && (best < 0 || n < t.running[t.waiting[best].group]) {
				best = at
			}
		}
		if best < 0 {
			return
		}
		one := t.waiting[best]
		t.drop(best)
		t.running[one.group]++
		t.total++
		close(one.begin)
	}
}
