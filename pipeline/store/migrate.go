package store

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Migrate brings the tables up to date. Several processes may do so at once, and older ones may be at work: each statement
// is harmless when repeated, and adds what an older process does not know and does not miss.
func (s *Store) Migrate(ctx context.Context) error {
	table := fmt.Sprintf(`CREATE TABLE IF NOT EXISTS kansa_migrations%s
(version UInt32, name String, applied_at DateTime('UTC') DEFAULT now())
ENGINE = %s ORDER BY version`, s.tables.OnCluster(), s.tables.Engine("ReplacingMergeTree", "kansa_migrations", true))
	if err := s.conn.Exec(ctx, table); err != nil {
		return fmt.Errorf("create the table of migrations: %w", err)
	}
	var newest uint32
	if err := s.conn.QueryRow(ctx, "SELECT max(version) FROM kansa_migrations").Scan(&newest); err != nil {
		return fmt.Errorf("read the table of migrations: %w", err)
	}
	all, err := s.tables.Migrations()
	if err != nil {
		return err
	}
	for _, m := range all {
		if uint32(m.Version) <= newest {
			continue
		}
		for _, statement := range m.Statements {
			if err := s.conn.Exec(ctx, statement); err != nil {
				return fmt.Errorf("migration %d (%s): %w", m.Version, m.Name, err)
			}
		}
		now := clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"async_insert": 0}))
		if err := s.conn.Exec(now, "INSERT INTO kansa_migrations (version, name) VALUES (?, ?)", uint32(m.Version), m.Name); err != nil {
			return fmt.Errorf("record migration %d: %w", m.Version, err)
		}
		s.log.Info("migrated", slog.Int("version", m.Version), slog.String("name", m.Name))
	}
	return nil
}

// clusterSettings are those of every statement to a cluster. An insert is answered when most replicas of each shard have
// it, and what is read afterwards has it, whichever replica answers: what the writer looks up and what the rollup counts
// has to be exact. The price is that inserts into a shard follow one another.
func clusterSettings(cluster string) clickhouse.Settings {
	if cluster == "" {
		return nil
	}
	return clickhouse.Settings{
		"insert_quorum": "auto", "insert_quorum_parallel": 0, "select_sequential_consistency": 1,
		"insert_distributed_sync": 1, "distributed_product_mode": "global", "mutations_sync": 2,
	}
}
