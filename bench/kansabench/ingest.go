package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// window bounds the events that are published and not yet stored, so that what is measured could go on for
// ever: beyond it producers wait. In a full run it holds twice what the writer may have in flight.
func (b *bench) window() uint64 { return scale(b, uint64(1_500_000), 500_000) }

// load is what one stretch of time under load was like.
type load struct {
	Kind       string             `json:"kind"`
	Seconds    float64            `json:"seconds"`
	Events     uint64             `json:"events"`
	EventsPerS float64            `json:"events_per_s"`
	MBPerS     float64            `json:"mb_per_s"` // of the events as JSON
	CPUMicros  map[string]float64 `json:"cpu_us_per_event,omitempty"`
	PeakMiB    map[string]float64 `json:"peak_mib,omitempty"`
	// OthersCores is what others on the machine used meanwhile: much of it, and the figures are of no use.
	OthersCores  float64 `json:"others_cores"`
	RowsAnInsert float64 `json:"rows_an_insert,omitempty"`
	// Waiting is how many events were on the broker's disk and not yet in the table at the end: near the
	// window, what comes after the broker is the bottleneck; near nothing, what comes before.
	Waiting uint64 `json:"waiting,omitempty"`
}

// between makes a load of what was done between two looks.
func between(kind string, took time.Duration, events uint64, before, after map[string]usage) load {
	l := load{
		Kind: kind, Seconds: took.Seconds(), Events: events, EventsPerS: float64(events) / took.Seconds(),
		CPUMicros: map[string]float64{}, PeakMiB: map[string]float64{},
	}
	l.MBPerS = l.EventsPerS * jsonBytes() / 1e6
	others := after[machineUsage].CPU - before[machineUsage].CPU
	for part, u := range after {
		if part == machineUsage {
			continue
		}
		others -= u.CPU - before[part].CPU
		l.CPUMicros[part] = float64((u.CPU - before[part].CPU).Microseconds()) / float64(max(events, 1))
		l.PeakMiB[part] = u.PeakMiB
	}
	l.OthersCores = max(others, 0).Seconds() / took.Seconds()
	return l
}

// ingestDetails is what is kept of the measurement.
type ingestDetails struct {
	Pipeline      []load  `json:"pipeline"`
	BrokerCeiling []load  `json:"broker_ceiling"`
	EngineCeiling load    `json:"engine_ceiling"`
	EventBytes    float64 `json:"event_json_bytes"`
}

