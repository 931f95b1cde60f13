// Package rate bounds how often each of many may do something: a key, a person, an address.
//
// It counts, and knows nothing of what is done.
package rate

import (
	"net/netip"
	"sync"
	"time"
)

// Limiter lets each of many do something so often and no more. It keeps one time for each: when all that was done would
// have been due, were it done evenly (GCRA).
type Limiter struct {
	every time.Duration // 0: no bound
	ahead time.Duration // how far ahead of its time somebody may be
	now   func() time.Time

	mu    sync.Mutex
	of    map[string]*pace
	sweep int // forget those who are not ahead when there are so many
}

type pace struct {
	due  time.Time
	told bool
}

// mostPaces bounds the memory: beyond it, all begin anew.
const mostPaces = 200_000

// New returns one that lets each do something n times in a time, and so many at once. Without n there is no bound.
func New(n int, per time.Duration, burst int, now func() time.Time) *Limiter {
	if n <= 0 {
		return &Limiter{}
	}
	every := per / time.Duration(n)
	return &Limiter{every: every, ahead: every * time.Duration(burst-1), now: now, of: map[string]*pace{}, sweep: 1000}
}

// Take counts one of key. It returns how long to wait if that is too many, and whether it is the first in a row that is.
func (r *Limiter) Take(key string) (wait time.Duration, first bool) { return r.TakeN(key, 1) }

// Wait returns how long key has to wait before the next one is allowed, and counts nothing.
func (r *Limiter) Wait(key string) time.Duration {
	if r.every == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.of[key]
	if p == nil {
		return 0
	}
	return max(0, p.due.Sub(r.now())-r.ahead)
}

// TakeN counts n of key at once. All of them are allowed, however many, if one is: the next has to wait for longer.
func (r *Limiter) TakeN(key string, n int) (wait time.Duration, first bool) {
	if r.every == 0 {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	p := r.of[key]
	if p == nil {
		if len(r.of) >= r.sweep {
			r.forget(now)
		}
		p = &pace{}
		r.of[key] = p
	}
	if p.due.Before(now) {
		p.due = now
	}
	if early := p.due.Sub(now); early > r.ahead {
		first, p.told = !p.told, true
		return early - r.ahead, first
	}
	p.due, p.told = p.due.Add(time.Duration(n)*r.every), false
	return 0, false
}

// Return takes back one that Take counted: an attempt that was no fault, such as a sign-in that succeeded.
func (r *Limiter) Return(key string) {
	if r.every == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.of[key]; p != nil {
		p.due = p.due.Add(-r.every)
	}
}

func (r *Limiter) forget(now time.Time) {
	for key, p := range r.of {
		if !p.due.After(now) {
			delete(r.of, key)
		}
	}
	if len(r.of) > mostPaces {
		clear(r.of)
	}
	r.sweep = max(1000, 2*len(r.of))
}

// Network is what is counted as one address: of IPv6, which gives everybody many, the network.
func Network(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Unmap().Is4() {
		return ip
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return ip
	}
	return p.String()
}
