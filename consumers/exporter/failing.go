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
	f.of[id] = failure{err, f.now()}
}

// Failing says of each export that is to be tried again why its last attempt failed.
func (x *Exporter) Failing() []string {
	f := &x.failing
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.of, func(_ string, e failure) bool { return f.now().Sub(e.at) > forgetFailure })
	list := make([]string, 0, len(f.of))
	for _, id := range slices.Sorted(maps.Keys(f.of)) {
		list = append(list, fmt.Sprintf("export %s: %s", id, f.of[id].reason.Error()))
	}
	return list
}
