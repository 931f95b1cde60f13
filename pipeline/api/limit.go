package api

import (
	"sync"
	"time"
)

// attempts bounds how often one address tries to sign in: ten times a minute.
type attempts struct {
	mu    sync.Mutex
	since time.Time
	by    map[string]int
	now   func() time.Time
}

const (
	attemptsAMinute = 10
	mostAddresses   = 100_000
)

func (a *attempts) allow(ip string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); now.Sub(a.since) > time.Minute || len(a.by) > mostAddresses {
		a.since, a.by = now, map[string]int{}
	}
	a.by[ip]++
	return a.by[ip] <= attemptsAMinute
}
