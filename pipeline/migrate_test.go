package pipeline_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/clickhouse"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

func openEngine(t *testing.T, dir string) (*engine.Engine, *store.Store) {
	t.Helper()
	e, err := engine.Start(t.Context(), engine.Options{Dir: dir, Command: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Options{URL: e.URL(), Username: e.Username(), Password: e.Password()})
	if err != nil {
		_ = e.Close()
		t.Fatal(err)
	}
	return e, s
}

// insertMessage stores a message of events as the writer does.
func insertMessage(t *testing.T, s *store.Store, seq uint64) {
	t.Helper()
	block := codec.NewBlock()
	source := sample.New(seq, nil)
	for range 100 {
		e := source.Next()
		block.Append(&e)
	}
	var in codec.Insert
	in.Add(codec.Part{Organization: "acme", Trail: schema.Activity, RecordedAt: time.Now(), StreamSeq: seq, ExpiresAt: time.Now().AddDate(2, 0, 0), Block: block})
	if err := s.Insert(t.Context(), fmt.Sprint("token ", seq), &in); err != nil {
		t.Fatal(err)
	}
}

// A data directory of every older schema is brought up to date, by several processes at once, with what is in it; and
// a process of the older one goes on beside.
func TestOlderSchemasAreUpgraded(t *testing.T) {
	t.Parallel()
	all, err := clickhouse.Tables{}.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for known := 1; known < len(all); known++ {
		t.Run(fmt.Sprintf("of version %d", known), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "clickhouse")
			e, s := openEngine(t, dir)
			older := func(do func(query string)) { // what the older binary's Migrate did
				do("CREATE TABLE IF NOT EXISTS kansa_migrations (version UInt32, name String, applied_at DateTime('UTC') DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version")
				for _, m := range all[:known] {
					for _, statement := range m.Statements {
						do(statement)
					}
					do(fmt.Sprintf("INSERT INTO kansa_migrations (version, name) VALUES (%d, '%s')", m.Version, m.Name))
				}
			}
			do := func(query string) {
				t.Helper()
				if err := s.Conn().Exec(t.Context(), query); err != nil {
					t.Fatalf("%s: %v", query, err)
				}
			}
			older(do)
			do(`INSERT INTO audit_events (organization, trail, recorded_at, stream_seq, batch_index, id, occurred_at, source, event, action, outcome, expires_at)
				SELECT 'acme', 'activity', now64(6), 1, number, generateUUIDv4(), now64(6), 'reports', 'report.published', 'publish', 'success', now() + INTERVAL 2 YEAR FROM numbers(100)`)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}

			e, s = openEngine(t, dir)
			defer func() {
				_ = s.Close()
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}()
			var several errgroup.Group
			for range 3 {
				several.Go(func() error { return s.Migrate(t.Context()) })
			}
			var err error
			await.Return(t, await.Limit, "all migrations to end", func() { err = several.Wait() })
			if err != nil {
				t.Fatal(err)
			}
			older(do) // it starts again, and harms nothing
			insertMessage(t, s, 2)
			if err := s.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
			rows, distinct, err := pipelinetest.Stored(t, s)
			if err != nil || rows != 200 || distinct != 200 {
				t.Errorf("%d rows, %d distinct, %v; want 200", rows, distinct, err)
			}
			var newest uint32
			var counted uint64
			if err := s.Conn().QueryRow(t.Context(), "SELECT max(version) FROM kansa_migrations").Scan(&newest); err != nil || int(newest) != len(all) {
				t.Errorf("version %d, %v; want %d", newest, err, len(all))
			}
			if err := s.Conn().QueryRow(t.Context(), "SELECT sum(events) FROM audit_event_counts").Scan(&counted); err != nil || counted < 100 {
				t.Errorf("%d events are counted, %v", counted, err)
			}
		})
	}
}

// The statements for a cluster are read by the real parser. Running them takes several servers and Keeper, which are not
// to be had here.
func TestStatementsOfAClusterAreSQL(t *testing.T) {
	t.Parallel()
	e, s := openEngine(t, filepath.Join(t.TempDir(), "clickhouse"))
	defer func() {
		_ = s.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	tables := clickhouse.Tables{Cluster: "kansa's own"}
	all, err := tables.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	statements := []string{
		"CREATE DATABASE IF NOT EXISTS kansa" + tables.OnCluster(),
		"CREATE TABLE IF NOT EXISTS kansa_migrations" + tables.OnCluster() + " (version UInt32) ENGINE = " + tables.Engine("ReplacingMergeTree", "kansa_migrations", true) + " ORDER BY version",
		"DELETE FROM " + tables.Local("audit_events") + " WHERE organization = 'acme'",
		"ALTER TABLE " + tables.Local("audit_events") + " UPDATE expires_at = now() WHERE organization = 'acme'",
		"OPTIMIZE TABLE " + tables.Local("audit_events") + " PARTITION 202611 FINAL",
	}
	for _, m := range all {
		statements = append(statements, m.Statements...)
	}
	distributed, replicated := 0, 0
	for _, statement := range statements {
		if err := s.Conn().Exec(t.Context(), "EXPLAIN AST "+statement); err != nil {
			t.Errorf("%v\n%s", err, statement)
		}
		if !strings.Contains(statement, "ON CLUSTER `kansa's own`") {
			t.Errorf("it is not for the cluster: %s", statement)
		}
		distributed += strings.Count(statement, "= Distributed('kansa\\'s own', ")
		replicated += strings.Count(statement, "= Replicated")
	}
	if distributed != 2 || replicated != 3 {
		t.Errorf("%d tables are distributed, %d replicated; want 2 and 3", distributed, replicated)
	}
}
