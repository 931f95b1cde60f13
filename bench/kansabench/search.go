package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// searches are the filters of the console and the API, each set from an event that is there.
var searches = []struct {
	name string
	set  func(f *schema.Filter, e *schema.Event)
}{
	{"none", func(*schema.Filter, *schema.Event) {}},
	{"trail", func(f *schema.Filter, e *schema.Event) { f.Trail = e.Trail }},
	{"source", func(f *schema.Filter, e *schema.Event) { f.Source = e.Source }},
	{"event", func(f *schema.Filter, e *schema.Event) { f.Event = e.Event }},
	{"action", func(f *schema.Filter, e *schema.Event) { f.Action = e.Action }},
	{"outcome", func(f *schema.Filter, e *schema.Event) { f.Outcome = e.Outcome }},
	{"userId", func(f *schema.Filter, e *schema.Event) { f.ActorID = e.Actor.ID }},
	{"target", func(f *schema.Filter, e *schema.Event) { f.TargetType = e.Target.Type }},
	{"targetId", func(f *schema.Filter, e *schema.Event) { f.TargetID = e.Target.ID }},
	{"appId", func(f *schema.Filter, e *schema.Event) { f.AppID = e.AppID }},
	{"ip", func(f *schema.Filter, e *schema.Event) { f.IP = e.Context.IP }},
	{"dataType", func(f *schema.Filter, e *schema.Event) { f.DataType = e.DataType }},
	{"text", func(f *schema.Filter, e *schema.Event) { f.Text = e.Target.Name }},
	{"text of nothing", func(f *schema.Filter, e *schema.Event) { f.Text = "no event has " + e.Target.Name }},
	{"userId of nobody", func(f *schema.Filter, _ *schema.Event) { f.ActorID = "nobody" }},
}

// found is how long one kind of question took.
type found struct {
	Filter       string  `json:"filter"`
	Rows         uint64  `json:"rows"`
	PageP50      float64 `json:"page_p50_ms"`
	PageP95      float64 `json:"page_p95_ms"`
	HistogramP50 float64 `json:"histogram_p50_ms"`
	HistogramP95 float64 `json:"histogram_p95_ms"`
}

// search asks what the events page asks: the newest page of a filter, and its histogram, each time with other values.
func (b *bench) search(ctx context.Context) (err error) {
	s, err := b.newStack("search")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startEngine(ctx); err != nil {
		return err
	}
	now := time.Now().UTC()
	month := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC)
	if err := s.fill(ctx, scale(b, uint64(10_000_000), 1_000_000), month, 28*24*time.Hour, ""); err != nil {
		return err
	}
	rows, err := s.rows(ctx)
	if err != nil {
		return err
	}
	from, to, err := s.occurred(ctx)
	if err != nil {
		return err
	}
	t := table{
		title:  fmt.Sprintf("Searches of one organization, %s events", number(float64(rows))),
		header: []string{"filter", "newest 50, p50 ms", "p95 ms", "histogram of all of them, p50 ms", "p95 ms"},
		notes: []string{
			"Each time with the values of another event, drawn from all of them; what the console and the API ask, without HTTP.",
			"The histogram is asked after the page, which for a text has remembered where it is not.",
		},
	}
	times := scale(b, 40, 10)
	some, err := s.some(ctx, times)
	if err != nil {
		return err
	}
	var all []found
	for _, q := range searches {
		f := found{Filter: q.name, Rows: rows}
		var pages, histograms []float64
		for i := range some {
			question := store.Question{Organization: "acme", Newest: true, Limit: 50}
			q.set(&question.Filter, &some[i])
			began := time.Now()
			found := 0
			if err := s.store.Events(ctx, &question, func(*codec.Stored) error { found++; return nil }); err != nil {
				return fmt.Errorf("search by %s: %w", q.name, err)
			}
			pages = append(pages, ms(time.Since(began)))
			question.Limit, question.Newest = 0, false
			question.Start, question.End = from, to
			began = time.Now()
			bars, err := s.store.Histogram(ctx, &question, to.Sub(from)/100)
			if err != nil {
				return fmt.Errorf("histogram by %s: %w", q.name, err)
			}
			if found > 0 && len(bars) == 0 {
				return fmt.Errorf("histogram by %s: a page of %d events, and none counted", q.name, found)
			}
			histograms = append(histograms, ms(time.Since(began)))
		}
		f.PageP50, f.PageP95 = quantile(pages, 0.5), quantile(pages, 0.95)
		f.HistogramP50, f.HistogramP95 = quantile(histograms, 0.5), quantile(histograms, 0.95)
		all = append(all, f)
		row := []string{q.name, fmt.Sprintf("%.0f", f.PageP50), fmt.Sprintf("%.0f", f.PageP95), fmt.Sprintf("%.0f", f.HistogramP50), fmt.Sprintf("%.0f", f.HistogramP95)}
		t.rows = append(t.rows, row)
		b.say("search %v", row)
	}
	b.result.add("search", all, t)
	return s.read(ctx)
}

// occurred is the time in which the events of the organization occurred.
func (s *stack) occurred(ctx context.Context) (from, to time.Time, err error) {
	err = s.store.Conn().QueryRow(ctx, "SELECT min(occurred_at), max(occurred_at) FROM audit_events WHERE organization = 'acme'").Scan(&from, &to)
	if err != nil {
		return from, to, fmt.Errorf("ask when the events occurred: %w", err)
	}
	return from, to.Add(time.Microsecond), nil
}

// some events that are there, each another: the inserter stores its pool again and again.
func (s *stack) some(ctx context.Context, n int) ([]schema.Event, error) {
	rows, err := s.store.Conn().Query(ctx, `SELECT trail, source, event, action, outcome, actor_id, target_type, target_id, target_name, app_id, ip, data_type
FROM audit_events WHERE organization = 'acme' AND cityHash64(id) % 1009 = 7 ORDER BY cityHash64(id, 1) LIMIT 1 BY id LIMIT ?`, n)
	if err != nil {
		return nil, fmt.Errorf("draw events: %w", err)
	}
	defer rows.Close()
	var all []schema.Event
	for rows.Next() {
		var e schema.Event
		var trail, outcome string
		if err := rows.Scan(&trail, &e.Source, &e.Event, &e.Action, &outcome, &e.Actor.ID, &e.Target.Type, &e.Target.ID, &e.Target.Name, &e.AppID, &e.Context.IP, &e.DataType); err != nil {
			return nil, fmt.Errorf("draw events: %w", err)
		}
		e.Trail, e.Outcome = schema.Trail(trail), schema.Outcome(outcome)
		all = append(all, e)
	}
	return all, rows.Err()
}
