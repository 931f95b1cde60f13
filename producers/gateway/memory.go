package gateway

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// memory bounds what requests hold in all, and each client's share of it.
type memory struct {
	all       *semaphore.Weighted
	perClient int64

	mu      sync.Mutex
	clients map[string]int64
}

func newMemory(all, perClient int64) *memory {
	return &memory{all: semaphore.NewWeighted(all), perClient: perClient, clients: map[string]int64{}}
}

// patience is how long a request waits for memory before it has any.
const patience = 2 * time.Second

// lease is what one request holds of the memory.
type lease struct {
	m      *memory
	client string
	held   int64
}

// take makes the lease hold n bytes at least. Only a lease that holds nothing waits for others to give theirs
// back: those that hold something and wait could wait for each other.
func (l *lease) take(ctx context.Context, n int64) error {
	more := n - l.held
	if more <= 0 {
		return nil
	}
	if !l.share(more) {
		return errClientBusy
	}
	ok := l.m.all.TryAcquire(more)
	if !ok && l.held == 0 {
		ctx, cancel := context.WithTimeout(ctx, patience)
		ok = l.m.all.Acquire(ctx, more) == nil
		cancel()
	}
	if !ok {
		l.share(-more)
		return errBusy
	}
	l.held += more
	return nil
}

// share takes n bytes of the client's share, if they are there, or gives them back.
func (l *lease) share(n int64) bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	now := l.m.clients[l.client] + n
	switch {
	case n > 0 && now > l.m.perClient:
		return false
	case now == 0:
		delete(l.m.clients, l.client)
	default:
		l.m.clients[l.client] = now
	}
	return true
}

// keep gives back all but n bytes.
func (l *lease) keep(n int64) {
	if n >= l.held {
		return
	}
	l.share(n - l.held)
	l.m.all.Release(l.held - n)
	l.held = n
}
