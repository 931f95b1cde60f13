package writer

import "time"

const (
	// busyRate is the number of events a second from which on an insert waits for MaxLinger.
	busyRate = 20_000
	// behindBy is the share of MaxRows that waits in the stream from which on we are behind. Then nobody
	// sees an event sooner for a smaller insert, and an insert waits until it is full, or for backlogLinger.
	behindBy      = 0.25
	backlogLinger = 2 * time.Second
)

// gathering is the insert that is being formed.
type gathering struct {
	items       []*item
	rows, bytes int
	due         *time.Timer
	began       time.Time // when the first item came
	ready       bool      // it has waited long enough
	waiting     float64   // events in the stream behind the last item, guessed from the messages before it
	rate        float64
	last        time.Time // when the one before was handed over
}

// gather forms inserts: by size under load, by age otherwise, and in both cases when someone is free to
// insert. The age grows with the rate at which events come.
func (w *Writer) gather(in <-chan *item, out chan<- []*item) {
	g := gathering{due: time.NewTimer(time.Hour), last: w.cfg.Now()}
	defer g.due.Stop()
	for {
		full := g.rows >= w.cfg.MaxRows || g.bytes >= w.cfg.MaxBytes
		// A send is on offer only if there is something that should go, and nothing more is taken beyond
		// the bounds until this much is gone.
		var offer chan<- []*item
		if len(g.items) > 0 && (g.ready || full) {
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
				g.due.Reset(w.linger(g.rate))
			}
			g.items = append(g.items, it)
			g.rows += it.part.Block.Rows()
			g.bytes += int(it.size)
			g.waiting = float64(it.pending) * float64(g.rows) / float64(len(g.items))
		case <-g.due.C:
			if left := backlogLinger - w.cfg.Now().Sub(g.began); g.waiting > behindBy*float64(w.cfg.MaxRows) && left > 0 {
				g.due.Reset(min(left, w.cfg.MaxLinger))
				continue
			}
			g.ready = len(g.items) > 0
		case <-w.pressure: // memory is short, and waiting for more of it here would be in vain
			g.ready = len(g.items) > 0
		case offer <- g.items:
			g.sent(w.cfg.Now())
		}
	}
}

// sent begins another insert, and has the rate follow the last one half-way.
func (g *gathering) sent(now time.Time) {
	rate := float64(g.rows) / max(now.Sub(g.last).Seconds(), 0.001)
	g.rate = (g.rate + rate) / 2
	g.items, g.rows, g.bytes, g.ready, g.last = nil, 0, 0, false, now
}

func (w *Writer) linger(rate float64) time.Duration {
	return w.cfg.Linger + time.Duration(float64(w.cfg.MaxLinger-w.cfg.Linger)*min(1, rate/busyRate))
}

func monthOf(it *item) int {
	y, m, _ := it.part.RecordedAt.Date()
	return 12*y + int(m)
}
