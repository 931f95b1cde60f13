package store

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/schema"
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
