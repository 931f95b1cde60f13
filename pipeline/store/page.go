package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// A page is asked for in two steps: first where its events lie in the sorting key, from the columns it is chosen by,
// then these few rows with all their columns.
//
// Without a text, the first step reads each trail in the order of the sorting key, which has the trail before the time,
// and ends when there are enough: a common value is found at once, and the granules that do not have a rare one are
// passed over by its index. Both trails together are as exact as one sorted table.
//
// A text has no index, and reading in order costs half as much again as reading just so. Hence it is looked for among
// the events that are nearest, and then, if they do not fill the page, in all at once.

const (
	// pageRows is how many rows a page may have; more are read in one step.
	pageRows = 2000
	// nearRows is among how many events a text is looked for first.
	nearRows = 1 << 18
)

// place is where an event of an organization lies in the sorting key.
type place struct {
	trail string
	at    int64 // microseconds
	seq   uint64
	index uint32
}

const selectPlace = "SELECT toString(trail), toUnixTimestamp64Micro(recorded_at), stream_seq, batch_index FROM "

// Settings of a search for a text: that no event of a granule has it is remembered, for the next page and the histogram.
var textSettings = clickhouse.Settings{
	"max_execution_time": 60, "optimize_read_in_order": 0, "use_query_condition_cache": 1,
	"use_top_k_dynamic_filtering": 0, "use_skip_indexes_for_top_k": 0,
}

func (s *Store) page(ctx context.Context, q *Question, each func(*codec.Stored) error) error {
	find := s.inOrder
	if q.Text != "" {
		find = s.withText
	}
	places, err := find(ctx, q)
	if err != nil || len(places) == 0 {
		return err
	}
	// What is stored twice has two places that are equal, until a merge: it is told as often as it was found.
	found := make(map[place][]*codec.Stored, len(places))
	err = s.stored(ctx, at(q.Organization, places), func(e *codec.Stored) error {
		p := place{string(e.Trail), e.RecordedAt.UnixMicro(), e.StreamSeq, e.BatchIndex}
		found[p] = append(found[p], e)
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range places {
		rows := found[p]
		if len(rows) == 0 { // its time came between the steps
			continue
		}
		if err := each(rows[0]); err != nil {
			return err
		}
		if len(rows) > 1 {
			found[p] = rows[1:]
		}
	}
	return nil
}

// at is the condition for the events of places, without the trail: a stream's places are those of both, and a shorter key
// costs less to compare.
func at(organization string, places []place) string {
	var b strings.Builder
	b.WriteString(" WHERE organization = " + quoteString(organization) + " AND (recorded_at, stream_seq, batch_index) IN (")
	for i, p := range places {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "('%s',%d,%d)", time.UnixMicro(p.at).UTC().Format("2006-01-02 15:04:05.000000"), p.seq, p.index)
	}
	b.WriteByte(')')
	return b.String()
}

// eachTrail is a query of several, one for each trail that q asks for, with as many rows as the page reaches to.
func (q *Question) eachTrail(columns string, rows int) string {
	one := *q
	var all []string
	for _, trail := range schema.Trails {
		if q.Trail == "" || q.Trail == trail {
			one.Trail = trail
			all = append(all, fmt.Sprintf("SELECT %s FROM audit_events%s%s LIMIT %d", columns, one.where(), q.order(), rows))
		}
	}
	return "(" + strings.Join(all, " UNION ALL ") + ")"
}

func (s *Store) inOrder(ctx context.Context, q *Question) ([]place, error) {
	return s.places(ctx, questionSettings,
		selectPlace+q.eachTrail("trail, recorded_at, stream_seq, batch_index", q.Offset+q.Limit)+q.order()+q.limit())
}

func (s *Store) withText(ctx context.Context, q *Question) ([]place, error) {
	near, err := s.near(ctx, q)
	if err != nil {
		return nil, err
	}
	if near != "" {
		places, err := s.places(ctx, textSettings, selectPlace+"audit_events"+q.where()+near+q.order()+q.limit())
		if err != nil || len(places) == q.Limit {
			return places, err
		}
	}
	return s.places(ctx, textSettings, selectPlace+"audit_events"+q.tail())
}

// near is the condition for the events that come first in the order of q, whatever they are; empty if that would be all.
// It is one on the time alone: of events with equal times it has all.
func (s *Store) near(ctx context.Context, q *Question) (string, error) {
	all := &Question{Organization: q.Organization, Filter: schema.Filter{Trail: q.Trail}, After: q.After, UpTo: q.UpTo, Newest: q.Newest}
	order, within := " ORDER BY recorded_at", " AND recorded_at <= "
	if q.Newest {
		order, within = " ORDER BY recorded_at DESC", " AND recorded_at >= "
	}
	rows, err := s.conn.Query(clickhouse.Context(ctx, clickhouse.WithSettings(questionSettings)), fmt.Sprintf(
		"SELECT recorded_at FROM %s%s LIMIT 1 OFFSET %d", all.eachTrail("recorded_at", nearRows+1), order, nearRows))
	if err != nil {
		return "", fmt.Errorf("ask for the nearest events: %w", err)
	}
	defer rows.Close()
	condition := ""
	for rows.Next() {
		var last time.Time
		if err := rows.Scan(&last); err != nil {
			return "", fmt.Errorf("ask for the nearest events: %w", err)
		}
		condition = within + micros(last)
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("ask for the nearest events: %w", err)
	}
	return condition, nil
}

func (s *Store) places(ctx context.Context, settings clickhouse.Settings, query string) ([]place, error) {
	rows, err := s.conn.Query(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), query)
	if err != nil {
		return nil, fmt.Errorf("ask where events are: %w", err)
	}
	defer rows.Close()
	var all []place
	for rows.Next() {
		var p place
		if err := rows.Scan(&p.trail, &p.at, &p.seq, &p.index); err != nil {
			return nil, fmt.Errorf("ask where events are: %w", err)
		}
		all = append(all, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("ask where events are: %w", err)
	}
	return all, nil
}
