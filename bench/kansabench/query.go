package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// queries are the questions people ask. The organization and trail come first in the sorting key; actor,
// target and text do not.
var queries = []struct{ name, sql string }{
	{"actor", `SELECT * FROM audit_events WHERE organization = 'acme' AND actor_id = 'u-00042' ORDER BY recorded_at DESC, stream_seq DESC LIMIT 100`},
	{"target", `SELECT * FROM audit_events WHERE organization = 'acme' AND target_id = 'r000000042' ORDER BY recorded_at DESC, stream_seq DESC LIMIT 100`},
	{"day", `SELECT hour, event, sum(events) FROM audit_event_counts WHERE organization = 'acme' AND toDate(hour) = toDate('{day}') GROUP BY hour, event ORDER BY hour, event`},
	{"text", `SELECT * FROM audit_events WHERE organization = 'acme' AND description ILIKE '%report-12345%' ORDER BY recorded_at DESC, stream_seq DESC LIMIT 100`},
}

// answer is how long one question took at one size.
type answer struct {
	Rows   uint64  `json:"rows"`
	Query  string  `json:"query"`
	P50    float64 `json:"p50_ms"`
	Max    float64 `json:"max_ms"`
	Result int     `json:"result_rows"`
}

// query loads tables of three sizes, spread over 28 days of one month, and asks.
func (b *bench) query(ctx context.Context) (err error) {
	s, err := b.newStack("query")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startEngine(ctx); err != nil {
		return err
	}
	sizes := scale(b, []uint64{1_000_000, 10_000_000, 50_000_000}, []uint64{100_000, 500_000, 2_000_000})
	now := time.Now().UTC()
	month := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC)
	var all []answer
	t := table{title: "Queries of one organization", header: []string{"rows in the table", "last 100 of an actor, ms", "of a target, ms", "a day's counts, ms", "text search, ms"}}
	for _, size := range sizes {
		if err := s.store.Conn().Exec(ctx, "TRUNCATE TABLE audit_events"); err != nil {
			return fmt.Errorf("empty the table: %w", err)
		}
		if err := s.store.Conn().Exec(ctx, "TRUNCATE TABLE audit_event_counts"); err != nil {
			return fmt.Errorf("empty the table: %w", err)
		}
		if err := s.fill(ctx, size, month, 28*24*time.Hour, ""); err != nil {
			return err
		}
		rows, err := s.rows(ctx)
		if err != nil {
			return err
		}
		b.say("%s rows are there", number(float64(rows)))
		row := []string{number(float64(rows))}
		for _, q := range queries {
			a, err := s.ask(ctx, q.name, q.sql, month.AddDate(0, 0, 20), scale(b, 20, 10))
			if err != nil {
				return err
			}
			a.Rows = rows
			all = append(all, a)
			row = append(row, fmt.Sprintf("%.0f (max %.0f)", a.P50, a.Max))
			sum := &b.result.Summary
			switch q.name {
			case "actor":
				sum.QueryActorMs = figure(a.P50)
			case "target":
				sum.QueryTargetMs = figure(a.P50)
			case "day":
				sum.QueryDayMs = figure(a.P50)
			case "text":
				sum.QueryTextMs = figure(a.P50)
			}
		}
		t.rows = append(t.rows, row)
		b.say("answers: %v", row)
	}
	t.notes = []string{"Median (and longest), by clickhouse-go, all columns read. The summary has those of the largest table."}
	b.result.add("query", all, t)
	return nil
}

// fill puts n rows, recorded between from and from + spread, into the table.
func (s *stack) fill(ctx context.Context, n uint64, from time.Time, spread time.Duration, lane string) error {
	set := inserterSettings{
		Store: s.settings(), InFlight: 3, Rows: int(min(200_000, max(n/8, 1))), Total: n, From: from, Spread: spread, Lane: lane,
	}
	p, err := s.start(ctx, "inserter", set)
	if err != nil {
		return err
	}
	if _, err := p.until(ctx, func(r report) bool { return r.Done }); err != nil {
		return err
	}
	return p.stop()
}

func (s *stack) ask(ctx context.Context, name, query string, day time.Time, times int) (answer, error) {
	a := answer{Query: name}
	query = strings.ReplaceAll(query, "{day}", day.Format(time.DateOnly))
	var took []float64
	for range times {
		began := time.Now()
		rows, err := s.store.Conn().Query(ctx, query)
		if err != nil {
			return a, fmt.Errorf("query %s: %w", name, err)
		}
		for a.Result = 0; rows.Next(); a.Result++ {
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return a, fmt.Errorf("query %s: %w", name, err)
		}
		took = append(took, ms(time.Since(began)))
	}
	a.P50, a.Max = quantile(took, 0.5), quantile(took, 1)
	return a, nil
}
