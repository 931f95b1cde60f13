package writer

import (
	"context"
	"log/slog"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/tally"
)

// mostSettled is how many messages are settled together. Each of the two steps waits for the broker's disk, so a publisher of many bad
// messages would hold up everybody's if they were settled one by one.
const mostSettled = 256

// settle puts dead letters in safety, acknowledges the messages of which nothing is left, and hands on the others.
func (w *Writer) settle(ctx context.Context, in <-chan *item, out chan<- *item) {
	defer w.rejections.flush(true, w.cfg.Logger)
	for it := range in {
		w.rejections.flush(false, w.cfg.Logger)
		items := []*item{it}
	more:
		for len(items) < mostSettled {
			select {
			case next, ok := <-in:
				if !ok {
					break more
				}
				items = append(items, next)
			default:
				break more
			}
		}
		w.settleAll(ctx, items, out)
	}
}

// settleAll settles items. Those that it fails to settle will be redelivered.
func (w *Writer) settleAll(ctx context.Context, items []*item, out chan<- *item) {
	var letters []consumers.DeadLetter
	for _, it := range items {
		letters = append(letters, it.letters...)
	}
	if len(letters) > 0 {
		if err := w.dead.Put(ctx, letters); err != nil {
			w.settles.note(w.cfg.Now(), err)
			w.cfg.Logger.Warn("failed to dead-letter rejected events; their messages will be redelivered", slog.Int("messages", len(items)), slog.Any("error", err))
			for _, it := range items {
				w.release(it)
			}
			return
		}
	}
	var tallies []tally.Tally
	var done []*item
	for _, it := range items {
		if n := len(it.letters); n > 0 {
			w.stats.rejected.Add(uint64(n))
			w.rejections.note(it.letters, w.cfg.Logger)
			it.letters = nil
		}
		if it.part.Block != nil {
			out <- it
			continue
		}
		tallies, done = append(tallies, it.tally), append(done, it)
	}
	if len(done) == 0 {
		return
	}
	err := w.ledger.Put(ctx, tallies)
	if w.settles.note(w.cfg.Now(), err); err != nil {
		w.cfg.Logger.Warn("failed to write the ledger; the messages will be redelivered", slog.Int("messages", len(done)), slog.Any("error", err))
	} else {
		for _, it := range done {
			w.ack(it)
		}
	}
	for _, it := range done {
		w.release(it)
	}
}