func (b *bench) ingest(ctx context.Context) error {
	d := ingestDetails{EventBytes: jsonBytes()}
	var err error
	if d.EngineCeiling, err = b.engineCeiling(ctx); err != nil {
		return fmt.Errorf("the engine's ceiling: %w", err)
	}
	b.say("engine ceiling: %s rows/s", number(d.EngineCeiling.EventsPerS))
	t := table{
		title:  "Ingest: publish to stored, everything on this machine, fsync before ack",
		header: []string{"", "events/s", "MB/s", "of the engine's ceiling", "of the broker's ceiling", "CPU µs an event (producer, gateway, broker, writer, engine)", "peak MiB (the same)", "rows an insert", "cores used by others"},
	}
	for _, kind := range []string{kindColumnar, kindNDJSON, kindSingle} {
		ceiling, err := b.brokerCeiling(ctx, kind)
		if err != nil {
			return fmt.Errorf("the broker's ceiling, %s: %w", kind, err)
		}
		d.BrokerCeiling = append(d.BrokerCeiling, ceiling)
		b.say("broker ceiling, %s: %s events/s", kind, number(ceiling.EventsPerS))
		l, err := b.pipeline(ctx, kind)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		d.Pipeline = append(d.Pipeline, l)
		b.say("%s: %s events/s, %s rows an insert, %s events waiting", kind, number(l.EventsPerS), number(l.RowsAnInsert), number(float64(l.Waiting)))
		ofEngine, ofBroker := l.EventsPerS/d.EngineCeiling.EventsPerS, l.EventsPerS/ceiling.EventsPerS
		t.rows = append(t.rows, append([]string{kind, number(l.EventsPerS), number(l.MBPerS), number(ofEngine), number(ofBroker)}, append(costs(l), number(l.RowsAnInsert), number(l.OthersCores))...))
		switch s := &b.result.Summary; kind {
		case kindColumnar:
			s.IngestEventsPerS, s.IngestMBPerS = figure(l.EventsPerS), figure(l.MBPerS)
			s.IngestColumnarRatio, s.IngestBrokerRatio = figure(ofEngine), figure(ofBroker)
			s.WriterPeakMiB = figure(l.PeakMiB["writer"])
		case kindNDJSON:
			s.IngestNDJSONPerS, s.IngestNDJSONRatio = figure(l.EventsPerS), figure(ofEngine)
			*s.WriterPeakMiB = max(*s.WriterPeakMiB, *figure(l.PeakMiB["writer"]))
		case kindSingle:
			s.IngestSinglePerS = figure(l.EventsPerS)
			*s.WriterPeakMiB = max(*s.WriterPeakMiB, *figure(l.PeakMiB["writer"]))
		}
	}
	posted, err := b.pipeline(ctx, kindGateway)
	if err != nil {
		return fmt.Errorf("%s: %w", kindGateway, err)
	}
	d.Pipeline = append(d.Pipeline, posted)
	b.say("%s: %s events/s, %s rows an insert, %s events waiting", kindGateway, number(posted.EventsPerS), number(posted.RowsAnInsert), number(float64(posted.Waiting)))
	b.result.Summary.IngestGatewayPerS = figure(posted.EventsPerS)
	*b.result.Summary.WriterPeakMiB = max(*b.result.Summary.WriterPeakMiB, *figure(posted.PeakMiB["writer"]))
	t.rows = append(t.rows, append([]string{
		fmt.Sprintf("gateway: NDJSON by HTTP, %d a request", requestEvents), number(posted.EventsPerS), number(posted.MBPerS),
		number(posted.EventsPerS / d.EngineCeiling.EventsPerS), "",
	}, append(costs(posted), number(posted.RowsAnInsert), number(posted.OthersCores))...))
	for i, kind := range []string{kindColumnar, kindNDJSON, kindSingle} {
		l := d.BrokerCeiling[i]
		t.rows = append(t.rows, append([]string{"ceiling: broker alone, " + kind, number(l.EventsPerS), number(l.MBPerS), "", ""}, append(costs(l), "", number(l.OthersCores))...))
	}
	l := d.EngineCeiling
	t.rows = append(t.rows, append([]string{"ceiling: engine alone, prepared blocks", number(l.EventsPerS), number(l.MBPerS), "", ""}, append(costs(l), number(l.RowsAnInsert), number(l.OthersCores))...))
	t.notes = []string{fmt.Sprintf("An event is %.0f bytes of JSON on average. Pipeline and engine for %.0f s each after a warm-up.", d.EventBytes, l.Seconds)}
	b.result.add("ingest", d, t)
	return nil
}

func costs(l load) []string {
	cell := func(m map[string]float64, digits int) (text string) {
		for i, part := range []string{"producer", "gateway", "broker", "writer", "engine"} {
			if i > 0 {
				text += ", "
			}
			if v, ok := m[part]; ok {
				text += fmt.Sprintf("%.*f", digits, v)
			} else {
				text += "–"
			}
		}
		return text
	}
	if v, ok := l.CPUMicros["inserter"]; ok { // stands where the writer does
		l.CPUMicros["writer"], l.PeakMiB["writer"] = v, l.PeakMiB["inserter"]
	}
	return []string{cell(l.CPUMicros, 2), cell(l.PeakMiB, 0)}
}

func (b *bench) span() (warmUp, span time.Duration) {
	return scale(b, 5*time.Second, 2*time.Second), scale(b, 30*time.Second, 6*time.Second)
}

