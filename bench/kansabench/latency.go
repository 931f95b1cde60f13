package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// latencies of one kind of load, in milliseconds.
type latencies struct {
	Load   string  `json:"load"`
	Rate   float64 `json:"events_per_s"` // of the load beside the probes
	Probes int     `json:"probes"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
	Acked  float64 `json:"acked_p50_ms"` // publish to the broker's ack
}

// latency publishes one event at a time and asks the table for it until it is there. What is measured
// therefore includes the query that finds it.
func (b *bench) latency(ctx context.Context) (err error) {
	s, err := b.newStack("latency")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startAll(ctx); err != nil {
		return err
	}
	client, err := broker.Connect(ctx, broker.Options{URL: s.broker.now().URL, Name: "bench probe", Logger: warnings()})
	if err != nil {
		return err
	}
	defer client.Close()
	pub, err := producers.New(client.JS, producers.Config{Logger: warnings()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pub.Close(context.WithoutCancel(ctx))) }()

	idle, err := s.probe(ctx, pub, "idle", scale(b, 300, 60), scale(b, 100*time.Millisecond, 50*time.Millisecond))
	if err != nil {
		return err
	}
	b.say("idle: p50 %.1f ms, p99 %.1f ms", idle.P50, idle.P99)
	rate := 100_000.0
	if b.result.Summary.IngestEventsPerS != nil {
		rate = *b.result.Summary.IngestEventsPerS
	} else {
		b.say("the sustained rate was not measured in this run; %s events/s are assumed", number(rate))
	}
	p, err := s.start(ctx, "producer", producerSettings{Broker: s.broker.now().URL, Kind: kindColumnar, Rate: rate / 2, Limit: ^uint64(0)})
	if err != nil {
		return err
	}
	if err := sleep(ctx, scale(b, 5*time.Second, 2*time.Second)); err != nil {
		return err
	}
	began, first := time.Now(), p.now()
	half, err := s.probe(ctx, pub, "half", scale(b, 200, 40), scale(b, 100*time.Millisecond, 50*time.Millisecond))
	if err != nil {
		return err
	}
	half.Rate = float64(p.now().Acked-first.Acked) / time.Since(began).Seconds()
	b.say("half load: p50 %.1f ms, p99 %.1f ms at %s events/s", half.P50, half.P99, number(half.Rate))
	if _, err := p.finish(ctx); err != nil {
		return err
	}
	sum := &b.result.Summary
	sum.LatencyIdleP50, sum.LatencyIdleP99 = figure(idle.P50), figure(idle.P99)
	sum.LatencyHalfLoadP50, sum.LatencyHalfLoadP99 = figure(half.P50), figure(half.P99)
	t := table{
		title:  "Latency: publish to queryable",
		header: []string{"load", "events/s beside", "probes", "p50 ms", "p99 ms", "max ms", "to the broker's ack, p50 ms"},
	}
	for _, l := range []latencies{idle, half} {
		t.rows = append(t.rows, []string{
			l.Load, number(l.Rate), fmt.Sprint(l.Probes), fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99),
			fmt.Sprintf("%.1f", l.Max), fmt.Sprintf("%.1f", l.Acked),
		})
	}
	b.result.add("latency", []latencies{idle, half}, t)
	return nil
}

// probe measures n events, one after another, with pauses about as long as pause between them.
func (s *stack) probe(ctx context.Context, pub *producers.Publisher, name string, n int, pause time.Duration) (latencies, error) {
	var took, acked []float64
	for range n {
		// A pause that is always the same would meet the writer's timers always at the same place.
		if err := sleep(ctx, time.Duration((0.5+rand.Float64())*float64(pause))); err != nil {
			return latencies{}, err
		}
		id, err := uuid.NewV7()
		if err != nil {
			return latencies{}, fmt.Errorf("make an id: %w", err)
		}
		began := time.Now()
		err = pub.Publish(ctx, schema.Event{
			ID: id, OccurredAt: began, Organization: "probe", Trail: schema.Access, Source: "bench", Event: "bench.probed", Action: "read",
		})
		if err != nil {
			return latencies{}, err
		}
		acked = append(acked, ms(time.Since(began)))
		if err := s.untilThere(ctx, id, began); err != nil {
			return latencies{}, err
		}
		took = append(took, ms(time.Since(began)))
	}
	return latencies{
		Load: name, Probes: n, P50: quantile(took, 0.5), P99: quantile(took, 0.99), Max: slices.Max(took), Acked: quantile(acked, 0.5),
	}, nil
}

// untilThere asks again and again, with less haste the longer it takes, lest asking be the load.
func (s *stack) untilThere(ctx context.Context, id uuid.UUID, since time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	query := fmt.Sprintf(`SELECT count() FROM audit_events WHERE organization = 'probe' AND trail = 'access'
AND recorded_at >= fromUnixTimestamp64Micro(%d, 'UTC') AND id = '%s'`, since.Add(-time.Second).UnixMicro(), id)
	for {
		var n uint64
		if err := s.store.Conn().QueryRow(ctx, query).Scan(&n); err != nil {
			return fmt.Errorf("look for the event: %w", err)
		}
		if n > 0 {
			return nil
		}
		if err := sleep(ctx, max(time.Millisecond, min(time.Since(since)/50, 20*time.Millisecond))); err != nil {
			return fmt.Errorf("look for the event: %w", err)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// quantile of values, which it sorts.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}
