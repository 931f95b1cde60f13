package writer

import (
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/recording"
)

// trouble is an error that comes again and again. It is safe for concurrent use.
type trouble struct {
	mu          sync.Mutex
	since, last time.Time
	err         error
}

// note keeps an error, or forgets the last one if err is nil.
func (t *trouble) note(now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.err == nil {
		t.since = now
	}
	t.err, t.last = err, now
}

func (t *trouble) get() (since, last time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.since, t.last, t.err
}

// Failing returns why messages are not stored or settled, since when, and when that was last tried; a nil error means that the last
// attempt succeeded.
func (w *Writer) Failing() (since, last time.Time, err error) {
	for _, t := range []*trouble{&w.inserts, &w.settles, &w.switches} {
		if since, last, err = t.get(); err != nil {
			return since, last, err
		}
	}
	return since, last, nil
}

// withKnownSwitches returns the items of organizations of which it is known what is switched off. Messages of the others are redelivered after a
// while, and do not hold up the rest.
func (w *Writer) withKnownSwitches(recorded recording.State, items []*item) []*item {
	if recorded.Complete() {
		w.switches.note(w.cfg.Now(), nil)
		return items
	}
	known := items[:0:0]
	for _, it := range items {
		err := recorded.Unknown(it.part.Organization)
		if err == nil || it.done {
			known = append(known, it)
			continue
		}
		w.switches.note(w.cfg.Now(), err)
		it.until = time.Time{} // it is not ours any more
		if it.reply != "" {
			w.postpone(it.reply, leastDelay)
		}
	}
	return known
}