// pipeline publishes as fast as events are stored.
func (b *bench) pipeline(ctx context.Context, kind string) (l load, err error) {
	s, err := b.newStack("ingest-" + kind)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startAll(ctx); err != nil {
		return l, err
	}
	set := producerSettings{Broker: s.broker.now().URL, Kind: kind, Limit: b.window()}
	if kind == kindGateway {
		g, err := s.start(ctx, "gateway", gatewaySettings{Broker: set.Broker})
		if err != nil {
			return l, err
		}
		set.Gateway = g.now().URL
	}
	p, err := s.start(ctx, "producer", set)
	if err != nil {
		return l, err
	}
	warmUp, span := b.span()
	if err := s.keepFed(ctx, p, warmUp); err != nil {
		return l, err
	}
	began, before, first := time.Now(), s.usages(), s.writer.now()
	if err := s.keepFed(ctx, p, span); err != nil {
		return l, err
	}
	after, last := s.usages(), s.writer.now()
	l = between(kind, time.Since(began), last.Stored-first.Stored, before, after)
	l.Waiting = max(p.now().Acked, last.Stored) - last.Stored
	if n := last.Inserts - first.Inserts; n > 0 {
		l.RowsAnInsert = float64(l.Events) / float64(n)
	}
	return l, s.settle(ctx, p)
}

// keepFed lets producers go on for a while, no further ahead of the table than the window.
func (s *stack) keepFed(ctx context.Context, p *process, span time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	for {
		stored := s.writer.now().Stored
		p.tell(order{Limit: stored + s.b.window()})
		_, err := s.writer.until(ctx, func(r report) bool { return r.Stored > stored })
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		select {
		case <-p.exited:
			return errors.Join(errors.New("the producer ended too early"), p.err)
		default:
		}
	}
}

// settle stops producers, and sees to it that all they had acknowledged is stored, once.
func (s *stack) settle(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	last, err := p.finish(ctx)
	if err != nil {
		return err
	}
	if _, err := s.writer.until(ctx, func(r report) bool { return r.Stored >= last.Acked }); err != nil {
		return fmt.Errorf("wait until all is stored: %w", err)
	}
	rows, err := s.rows(ctx)
	if err != nil {
		return err
	}
	if rows != last.Acked {
		return fmt.Errorf("%d events were acknowledged, %d are stored", last.Acked, rows)
	}
	if n := s.writer.now().Rejected; n > 0 {
		return fmt.Errorf("%d events rejected or inserts failed", n)
	}
	return nil
}

// brokerCeiling publishes the same messages to a broker that nobody reads from.
func (b *bench) brokerCeiling(ctx context.Context, kind string) (l load, err error) {
	s, err := b.newStack("ceiling-broker-" + kind)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startBroker(ctx); err != nil {
		return l, err
	}
	p, err := s.start(ctx, "producer", producerSettings{Broker: s.broker.now().URL, Kind: kind, Prepared: true, Limit: ^uint64(0)})
	if err != nil {
		return l, err
	}
	if err := sleep(ctx, time.Second); err != nil {
		return l, err
	}
	began, before, first := time.Now(), s.usages(), p.now()
	// Shorter than the pipeline's: what is written is never removed, and adds up to gigabytes.
	if err := sleep(ctx, scale(b, 8*time.Second, 3*time.Second)); err != nil {
		return l, err
	}
	after, last := s.usages(), p.now()
	if _, err := p.finish(ctx); err != nil {
		return l, err
	}
	return between(kind, time.Since(began), last.Acked-first.Acked, before, after), nil
}

// engineCeiling inserts the same rows from blocks made beforehand, as many to an insert and as many at once
// as the writer does at its best.
func (b *bench) engineCeiling(ctx context.Context) (l load, err error) {
	s, err := b.newStack("ceiling-engine")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startEngine(ctx); err != nil {
		return l, err
	}
	p, err := s.start(ctx, "inserter", inserterSettings{Store: s.settings(), InFlight: 4, Rows: 200_000})
	if err != nil {
		return l, err
	}
	warmUp, span := b.span()
	if err := sleep(ctx, warmUp); err != nil {
		return l, err
	}
	began, before, first := time.Now(), s.usages(), p.now()
	if err := sleep(ctx, span); err != nil {
		return l, err
	}
	after, last := s.usages(), p.now()
	l = between("engine", time.Since(began), last.Stored-first.Stored, before, after)
	l.RowsAnInsert = float64(l.Events) / float64(max(last.Inserts-first.Inserts, 1))
	_, err = p.finish(ctx)
	return l, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
