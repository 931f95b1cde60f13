package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kansa-audit/kansa/pipeline/rate"
)

// purpose is what a request is for. Requests of one purpose wait for each other; they cannot take
// the slots that are reserved for others.
type purpose int

const (
	forInsert purpose = iota // the owner's inserts with data: all slots
	forOwner                 // other statements of the owner: all but the reserve of inserts
	forReads                 // the owner's reads on behalf of people, marked by PurposeHeader: five eighths
	forReader                // readers: a fifth
	purposes
)

var purposeNames = [purposes]string{"insert", "system", "read", "reader"}

// PurposeHeader marks a request of the owner as one on behalf of people, with the value
// PurposeRead. Such requests share a part of the slots and a short write deadline, so that clients
// that do not read cannot hold up inserts.
const (
	PurposeHeader = "X-Kansa-Purpose"
	PurposeRead   = "read"
)

// slots bound how many requests the engine works on. Each purpose has a bound of its own and takes
// from all bounds before it as well, so a purpose that is full leaves room for those before it.
type slots struct {
	bounds  [purposes]chan struct{}
	waiting [purposes]atomic.Int64
	used    [purposes]atomic.Int64
}

func newSlots(n int) *slots {
	s := &slots{}
	for p, size := range [purposes]int{n, n - n/4, n * 5 / 8, n / 5} {
		s.bounds[p] = make(chan struct{}, max(size, 1))
	}
	return s
}

// take waits for a slot. The caller calls release once.
func (s *slots) take(ctx context.Context, p purpose) (release func(), err error) {
	s.waiting[p].Add(1)
	defer s.waiting[p].Add(-1)
	for at := p; at >= 0; at-- {
		select {
		case s.bounds[at] <- struct{}{}:
		case <-ctx.Done():
			for held := at + 1; held <= p; held++ {
				<-s.bounds[held]
			}
			return nil, context.Cause(ctx)
		}
	}
	s.used[p].Add(1)
	return func() {
		s.used[p].Add(-1)
		for at := range p + 1 {
			<-s.bounds[at]
		}
	}, nil
}

// SlotUse is how many slots a purpose uses and how many requests wait for one.
type SlotUse struct {
	Purpose string `json:"purpose"`
	Size    int    `json:"size"`
	Used    int64  `json:"used"`
	Waiting int64  `json:"waiting"`
}

func (s *slots) use() []SlotUse {
	all := make([]SlotUse, purposes)
	for p := range purposes {
		all[p] = SlotUse{purposeNames[p], cap(s.bounds[p]), s.used[p].Load(), s.waiting[p].Load()}
	}
	return all
}

const (
	// readerWait is how long a reader's query waits for its turn before it is refused.
	readerWait = 10 * time.Second
	// readerQueue is how many queries of one reader may wait for each that may run.
	readerQueue = 8
)

// turns bound what readers run at once and how often they ask. It is safe for concurrent use.
type turns struct {
	mu     sync.Mutex
	bounds map[string]*bound
	rates  map[int]*rate.Limiter
}

type bound struct {
	running, limit int
	waiting        int
	changed        chan struct{} // closed when one has ended
}

func (t *turns) rate(perMinute int) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rates == nil {
		t.rates = map[int]*rate.Limiter{}
	}
	if t.rates[perMinute] == nil {
		t.rates[perMinute] = rate.New(perMinute, time.Minute, perMinute, time.Now)
	}
	return t.rates[perMinute]
}

// busyf is answered by 429 with Retry-After.
func busyf(code int, after time.Duration, format string, args ...any) *exception {
	e := exceptionf(code, format, args...)
	e.retryAfter = max(after, time.Second)
	return e
}

// take waits for the turn of a reader's query. The caller calls release once.
func (t *turns) take(ctx context.Context, r *Reader) (release func(), err error) {
	if wait, _ := t.rate(r.Limits.QueriesPerMinute).Take(r.ID); wait > 0 {
		return nil, busyf(codeQuotaExceeded, wait, "Quota for user %s has been exceeded: %d queries per minute (QUOTA_EXCEEDED)", quoteString(r.Username), r.Limits.QueriesPerMinute)
	}
	one, err := t.enter(ctx, "reader "+r.ID, r.Limits.Queries, "of user "+r.Username)
	if err != nil {
		return nil, err
	}
	all, err := t.enter(ctx, "group "+r.Group, r.Limits.GroupQueries, "of the organization of user "+r.Username)
	if err != nil {
		one()
		return nil, err
	}
	return func() { all(); one() }, nil
}

func (t *turns) enter(ctx context.Context, key string, limit int, whose string) (leave func(), err error) {
	if limit <= 0 {
		return func() {}, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bounds == nil {
		t.bounds = map[string]*bound{}
	}
	b := t.bounds[key]
	if b == nil {
		b = &bound{changed: make(chan struct{})}
		t.bounds[key] = b
	}
	b.limit = limit
	if b.running >= b.limit && b.waiting >= readerQueue*b.limit {
		return nil, tooMany(limit, whose)
	}
	b.waiting++
	defer func() { b.waiting--; t.forget(key, b) }()
	for b.running >= b.limit {
		changed := b.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("wait for a turn %s: %w", whose, context.Cause(ctx))
		}
	}
	b.running++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		b.running--
		close(b.changed)
		b.changed = make(chan struct{})
		t.forget(key, b)
	}, nil
}

// forget drops a bound that nothing uses. The caller holds mu.
func (t *turns) forget(key string, b *bound) {
	if b.running == 0 && b.waiting == 0 && t.bounds[key] == b {
		delete(t.bounds, key)
	}
}

func tooMany(limit int, whose string) *exception {
	return busyf(codeTooManyQueries, readerWait, "Too many simultaneous queries %s: %d run at once (TOO_MANY_SIMULTANEOUS_QUERIES)", whose, limit)
}
