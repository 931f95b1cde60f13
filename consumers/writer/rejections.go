package writer

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/schema"
)

const (
	// rejectionsEvery is how long rejections of an organization are counted after the first was
	// logged.
	rejectionsEvery = time.Minute
	// mostRejecting bounds the organizations that are counted apart.
	mostRejecting = 1000
)

// rejections logs the first message of an organization with rejected events, and then counts until
// a minute has passed. One publisher can have every message rejected, for days.
type rejections struct {
	now func() time.Time

	mu sync.Mutex
	of map[string]*rejecting
}

type rejecting struct {
	since            time.Time
	messages, events int // not logged yet
	reason           error
}

// note counts the letters of a message, and logs what is due.
func (r *rejections) note(letters []consumers.DeadLetter, log *slog.Logger) {
	organization, _, err := schema.ParseEventSubject(letters[0].Subject)
	if err != nil {
		organization = "_invalid"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]*rejecting{}
	}
	if r.of[organization] == nil && len(r.of) >= mostRejecting {
		organization = "…"
	}
	if c := r.of[organization]; c != nil {
		c.messages++
		c.events += len(letters)
		c.reason = letters[0].Reason
		return
	}
	r.of[organization] = &rejecting{since: r.now()}
	log.Warn("events rejected", slog.String("organization", organization), slog.Int("count", len(letters)), slog.String("subject", letters[0].Subject),
		slog.Uint64("stream_seq", letters[0].StreamSeq), slog.Any("reason", letters[0].Reason))
}

// flush logs what was counted for a minute; for less, if all is set.
func (r *rejections) flush(all bool, log *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, organization := range slices.SortedFunc(maps.Keys(r.of), cmp.Compare[string]) {
		c := r.of[organization]
		if !all && now.Sub(c.since) < rejectionsEvery {
			continue
		}
		if c.events == 0 {
			delete(r.of, organization)
			continue
		}
		log.Warn("events rejected", slog.String("organization", organization), slog.Int("count", c.events), slog.Int("messages", c.messages),
			slog.Time("since", c.since), slog.Any("last_reason", c.reason))
		*c = rejecting{since: now}
	}
}
