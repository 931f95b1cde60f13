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
// the events that are nearest, and while they do not fill the page, further and further off.

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
	err = s.stored(ctx, q.urgency(), at(q.Organization, places), func(e *codec.Stored) error {
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
	return s.places(ctx, q.urgency().settings(questionSettings),
		selectPlace+q.eachTrail("trail, recorded_at, stream_seq, batch_index", q.Offset+q.Limit)+q.order()+q.limit())
}

func (s *Store) withText(ctx context.Context, q *Question) ([]place, error) {
	if q.Offset > pageRows { // not worth handing over one by one
		return s.places(ctx, searching.settings(textSettings), selectPlace+"audit_events"+q.tail())
	}
	nearest, all, err := s.nearest(ctx, q)
	if err != nil {
		return nil, err
	}
	stretches := []stretch{{}}
	if !all {
		stretches = nearest.widening(q.Newest)
	}
	part := *q
	part.Offset = 0
	var found []place
	for _, part.within = range stretches {
		part.Limit = q.Offset + q.Limit - len(found)
		places, err := s.places(ctx, searching.settings(textSettings), selectPlace+"audit_events"+part.tail())
		if err != nil {
			return nil, err
		}
		found = append(found, places...)
		if len(places) == part.Limit {
			break
		}
	}
	return found[min(q.Offset, len(found)):], nil
}

// nearest is the time of the events that come first in the order of q, whatever they are, and whether these are all. Of
// events with equal times it has all.
func (s *Store) nearest(ctx context.Context, q *Question) (t stretch, all bool, err error) {
	anything := &Question{Organization: q.Organization, Filter: schema.Filter{Trail: q.Trail}, After: q.After, UpTo: q.UpTo, Newest: q.Newest}
	order := " ORDER BY recorded_at"
	if q.Newest {
		order += " DESC"
	}
	var rows uint64
	err = s.reads.QueryRow(clickhouse.Context(ctx, clickhouse.WithSettings(searching.settings(questionSettings))), fmt.Sprintf(
		"SELECT count(), min(recorded_at), max(recorded_at) FROM (SELECT recorded_at FROM %s%s LIMIT %d)",
		anything.eachTrail("recorded_at", nearRows), order, nearRows)).Scan(&rows, &t.from, &t.to)
	if err != nil {
		return stretch{}, false, fmt.Errorf("ask for the nearest events: %w", err)
	}
	t.to = t.to.Add(time.Microsecond)
	return t, rows < nearRows, nil
}

func (s *Store) places(ctx context.Context, settings clickhouse.Settings, query string) ([]place, error) {
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), query)
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
