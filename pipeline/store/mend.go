package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Collapse merges the table's partition of a time until no row is there twice. It rewrites the month: it is
// for repairs.
func (s *Store) Collapse(ctx context.Context, at time.Time) error {
	if err := s.conn.Exec(ctx, fmt.Sprintf("OPTIMIZE TABLE %s PARTITION %s FINAL", s.tables.Local("audit_events"), at.UTC().Format("200601"))); err != nil {
		return fmt.Errorf("collapse what is stored twice in %s: %w", at.UTC().Format("2006-01"), err)
	}
	return nil
}

// RemoveMessage removes the rows of one message from the table: it is for repairs.
func (s *Store) RemoveMessage(ctx context.Context, p schema.Partition, seq uint64) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"mutations_sync": 2}))
	if err := s.conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s WHERE organization = %s AND trail = %s AND recorded_at >= %s AND recorded_at < %s AND stream_seq = %d",
		s.tables.Local("audit_events"), quoteString(p.Organization), quoteString(string(p.Trail)), micros(p.Hour), micros(p.End()), seq)); err != nil {
		return fmt.Errorf("remove the rows of message %d: %w", seq, err)
	}
	return nil
}

// Recount has the hourly counts of a partition's trail be what the table holds, for the hours of the clock that it lies
// in: it is for repairs, of hours to which nothing is added any more. What differs is added, less than nothing as the
// number whose sum with the rest is right in 64 bits: one insert, which leaves nothing half done.
func (s *Store) Recount(ctx context.Context, p schema.Partition) error {
	if err := s.AwaitInserts(ctx); err != nil {
		return err
	}
	from, to := p.Hour.Truncate(time.Hour), p.End().Add(time.Hour-1).Truncate(time.Hour)
	where := fmt.Sprintf("organization = %s AND trail = %s", quoteString(p.Organization), quoteString(string(p.Trail)))
	const key = "organization, trail, hour, source, event, action, outcome"
	if err := s.conn.Exec(ctx, fmt.Sprintf(`INSERT INTO audit_event_counts (%[1]s, events, expires_at)
SELECT %[1]s, toUInt64(sum(n)), max(expires) FROM (
    SELECT organization, trail, toStartOfHour(recorded_at) AS hour, source, event, action, outcome, toInt64(count()) AS n, max(expires_at) AS expires
    FROM audit_events FINAL WHERE %[2]s AND recorded_at >= %[3]s AND recorded_at < %[4]s GROUP BY %[1]s
    UNION ALL
    SELECT %[1]s, -toInt64(sum(events)) AS n, max(expires_at) AS expires
    FROM audit_event_counts WHERE %[2]s AND hour >= %[3]s AND hour < %[4]s GROUP BY %[1]s
) GROUP BY %[1]s HAVING sum(n) != 0`, key, where, micros(from), micros(to))); err != nil {
		return fmt.Errorf("count the events of %s anew: %w", p.Path(), err)
	}
	return nil
}

// RemoveEvents removes rows of a partition: it is for repairs.
func (s *Store) RemoveEvents(ctx context.Context, p schema.Partition, places []codec.Place) error {
	if len(places) == 0 {
		return nil
	}
	pairs := make([]string, len(places))
	for i, at := range places {
		pairs[i] = fmt.Sprintf("(%d,%d)", at.StreamSeq, at.BatchIndex)
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"mutations_sync": 2, "max_query_size": 16 << 20}))
	if err := s.conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s WHERE organization = %s AND trail = %s AND recorded_at >= %s AND recorded_at < %s AND (stream_seq, batch_index) IN (%s)",
		s.tables.Local("audit_events"), quoteString(p.Organization), quoteString(string(p.Trail)), micros(p.Hour), micros(p.End()), strings.Join(pairs, ","))); err != nil {
		return fmt.Errorf("remove %d events of %s: %w", len(places), p, err)
	}
	return nil
}

// Counted returns the hourly counts of an hour, for each organization and trail that has any.
func (s *Store) Counted(ctx context.Context, hour time.Time) (counts []rollup.Count, err error) {
	err = s.each(ctx, "SELECT organization, trail, sum(events) FROM audit_event_counts WHERE hour = "+micros(hour)+" GROUP BY organization, trail HAVING sum(events) != 0", func(scan func(...any) error) error {
		var c rollup.Count
		var trail string
		err := scan(&c.Organization, &trail, &c.Rows)
		c.Trail = schema.Trail(trail)
		counts = append(counts, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the hourly counts of %s: %w", hour, err)
	}
	return counts, nil
}
