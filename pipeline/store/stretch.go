package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// The log of an organization is read stretch by stretch of time, each by a query of its own: the sorting key has the
// trail before the time, so that the engine would sort all of it at once, in memory that grows with it. What is
// recorded meanwhile may be missing.

// stretchRows is about how many rows are sorted at once.
const stretchRows = 100_000

// stretch is a time in which events were recorded: from its begin up to and without its end. The zero value of either
// means that it is open there.
type stretch struct{ from, to time.Time }

// widening lays out all of time: t, which is open to the near side, then stretches that are longer and longer, then what is
// left. The nearest come first: the last of all time, or the first.
func (t stretch) widening(newest bool) []stretch {
	const times, stretches, longest = 8, 2, 20 * 365 * 24 * time.Hour
	var all []stretch
	long := t.to.Sub(t.from)
	if newest {
		all, t = append(all, stretch{from: t.from}), stretch{to: t.from}
	} else {
		all, t = append(all, stretch{to: t.to}), stretch{from: t.to}
	}
	for range stretches {
		if long > longest/times { // which has everything, most likely; and times have bounds
			break
		}
		long *= times
		next := t
		if newest {
			next.from = t.to.Add(-long)
			t.to = next.from
		} else {
			next.to = t.from.Add(long)
			t.from = next.to
		}
		all = append(all, next)
	}
	return append(all, t)
}

// stretches lays out what q asks for, in its order. None means that it is best read at once: all of one trail is in
// order already, a limit bounds what is sorted, and what is little needs no more.
func (s *Store) stretches(ctx context.Context, q *Question) ([]stretch, error) {
	if q.Trail != "" || q.Limit > 0 {
		return nil, nil
	}
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(streaming.settings(questionSettings))),
		"SELECT toUnixTimestamp(toStartOfMinute(recorded_at)) AS minute, count() FROM audit_events"+q.where()+" GROUP BY minute ORDER BY minute")
	if err != nil {
		return nil, fmt.Errorf("count events by minutes: %w", err)
	}
	defer rows.Close()
	var all []stretch
	var open uint64 // rows of the last of all, to which more may be added
	for rows.Next() {
		var seconds uint32
		var n uint64
		if err := rows.Scan(&seconds, &n); err != nil {
			return nil, fmt.Errorf("count events by minutes: %w", err)
		}
		minute := time.Unix(int64(seconds), 0).UTC()
		if len(all) > 0 && open+n <= stretchRows {
			all[len(all)-1].to = minute.Add(time.Minute)
			open += n
			continue
		}
		pieces := (n + stretchRows - 1) / stretchRows
		each := time.Minute / time.Duration(pieces)
		for i := range pieces {
			all = append(all, stretch{minute.Add(time.Duration(i) * each), minute.Add(time.Duration(i+1) * each)})
		}
		all[len(all)-1].to = minute.Add(time.Minute)
		open = n/pieces + 1
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count events by minutes: %w", err)
	}
	if len(all) < 2 {
		return nil, nil
	}
	if q.Newest {
		slices.Reverse(all)
	}
	return all, nil
}

// in is q of a stretch alone.
func (q *Question) in(t stretch) *Question {
	part := *q
	part.within = t
	return &part
}

// stretched is one text after another.
type stretched struct {
	text io.ReadCloser
	rest []stretch
	open func(stretch) (io.ReadCloser, error)
}

func (r *stretched) Read(p []byte) (int, error) {
	for {
		n, err := r.text.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		if len(r.rest) == 0 {
			return 0, io.EOF
		}
		if err := r.text.Close(); err != nil {
			return 0, err
		}
		text, err := r.open(r.rest[0])
		if err != nil {
			return 0, err
		}
		r.text, r.rest = text, r.rest[1:]
	}
}

func (r *stretched) Close() error { return r.text.Close() }
