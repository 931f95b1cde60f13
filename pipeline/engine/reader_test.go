package engine

import (
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// TestReader tries what gets at rows that a reader may not see.
func TestReader(t *testing.T) {
	t.Parallel()
	e := sharedEngine(t)
	owner := open(t, e, nil)
	run(t, owner, "CREATE TABLE readers_rows (org UInt8) ENGINE = MergeTree ORDER BY org")
	run(t, owner, "CREATE VIEW readers_view AS SELECT * FROM readers_rows")
	run(t, owner, "INSERT INTO readers_rows VALUES (1), (2), (3)")
	auth := func(o *clickhouse.Options) { o.Auth = clickhouse.Auth{Username: "reader", Password: "look"} }
	reader := open(t, e, func(o *clickhouse.Options) {
		auth(o)
		o.Settings = clickhouse.Settings{"max_execution_time": 60}
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	})
	for _, query := range []string{
		"SELECT count() FROM readers_rows", "SELECT count() FROM default.`readers_rows`", "SELECT count() FROM readers_view",
		"WITH x AS (SELECT * FROM readers_rows) SELECT count() FROM x", "SELECT toUInt64(max(org)) FROM readers_rows", "SELECT count() FROM view(SELECT * FROM readers_rows)",
		"SELECT count() FROM numbers(4) WHERE number IN readers_rows", "SELECT count() FROM readers_rows AS x CROSS JOIN readers_rows AS y",
		"SELECT uniq(org) FROM readers_rows WHERE org < {n:UInt8}",
	} {
		if got := one[uint64](t, reader, query, clickhouse.Named("n", "9")); got != 1 {
			t.Errorf("%s: got %d, want 1", query, got)
		}
	}
	run(t, reader, "DESCRIBE TABLE readers_rows")
	for _, query := range []string{
		"INSERT INTO readers_rows VALUES (1)", "INSERT INTO readers_rows SELECT 1", "DROP TABLE readers_rows", "CREATE TABLE x (n UInt8) ENGINE = Memory",
		"SET readonly = 0", "SELECT count() FROM readers_rows SETTINGS additional_table_filters = {}", "SELECT 1 SETTINGS use_query_cache = 1",
		"SELECT count() FROM merge('default', 'readers_rows')", "SELECT count() FROM MERGE /* x */ ('default', 'readers_rows')", "SELECT count() FROM `merge`('default', 'readers_rows')",
		"SELECT count() FROM mergeTreeIndex('default', 'readers_rows')", "SELECT * FROM file('/etc/hostname', 'LineAsString')", "SELECT file('/etc/hostname')",
		"SELECT * FROM system.parts", "SELECT table_rows FROM information_schema.tables", "SELECT * FROM `system`.parts", "SELECT * FROM `sys\\x74em`.parts", "SELECT * FROM \"system\" . parts", "SHOW PROCESSLIST", "EXPLAIN SELECT 1",
		"SELECT * FROM {x:Identifier}.parts", "USE system", "SYSTEM FLUSH LOGS", "DESCRIBE TABLE merge('default', 'readers_rows')",
		"SELECT * FROM remote('127.0.0.1', default.readers_rows)", "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
	} {
		wantCode(t, reader.Exec(t.Context(), query), codeReadonly)
	}
	for name, value := range map[string]any{"additional_table_filters": "{}", "readonly": 0, "use_query_cache": 1, "dialect": "kusto", "no_such": 1} {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{name: value}))
		wantCode(t, reader.Exec(ctx, "SELECT count() FROM readers_rows"), codeReadonly)
	}
	system := open(t, e, func(o *clickhouse.Options) { auth(o); o.Auth.Database = "system" })
	wantCode(t, system.Ping(t.Context()), codeReadonly)
	if got := one[uint64](t, owner, "SELECT count() FROM readers_rows"); got != 3 {
		t.Errorf("there are %d rows, want 3", got)
	}
}
