package pipeline

import (
	"context"
	"runtime/metrics"
	"sync"
	"time"
)

// pressure limits what organizations publish beyond their prompt share while this process waits for the processor and several
// organizations publish. Without it, one that publishes as much as its limits allow can take all of a small machine, and every step of the
// others' events waits for its turn on the processor. It is safe for concurrent use.
type pressure struct {
	now func() time.Time

	mu    sync.Mutex
	rate  float64              // bytes per second of each organization; 0 does not limit
	taken float64              // bytes beyond prompt shares since adjusted
	last  time.Time            // when the rate was adjusted
	seen  map[string]time.Time // when an organization last published
	due   map[string]time.Time // when an organization may publish again
}

const (
	pressureEvery = 250 * time.Millisecond
	// pressureHigh is how long one in a hundred goroutines may wait for a processor. On an idle machine, that is a tenth of a millisecond;
	// while publishers take all of it, 10 to 50 ms.
	pressureHigh = 4 * time.Millisecond
	// pressureLeast is what each organization may publish in any case, in bytes per second, and pressureMost a rate that does not limit.
	pressureLeast = 1 << 20
	pressureMost  = 64 << 20
	// pressureDown and pressureUp are how the rate follows: 1.05 doubles it in four seconds.
	pressureDown, pressureUp = 0.8, 1.05
	// pressureActive is for how long an organization that has published counts as one that publishes.
	pressureActive = 10 * time.Second
)

func newPressure(now func() time.Time) *pressure {
	return &pressure{now: now, last: now(), seen: map[string]time.Time{}, due: map[string]time.Time{}}
}

// count notes what an organization has published. beyond says that it exceeded its prompt share.
func (p *pressure) count(organization string, bytes int, beyond bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.seen[organization] = now
	if !beyond {
		return
	}
	p.taken += float64(bytes)
	if p.rate > 0 {
		from := p.due[organization]
		if from.Before(now) {
			from = now
		}
		p.due[organization] = from.Add(time.Duration(float64(bytes) / p.rate * float64(time.Second)))
	}
}

// wait returns how long an organization that exceeds its prompt share has to wait, or zero.
func (p *pressure) wait(organization string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.due[organization].Sub(p.now()))
}

// adjust has the rate follow how long goroutines waited for a processor since the last call.
func (p *pressure) adjust(waited time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for organization, at := range p.seen {
		if now.Sub(at) > pressureActive {
			delete(p.seen, organization)
			delete(p.due, organization)
		}
	}
	beyond := p.taken / max(now.Sub(p.last).Seconds(), 0.001)
	p.taken, p.last = 0, now
	switch high := waited > pressureHigh; {
	case len(p.seen) < 2:
		p.rate = 0
	case high && p.rate == 0:
		p.rate = max(pressureLeast, pressureDown*beyond)
	case high:
		p.rate = max(pressureLeast, pressureDown*p.rate)
	case p.rate > 0:
		if p.rate *= pressureUp; p.rate > pressureMost {
			p.rate = 0
		}
	}
	if p.rate == 0 {
		clear(p.due)
	}
}

// follow adjusts until ctx ends.
func (p *pressure) follow(ctx context.Context) {
	tick := time.NewTicker(pressureEvery)
	defer tick.Stop()
	var waits waits
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.adjust(waits.since())
		}
	}
}

// waits reads how long goroutines wait for a processor.
type waits struct{ counts []uint64 }

// since returns how long one in a hundred goroutines waited since the last call.
func (w *waits) since() time.Duration {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := sample[0].Value.Float64Histogram()
	counts := make([]uint64, len(h.Counts))
	all := uint64(0)
	for i, n := range h.Counts {
		if i < len(w.counts) {
			n -= w.counts[i]
		}
		counts[i] = n
		all += n
	}
	w.counts = append(w.counts[:0], h.Counts...)
	for i, rest := len(counts)-1, all/100; i >= 0; i-- {
		if counts[i] > rest {
			return time.Duration(max(0, h.Buckets[i]) * float64(time.Second))
		}
		rest -= counts[i]
	}
	return 0
}
