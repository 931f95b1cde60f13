package writer

import "time"

const (
	// busyRate is the number of events a second from which on an insert waits for MaxLinger.
	busyRate = 50_000
	// When a whole insert more waits in the stream, we are behind. Then nobody sees an event sooner for a
	// smaller insert, and an insert waits until it is full, or for backlogLinger.
	backlogLinger = 2 * time.Second
)

// gathering is the insert that is being formed.
type gathering struct {
	items       []*item
	rows, bytes int
	due         *time.Timer
	began       time.Time // when the first item came
	waiting     float64   // events in the stream behind the last item, guessed from the messages before it
	ready       bool      // it has waited long enough to go if nothing else is being inserted
	late        bool      // and even if something is
	short       bool      // and memory is short, so that waiting for more would be in vain
	rate        float64
	last        time.Time // when the one before was handed over
}

// gather forms inserts: by age while nothing is being inserted, by a greater age while something is, and by
// size. So they grow with the load by themselves, as each takes what came while the one before was under way.
// The age grows with the rate at which events come: large inserts cost the engine far less an event.
func (w *Writer) gather(in <-chan *item, out chan<- []*item) {
	g := gathering{due: time.NewTimer(time.Hour), last: w.cfg.Now()}
	defer g.due.Stop()
	for {
		full := g.rows >= w.cfg.MaxRows || g.bytes >= w.cfg.MaxBytes
		// A send is on offer only if there is something that should go, and nothing more is taken beyond
		// the bounds until this much is gone.
		var offer chan<- []*item
		if len(g.items) > 0 && (full || g.short || g.late || g.ready && w.inserting.Load() == 0) {
			offer = out
		}
		take := in
		if full {
			take = nil
		}
		select {
		case it, ok := <-take:
			if !ok {
				if len(g.items) > 0 {
					out <- g.items
				}
				return
			}
			// An insert goes to one table partition, which is a month.
			if len(g.items) > 0 && monthOf(g.items[0]) != monthOf(it) {
				out <- g.items
				g.sent(w.cfg.Now())
			}
			if len(g.items) == 0 {
				g.began = w.cfg.Now()
				g.due.Reset(w.linger(&g))
			}
			g.items = append(g.items, it)
			g.rows += it.part.Block.Rows()
			g.bytes += int(it.size)
			g.waiting = float64(it.pending) * float64(g.rows) / float64(len(g.items))
		case <-g.due.C:
			if left := backlogLinger - w.cfg.Now().Sub(g.began); g.waiting > float64(w.cfg.MaxRows) && left > 0 {
				g.due.Reset(min(left, w.cfg.MaxLinger))
				continue
			}
			if g.late = g.ready; !g.late && len(g.items) > 0 {
				g.ready = true
				g.due.Reset(w.cfg.MaxLinger)
			}
		case <-w.pressure:
			g.short = len(g.items) > 0
		case <-w.inserted: // look again
		case offer <- g.items:
			g.sent(w.cfg.Now())
		}
	}
}

// sent begins another insert, and has the rate follow the last one half-way.
func (g *gathering) sent(now time.Time) {
	rate := float64(g.rows) / max(now.Sub(g.last).Seconds(), 0.001)
	g.rate = (g.rate + rate) / 2
	g.items, g.rows, g.bytes, g.ready, g.late, g.short, g.last = nil, 0, 0, false, false, false, now
}

// linger is how long the first item of g waits for company: hardly at all after a pause, for then most
// likely none comes.
func (w *Writer) linger(g *gathering) time.Duration {
	if w.cfg.Now().Sub(g.last) > 2*w.cfg.Linger {
		return w.cfg.Linger / 10
	}
	return w.cfg.Linger + time.Duration(float64(w.cfg.MaxLinger-w.cfg.Linger)*min(1, g.rate/busyRate))
}

func monthOf(it *item) int {
	y, m, _ := it.part.RecordedAt.Date()
	return 12*y + int(m)
}
