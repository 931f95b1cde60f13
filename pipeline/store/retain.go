package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// SetExpiry has the events of an organization that are stored, and their hourly counts, expire as the retention says now.
// It rewrites a column of them, in the engine's own time.
func (s *Store) SetExpiry(ctx context.Context, organization string, days int, held bool) error {
	// A count expires with the last event that it may have.
	for table, recorded := range map[string]string{"audit_events": "toUnixTimestamp(recorded_at)", "audit_event_counts": "toUnixTimestamp(hour) + 3600"} {
		at := fmt.Sprintf("toDateTime(%d, 'UTC')", schema.Forever.Unix())
		if !held {
			at = fmt.Sprintf("toDateTime(least(%s + %d, %d), 'UTC')", recorded, int64(days)*24*60*60, schema.Forever.Unix())
		}
		if err := s.conn.Exec(ctx, "ALTER TABLE "+s.tables.Local(table)+" UPDATE expires_at = "+at+" WHERE organization = "+quoteString(organization)); err != nil {
			return fmt.Errorf("set when the events of %s expire in %s: %w", organization, table, err)
		}
	}
	return nil
}

// RemoveBefore removes the events of a trail that were recorded before a time.
func (s *Store) RemoveBefore(ctx context.Context, organization string, trail schema.Trail, before time.Time) error {
	if err := s.conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s WHERE organization = %s AND trail = %s AND recorded_at < %s",
		s.tables.Local("audit_events"), quoteString(organization), quoteString(string(trail)), micros(before))); err != nil {
		return fmt.Errorf("remove the events of %s/%s before %s: %w", organization, trail, before.Format(time.RFC3339), err)
	}
	return nil
}
