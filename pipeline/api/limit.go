package api

import (
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Limits say how often something may be asked for. The zero value of a field is no bound.
type Limits struct {
	// PerSecond bounds what one key, or one person who is signed in, asks for; ten seconds' worth may come at once.
	PerSecond int
	// AddressPerSecond bounds the same for an address, whoever asks.
	AddressPerSecond int
	// SignInsPerMinute bounds an address's attempts to sign in, and its requests with a key that is not known.
	SignInsPerMinute int
}

// limits count.
type limits struct{ who, address, signIn *rate }

func newLimits(l Limits, now func() time.Time) *limits {
	return &limits{
		who:     newRate(l.PerSecond, time.Second, 10*l.PerSecond, now),
		address: newRate(l.AddressPerSecond, time.Second, 10*l.AddressPerSecond, now),
		signIn:  newRate(l.SignInsPerMinute, time.Minute, l.SignInsPerMinute, now),
	}
}

// rate lets each of many do something so often and no more. It keeps one time for each: when all that was done would
// have been due, were it done evenly (GCRA).
type rate struct {
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

func newRate(n int, per time.Duration, burst int, now func() time.Time) *rate {
	if n <= 0 {
		return &rate{}
	}
	every := per / time.Duration(n)
	return &rate{every: every, ahead: every * time.Duration(burst-1), now: now, of: map[string]*pace{}, sweep: 1000}
}

// take counts one of key. It returns how long to wait if that is too many, and whether it is the first in a row that is.
func (r *rate) take(key string) (wait time.Duration, first bool) {
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
	p.due, p.told = p.due.Add(r.every), false
	return 0, false
}

func (r *rate) forget(now time.Time) {
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

// network is what is counted as one address: of IPv6, which gives everybody many, the network.
func network(ip string) string {
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

func retryAfter(set func(name, value string), wait time.Duration) {
	set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
}

// bounded has h answer 429 where an address asks too often.
func (l *limits) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait, _ := l.address.take(network(addressOf(r.RemoteAddr))); wait > 0 {
			retryAfter(w.Header().Set, wait)
			answer(w, http.StatusTooManyRequests, "Too many requests", "Wait a moment, and try again.")
			return
		}
		h.ServeHTTP(w, r)
	})
}
