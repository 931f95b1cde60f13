package writer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// A producer that could not reach the broker keeps its messages and publishes them later. One of them may have
// reached the broker at the time, whose answer was lost; and the broker may have forgotten its id since. So the
// events of a kept message are looked up by their own ids, and those that the table has from an earlier message
// are left out.
//
// That is only as good as the table is complete: the earlier message may still be under way to it, with another
// writer even. But the broker knows ids for a while, so the earlier message is at least that much older. A kept
// message waits until everything that old is settled.

// settled is an instant before which everything is in the table. Once true, that stays so.
type settled struct {
	mu    sync.Mutex
	until time.Time
	asked time.Time
}

const (
	// askSettled is the least time between two questions to the broker.
	askSettled = 100 * time.Millisecond
	// A kept message that is too early comes again after a second, and later if much is to be stored before it.
	leastDelay, mostDelay = time.Second, 30 * time.Second
)

// tooEarly finds out whether a message was kept, and gives it back to the broker for a while if it can't be told
// yet whether its events are in the table.
func (w *Writer) tooEarly(ctx context.Context, it *item) bool {
	header := it.msg.Headers().Get(schema.HeaderFirstAttempt)
	if header == "" {
		return false
	}
	meta, err := it.msg.Metadata()
	if err != nil {
		return false // which is told of when it is decoded
	}
	var ok bool
	if it.since, ok = schema.RecordedSince(header, meta.Timestamp); !ok {
		return false
	}
	oldest := meta.Timestamp.Add(-w.cfg.Window / 2) // half, to be far from the moment at which an id is forgotten
	missing := w.unsettled(ctx, oldest)
	if missing <= 0 {
		return false
	}
	w.postpone(it.msg.Reply(), min(mostDelay, leastDelay+missing/60))
	return true
}

// unsettled is how much of the time up to an instant may have messages that are not in the table.
func (w *Writer) unsettled(ctx context.Context, upTo time.Time) time.Duration {
	s := &w.settled
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := w.cfg.Now(); s.until.Before(upTo) && now.Sub(s.asked) >= askSettled {
		s.asked = now
		until, err := w.cfg.Settled(ctx)
		if err != nil {
			w.cfg.Logger.Warn("it is not known which messages are settled, kept messages wait", slog.Any("error", err))
		} else if until.After(s.until) {
			s.until = until
		}
	}
	if s.until.IsZero() {
		return mostDelay
	}
	return upTo.Sub(s.until)
}

// postpone has a message come again after a while.
func (w *Writer) postpone(reply string, delay time.Duration) {
	if err := w.acks.Publish(reply, fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds())); err != nil {
		w.cfg.Logger.Warn("a message is not given back, it will come again", slog.Any("error", err))
	}
}

// leaveOut takes the events of kept messages that are stored already off the items, and returns how many, and the
// items that can be stored now. If the table can't tell in time, the kept messages come again: nobody else is to
// wait for them.
func (w *Writer) leaveOut(ctx context.Context, items []*item, have map[uint64]int) (left []*item, skipped int) {
	var parts []codec.Part
	var since time.Time
	asked := func(it *item) bool {
		return !it.done && !it.since.IsZero() && have[it.part.StreamSeq] < it.part.Block.Rows()
	}
	for _, it := range items {
		if asked(it) {
			parts = append(parts, it.part)
			if since.IsZero() || it.since.Before(since) {
				since = it.since
			}
		}
	}
	if len(parts) == 0 {
		return items, 0
	}
	looking, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout/2)
	defer cancel()
	stored, err := w.table.StoredElsewhere(looking, parts, since)
	if err != nil {
		w.cfg.Logger.Warn("kept messages wait, for it is not known whether they are stored", slog.Int("messages", len(parts)), slog.Any("error", err))
	}
	for _, it := range items {
		switch rows := stored[it.part.StreamSeq]; {
		case !asked(it):
		case err != nil:
			it.until = time.Time{} // it is not ours any more
			w.postpone(it.reply, mostDelay)
			continue
		case len(rows) > 0:
			it.part.Drop(rows)
			// What is left is this message's account, whoever stores it.
			it.tally.Rows, it.tally.Sum = uint64(it.part.Block.Rows()), it.part.Sum()
			skipped += len(rows)
		}
		left = append(left, it)
	}
	return left, skipped
}
