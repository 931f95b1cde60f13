package exporter

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// failing remembers the exports whose last attempt here failed.
type failing struct {
	mu  sync.Mutex
	now func() time.Time
	of  map[string]failure
}

type failure struct {
	reason error
	since  time.Time // of the first in a row
	at     time.Time
}

// forgetFailure is when an export that was not tried here again is somebody else's: the longest pause between two
// attempts is five minutes.
const forgetFailure = 15 * time.Minute

// note keeps the outcome of an attempt; nil forgets the export.
func (f *failing) note(id string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.of, id)
		return
	}
	now := f.now()
	since := now
	if before, ok := f.of[id]; ok {
		since = before.since
	}
	f.of[id] = failure{err, since, now}
}

// FailingFor is how long the oldest of the exports that Failing names has failed here; 0 if there is none.
func (x *Exporter) FailingFor() time.Duration {
	f := &x.failing
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget()
	oldest := time.Duration(0)
	for _, e := range f.of {
		oldest = max(oldest, f.now().Sub(e.since))
	}
	return oldest
}

// forget is for who holds f.mu.
func (f *failing) forget() {
	maps.DeleteFunc(f.of, func(_ string, e failure) bool { return f.now().Sub(e.at) > forgetFailure })
}

// Failing says of each export that is to be tried again why its last attempt failed.
func (x *Exporter) Failing() []string {
	f := &x.failing
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget()
	list := make([]string, 0, len(f.of))
	for _, id := range slices.Sorted(maps.Keys(f.of)) {
		list = append(list, fmt.Sprintf("export %s: %s", id, f.of[id].reason.Error()))
	}
	return list
}
