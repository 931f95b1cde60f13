// Package turns shares a bounded resource between groups, such as organizations. It owns the order in which they get it, and
// knows nothing of what is done with it.
package turns

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
// group waits for its own, and not behind all that another group has asked for. Turns of one group go in the order in which they were
// asked for. It is safe for concurrent use.
type Turns struct {
	each, all, queue int

	mu      sync.Mutex
	groups  map[string]*group
	waiting []*group // groups in which something waits; the one that has waited longest is first
	total   int
}

type group struct {
	name    string
	running int
	waiting []chan struct{} // closed when it is its turn
}

// New returns turns of which each run at once in each group and all in all, and queue of each group wait.
func New(each, all, queue int) *Turns {
	return &Turns{each: each, all: all, queue: queue, groups: map[string]*group{}}
}

// Take waits for a turn. The caller calls release when it is over.
func (t *Turns) Take(ctx context.Context, name string) (release func(), err error) {
	t.mu.Lock()
	g := t.groups[name]
	if g == nil {
		g = &group{name: name}
		t.groups[name] = g
	}
	if len(g.waiting) >= t.queue {
		t.mu.Unlock()
		return nil, ErrWaiting
	}
	begin := make(chan struct{})
	if len(g.waiting) == 0 {
		t.waiting = append(t.waiting, g)
	}
	g.waiting = append(g.waiting, begin)
	t.next()
	t.mu.Unlock()
	select {
	case <-begin:
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		if at := slices.Index(g.waiting, begin); at >= 0 {
			g.waiting = slices.Delete(g.waiting, at, at+1)
			if len(g.waiting) == 0 {
				t.waiting = slices.DeleteFunc(t.waiting, func(w *group) bool { return w == g })
			}
			t.forget(g)
		} else {
			t.end(g) // its turn came meanwhile
		}
		return nil, fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
	}
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.end(g)
	}), nil
}

func (t *Turns) end(g *group) {
	g.running--
	t.total--
	t.next()
	t.forget(g)
}

// next gives turns to those who wait. The caller holds mu.
func (t *Turns) next() {
	for t.total < t.all {
		best := -1
		for at, g := range t.waiting {
			if g.running < t.each && (best < 0 || g.running < t.waiting[best].running) {
				best = at
			}
			if best >= 0 && t.waiting[best].running == 0 {
				break
			}
		}
		if best < 0 {
			return
		}
		g := t.waiting[best]
		t.waiting = slices.Delete(t.waiting, best, best+1)
		close(g.waiting[0])
		g.waiting = g.waiting[1:]
		g.running++
		t.total++
		if len(g.waiting) > 0 {
			t.waiting = append(t.waiting, g)
		}
	}
}

// forget drops a group in which nothing runs or waits. The caller holds mu.
func (t *Turns) forget(g *group) {
	if g.running == 0 && len(g.waiting) == 0 {
		delete(t.groups, g.name)
	}
}
