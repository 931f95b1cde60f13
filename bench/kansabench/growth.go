package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// step is one size of work.
type step struct {
	Times   int     `json:"times"`
	Work    uint64  `json:"work"`
	Seconds float64 `json:"seconds"`
	PeakMiB float64 `json:"peak_mib"`
}

// growth does one, two, four and eight times as much of each kind of work. Linear means that eight times
// the work takes eight times as long; a smaller figure, that fixed costs weigh on the small ones.
func (b *bench) growth(ctx context.Context) error {
	kinds := []struct {
		name string
		base uint64
		do   func(ctx context.Context, work uint64) (step, error)
		time **float64
		mem  **float64
	}{
		{"ingest", scale(b, uint64(2_000_000), 75_000), b.ingestSome, &b.result.Summary.GrowthIngestLinear, &b.result.Summary.GrowthIngestMemory},
		{"rollup", scale(b, uint64(625_000), 100_000), func(ctx context.Context, n uint64) (step, error) {
			d, err := b.rollUp(ctx, "growth-rollup", n, false)
			return step{Work: d.Rows, Seconds: d.Seconds, PeakMiB: d.PeakMiB}, err
		}, &b.result.Summary.GrowthRollupLinear, &b.result.Summary.GrowthRollupMemory},
		{"archive", scale(b, uint64(2_190), 1_000), func(ctx context.Context, n uint64) (step, error) {
			d, err := b.assemble(ctx, "growth-archive", int(n), false)
			return step{Work: n, Seconds: d.Seconds, PeakMiB: d.PeakMiB}, err
		}, &b.result.Summary.GrowthArchiveLinear, &b.result.Summary.GrowthArchiveMemory},
	}
	all := map[string][]step{}
	t := table{title: "Growth: 1, 2, 4 and 8 times the work", header: []string{"", "work at 1×", "seconds at 1×, 2×, 4×, 8×", "time at 8× / 8 × time at 1×", "peak MiB at 1×, 2×, 4×, 8×", "memory at 8× / 1×"}}
	for _, k := range kinds {
		var seconds, memory string
		for i, times := range []int{1, 2, 4, 8} {
			st, err := k.do(ctx, k.base*uint64(times))
			if err != nil {
				return fmt.Errorf("%s, %d times: %w", k.name, times, err)
			}
			st.Times = times
			all[k.name] = append(all[k.name], st)
			if i > 0 {
				seconds, memory = seconds+", ", memory+", "
			}
			seconds, memory = seconds+fmt.Sprintf("%.2f", st.Seconds), memory+fmt.Sprintf("%.0f", st.PeakMiB)
		}
		first, last := all[k.name][0], all[k.name][3]
		// By what was done, which is not to the row what was asked for.
		linear := last.Seconds / first.Seconds * float64(first.Work) / float64(last.Work)
		*k.time, *k.mem = figure(linear), figure(last.PeakMiB/first.PeakMiB)
		t.rows = append(t.rows, []string{k.name, number(float64(first.Work)), seconds, number(linear), memory, number(last.PeakMiB / first.PeakMiB)})
		b.say("growth, %s: %s s, %s MiB", k.name, seconds, memory)
	}
	b.result.add("growth", all, t)
	return nil
}

// ingestSome publishes n events by the SDK, and is done when they are stored.
func (b *bench) ingestSome(ctx context.Context, n uint64) (st step, err error) {
	s, err := b.newStack("growth-ingest")
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startAll(ctx); err != nil {
		return st, err
	}
	p, err := s.start(ctx, "producer", producerSettings{Broker: s.broker.now().URL, Kind: kindColumnar, Limit: min(n, b.window())})
	if err != nil {
		return st, err
	}
	began := time.Now() // what is published was made before
	for limit := uint64(0); ; {
		if to := min(n, s.writer.now().Stored+b.window()); to > limit {
			limit = to
			p.tell(order{Limit: limit})
		}
		stored := s.writer.now().Stored
		// The last chunk that fits is what is published in the end.
		if acked := p.now().Acked; limit == n && n-acked < 64 && stored >= acked {
			break
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return st, err
		}
	}
	st = step{Work: n, Seconds: time.Since(began).Seconds(), PeakMiB: s.writer.usage().PeakMiB}
	return st, s.settle(ctx, p)
}
