package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// secret is in every row of globex and in no row of acme.
const secret = "globexsecret"

var tenants sync.Once

// readerTables makes the tables of two tenants, and some that readers may not read.
func readerTables(t *testing.T) *Engine {
	t.Helper()
	e := sharedEngine(t)
	tenants.Do(func() {
		owner := open(t, e, nil)
		for _, statement := range []string{
			"CREATE DATABASE tenants",
			"CREATE TABLE tenants.events (organization LowCardinality(String), at DateTime64(6, 'UTC'), id UInt64, actor String, data String, m Map(String, String), kind LowCardinality(String), INDEX by_actor actor TYPE bloom_filter GRANULARITY 1) " +
				"ENGINE = ReplacingMergeTree ORDER BY (organization, at, id)",
			"CREATE TABLE tenants.counts (organization LowCardinality(String), n UInt64, actor String) ENGINE = SummingMergeTree(n) ORDER BY (organization, actor)",
			"CREATE MATERIALIZED VIEW tenants.counts_view TO tenants.counts AS SELECT organization, count() AS n, actor FROM tenants.events GROUP BY organization, actor",
			"CREATE TABLE tenants.migrations (version UInt32, name String) ENGINE = MergeTree ORDER BY version",
			"CREATE VIEW tenants.leak AS SELECT * FROM tenants.events",
			"CREATE TABLE tenants.`other.table` (s String) ENGINE = MergeTree ORDER BY s",
			"CREATE TABLE tenants.joined (id UInt64, s String) ENGINE = Join(ANY, LEFT, id)",
			"CREATE TABLE default.elsewhere (s String) ENGINE = MergeTree ORDER BY s",
			"INSERT INTO tenants.events SELECT 'acme', toDateTime64('2026-11-22 04:05:06', 6, 'UTC') + number, number, '1', '1', map('a', '1'), '1' FROM numbers(3)",
			"INSERT INTO tenants.events SELECT 'globex', toDateTime64('2026-11-22 04:05:06', 6, 'UTC') + number, number, 'globexsecret', 'globexsecret', map('globexsecret', 'globexsecret'), 'globexsecret' FROM numbers(5)",
			"OPTIMIZE TABLE tenants.events FINAL",
			"INSERT INTO tenants.migrations VALUES (1, 'globexsecret')", "INSERT INTO tenants.joined VALUES (1, 'globexsecret')",
			"INSERT INTO tenants.`other.table` VALUES ('globexsecret')", "INSERT INTO default.elsewhere VALUES ('globexsecret')",
		} {
			run(t, owner, statement)
		}
	})
	return e
}

// as sends a statement as a reader.
func as(t testing.TB, e *Engine, reader, query string, params url.Values) (status int, body string) {
	t.Helper()
	res := do(t, e, http.MethodPost, "/?"+params.Encode(), query, http.Header{"Authorization": nil, "X-Clickhouse-User": {reader}, "X-Clickhouse-Key": {reader}})
	return res.StatusCode, text(t, res)
}

// refusedStatements are what a reader must not get anything by.
var refusedStatements = []string{
	// Files.
	"SELECT * FROM file('/etc/hostname', 'LineAsString')",
	"SELECT * FROM FILE('/etc/hostname', 'LineAsString', 's String')",
	"SELECT file('/etc/hostname')",
	"SELECT File('/etc/hostname')",
	"SELECT /* x */ file /* y */ ('/etc/hostname')",
	"SELECT * APPLY(file) FROM (SELECT '/etc/hostname' AS x)",
	"SELECT * APPLY file FROM (SELECT '/etc/hostname' AS x)",
	"SELECT COLUMNS('x') APPLY(`file`) FROM (SELECT '/etc/hostname' AS x)",
	"SELECT `file`('/etc/hostname')",
	"SELECT arrayMap(x -> file(x), ['/etc/hostname'])",
	"SELECT * FROM '/etc/hostname'",
	"SELECT * FROM `/etc/hostname`",
	"SELECT * FROM \"../credentials.json\"",
	"SELECT 1 INTO OUTFILE '/tmp/kansa-outfile'",
	"SELECT 1 INTO OUTFILE '/tmp/kansa-outfile' FORMAT CSV",
	"INSERT INTO events FROM INFILE '/etc/hostname' FORMAT CSV",
	"SELECT * FROM sqlite('/tmp/x.db', 't')",
	"SELECT * FROM filesystem('/etc')",
	"SELECT * FROM fileCluster('default', '/etc/hostname', 'LineAsString')",
	"SELECT * FROM arrowstream('/etc/hostname')",
	"SELECT * FROM icebergLocal('/etc')",
	"DESCRIBE TABLE file('/etc/hostname', 'LineAsString')",
	"DESC file('/etc/hostname')",
	"SELECT catboostEvaluate('/etc/hostname', 1)",
	// The network.
	"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
	"SELECT * FROM urlCluster('default', 'http://127.0.0.1:1/', 'LineAsString')",
	"SELECT * FROM s3('http://127.0.0.1:1/x', 'LineAsString')",
	"SELECT * FROM gcs('http://127.0.0.1:1/x')",
	"SELECT * FROM hdfs('hdfs://127.0.0.1:1/x', 'TSV', 's String')",
	"SELECT * FROM azureBlobStorage('x', 'y', 'z')",
	"SELECT * FROM deltaLake('http://127.0.0.1:1/x')",
	"SELECT * FROM remote('127.0.0.1', tenants.events)",
	"SELECT * FROM remoteSecure('127.0.0.1', tenants.events)",
	"SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
	"SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
	"SELECT * FROM mongodb('127.0.0.1:1', 'd', 't', 'u', 'p', 's String')",
	"SELECT * FROM redis('127.0.0.1:1', 'k', 'k String')",
	"SELECT * FROM odbc('DSN=x', 't')",
	"SELECT * FROM jdbc('x', 't')",
	"SELECT hasColumnInTable('127.0.0.1:1', 'u', 'p', 'd', 't', 'c')",
	"SELECT hasColumnInTable('tenants', 'migrations', 'name')",
	"SELECT reverseDNSQuery('127.0.0.1')",
	"SELECT aiGenerate('x', 'y')",
	"SELECT * APPLY(aiEmbed) FROM (SELECT 'x')",
	"SELECT * FROM cluster('default', tenants.events)",
	"SELECT * FROM clusterAllReplicas('default', tenants.events)",
	// Programs and strings that become queries.
	"SELECT * FROM executable('ls', 'TSV', 's String')",
	"SELECT * FROM eval('SELECT 1')",
	"SELECT * FROM viewExplain('EXPLAIN', '', (SELECT 1))",
	"SELECT * FROM viewIfPermitted(SELECT * FROM migrations ELSE null('s String'))",
	"SELECT * FROM fuzzQuery('SELECT 1')",
	// Tables behind the filters.
	"SELECT * FROM merge('tenants', 'events')",
	"SELECT * FROM MERGE /* x */ ('tenants', 'events')",
	"SELECT * FROM merge('events')",
	"SELECT * FROM `merge`('tenants', 'events')",
	"SELECT * FROM loop(tenants.events)",
	"SELECT * FROM mergeTreeIndex('tenants', 'events')",
	"SELECT * FROM mergeTreeProjection('tenants', 'events', 'p')",
	"SELECT * FROM mergeTreeAnalyzeIndexes('tenants', 'events')",
	"SELECT * FROM mergeTreeTextIndex('tenants', 'events', 'by_actor')",
	"SELECT * FROM dictionary('d')",
	"SELECT dictGet('d', 'a', 1)",
	"SELECT dictGetString('d', 'a', toUInt64(1))",
	"SELECT * APPLY(dictGetKeys) FROM (SELECT 1)",
	"SELECT joinGet('tenants.joined', 's', toUInt64(1))",
	"SELECT joinGetOrNull(tenants.joined, 's', toUInt64(1))",
	"SELECT * FROM input('s String')",
	// Other tables.
	"SELECT * FROM migrations",
	"SELECT * FROM tenants.migrations",
	"SELECT * FROM `tenants`.`migrations`",
	"SELECT * FROM \"tenants\" . \"migrations\"",
	"SELECT * FROM leak",
	"SELECT * FROM counts_view",
	"SELECT * FROM `other.table`",
	"SELECT count() FROM events WHERE id IN migrations",
	"WITH x AS (SELECT * FROM migrations) SELECT * FROM x",
	"SELECT (SELECT any(name) FROM migrations)",
	"SELECT * FROM events UNION ALL SELECT * FROM leak",
	"SELECT * FROM view(SELECT * FROM leak)",
	"SELECT * FROM events AS a JOIN leak AS b USING id",
	"SELECT * FROM elsewhere, default.elsewhere",
	"SELECT * FROM default.elsewhere",
	"SELECT * FROM `default`.elsewhere",
	"SELECT * FROM d\\efault.elsewhere",
	"SELECT * FROM `def\\x61ult`.elsewhere",
	"SELECT * FROM reader_system.tables",
	"DESCRIBE TABLE migrations",
	"EXISTS TABLE migrations",
	"SELECT * FROM {t:Identifier}",
	"SELECT * FROM {d:Identifier}.parts",
	"SELECT {t:Identifier} FROM events",
	"SELECT * FROM tenants.{t : Identifier}", "SELECT * FROM {t:\"Identifier\"}", "SELECT * FROM {t:`Identifier`}", "SELECT * FROM {t:/**/identifier}",
	// Columns that count the rows of others.
	"SELECT max(_part_offset) FROM events", "SELECT _part_starting_offset FROM events", "SELECT `_part_offset` FROM events", "SELECT events._block_offset FROM events",
	"SELECT e.\"_block_number\" FROM events AS e", "SELECT count() FROM events WHERE _part_offset >= 0 AND toUInt8(actor) = 1",
	// System tables.
	"SELECT * FROM system.parts", "SELECT * FROM `system`.parts", "SELECT * FROM \"system\" . parts", "SELECT * FROM system/**/./**/parts", "SELECT * FROM SYSTEM.parts",
	"SELECT * FROM `sys\\x74em`.parts", "SELECT * FROM system.processes", "SELECT * FROM system.query_log", "SELECT * FROM system.users", "SELECT * FROM system.grants",
	"SELECT * FROM system.row_policies", "SELECT * FROM system.named_collections", "SELECT * FROM system.disks", "SELECT * FROM system.parts_columns", "SELECT * FROM system.columns, system.parts",
	"SELECT * FROM system.server_settings", "SELECT * FROM system.macros", "SELECT * FROM system.mutations", "SELECT * FROM system.detached_parts", "SELECT * FROM system.errors",
	"SELECT * FROM system.query_cache", "SELECT * FROM system.stack_trace", "SELECT * FROM system.data_skipping_indices", "SELECT * FROM system.no_such", "SELECT * FROM information_schema.statistics",
	"SELECT * FROM INFORMATION_SCHEMA.key_column_usage", "DESCRIBE system.parts", "EXISTS system.parts",
	// System commands and changes.
	"SYSTEM SHUTDOWN", "SYSTEM FLUSH LOGS", "SYSTEM STOP MERGES", "SYSTEM RELOAD CONFIG", "DROP TABLE events", "DROP DATABASE tenants", "TRUNCATE TABLE events", "CREATE TABLE x (n UInt8) ENGINE = Memory",
	"CREATE TEMPORARY TABLE x (n UInt8)", "CREATE VIEW x AS SELECT 1", "CREATE FUNCTION f AS x -> x", "CREATE USER x", "CREATE NAMED COLLECTION x AS a = 1", "ALTER TABLE events DELETE WHERE 1", "ALTER TABLE events UPDATE actor = '' WHERE 1",
	"DELETE FROM events WHERE 1", "UPDATE events SET actor = '' WHERE 1", "INSERT INTO events (id) VALUES (1)", "INSERT INTO events (id) SELECT 1", "INSERT INTO FUNCTION file('/tmp/kansa-outfile', 'CSV') SELECT 1", "OPTIMIZE TABLE events", "RENAME TABLE events TO x",
	"EXCHANGE TABLES events AND counts", "ATTACH TABLE x", "DETACH TABLE events", "UNDROP TABLE x", "BACKUP TABLE events TO Disk('x', 'y')", "RESTORE TABLE events FROM Disk('x', 'y')", "MOVE USER x TO y", "GRANT SELECT ON *.* TO x", "REVOKE ALL ON *.* FROM x",
	"USE default", "KILL QUERY WHERE 1", "KILL QUERY WHERE query_id = 'x' OR 1", "KILL MUTATION WHERE 1", "WATCH events", "CHECK TABLE events", "SHOW PROCESSLIST", "SHOW CREATE TABLE events", "SHOW GRANTS", "SHOW USERS",
	"SHOW TABLES FROM system", "SHOW TABLES FROM default", "SHOW COLUMNS FROM migrations", "SHOW FULL TABLES FROM `default`", "BEGIN TRANSACTION",
	// Settings.
	"SET readonly = 0", "SET additional_table_filters = {}",
	"SELECT * FROM events SETTINGS additional_table_filters = {}",
	"SELECT * FROM (SELECT * FROM events SETTINGS additional_table_filters = {})",
	"SELECT * FROM view(SELECT * FROM events SETTINGS additional_table_filters = {})",
	"WITH x AS (SELECT * FROM events SETTINGS additional_table_filters = {}) SELECT * FROM x",
	"SELECT count() FROM events WHERE id IN (SELECT id FROM events SETTINGS additional_table_filters = {})",
	"SELECT * FROM (SELECT * FROM events SETTINGS `additional_table_filters` = {})",
	"SELECT * FROM events SETTINGS readonly = 0",
	"SELECT * FROM events SETTINGS use_query_cache = 1",
	"SELECT * FROM events FORMAT CSV SETTINGS max_memory_usage = 0",
	// Filters that would come second, and plans that tell of other rows.
	"SELECT count() FROM events PREWHERE toUInt8(actor) = 1",
	"SELECT count() FROM events FINAL PREWHERE toUInt8(actor) = 1",
	"EXPLAIN SELECT * FROM events", "EXPLAIN ESTIMATE SELECT * FROM events", "EXPLAIN indexes = 1 SELECT * FROM events", "EXPLAIN PIPELINE SELECT 1", "EXPLAIN QUERY TREE SELECT 1",
	"SELECT * FROM (EXPLAIN ESTIMATE SELECT * FROM events)", "SELECT * FROM (EXPLAIN indexes = 1 SELECT * FROM events)",
	"SELECT * FROM viewExplain('EXPLAIN ESTIMATE', '', (SELECT * FROM events))",
	// Tricks with the lexer.
	"SELECT 1; SELECT 2", "SELECT 1; DROP TABLE events", "SELECT (1; DROP TABLE events)", "SELECT 1 PARALLEL WITH DROP TABLE events",
	"SELECT $$a$$", "SELECT $'$ ' $'$, file('/etc/hostname') -- '", "SELECT x'41'", "SELECT b'01', 1", "SELECT ‘a’", "SELECT “a” FROM events", "SELECT 1 − 1",
	"SELECT file\u00a0('/etc/hostname')", "SELECT 1 \\G", "SELECT 'a", "SELECT 1 /* x", "SELECT \x01 1", "SELECT `a``b` FROM events", "SELECT \"a\\\"b\" FROM events",
	"SELECT 1e--1, file('/etc/hostname')\n1", "ſELECT 1",
	// The server.
	"SELECT getServerSetting('max_connections')", "SELECT getMergeTreeSetting('index_granularity')", "SELECT getMacro('x')", "SELECT showCertificate()", "SELECT getServerPort('tcp_port')", "SELECT filesystemAvailable()",
	"SELECT addressToLine(1)", "SELECT demangle('x')", "SELECT logTrace('x')", "SELECT buildId()", "SELECT __actionName('x', 'y')", "SELECT chdb()", "SELECT getClientHTTPHeader('Authorization')",
}

// TestReaderIsRefused runs every statement for real, as a reader of one organization and as one of
// all. It fails if one is answered, or an error shows another organization's value.
func TestReaderIsRefused(t *testing.T) {
	t.Parallel()
	e := readerTables(t)
	for _, query := range refusedStatements {
		for _, reader := range []string{"acme.ann", "all"} {
			params := url.Values{"param_t": {"migrations"}, "param_d": {"system"}}
			status, body := as(t, e, reader, query, params)
			if status == http.StatusOK || status == http.StatusTooManyRequests || !strings.Contains(body, "Code: ") || strings.Contains(body, secret) {
				t.Errorf("%s as %s: got %d %.300s, want a refusal", query, reader, status, body)
			}
			// Those that the engine itself would have refused prove nothing of ours, but must not
			// be left to it alone.
			if !strings.Contains(body, "READONLY") && !strings.Contains(body, "ACCESS_DENIED") && !strings.Contains(body, "NOT_IMPLEMENTED") && !strings.Contains(body, "SYNTAX_ERROR") {
				t.Errorf("%s as %s: got %d %.300s, want the endpoint's own refusal", query, reader, status, body)
			}
		}
	}
	for name, value := range map[string]string{
		"additional_table_filters": "{}", "readonly": "0", "use_query_cache": "1", "dialect": "kusto", "no_such": "1", "format_schema": "/etc/hostname", "output_format_schema": "/tmp/kansa-outfile",
		"format_template_row": "/etc/hostname", "format_template_resultset": "/etc/hostname", "format_avro_schema_registry_url": "http://127.0.0.1:1", "max_rows_to_read": "1", "log_comment": "x",
		"optimize_move_to_prewhere": "0", "query_plan_filter_push_down": "1", "allow_introspection_functions": "1", "allow_experimental_analyzer": "0", "http_make_head_request": "1",
	} {
		if status, body := as(t, e, "acme.ann", "SELECT count() FROM events", url.Values{name: {value}}); status != http.StatusForbidden {
			t.Errorf("setting %s: got %d %s", name, status, body)
		}
	}
	for _, database := range []string{"system", "information_schema", "INFORMATION_SCHEMA", "reader_system", "nosuch"} {
		if status, body := as(t, e, "acme.ann", "SELECT 1", url.Values{"database": {database}}); status != http.StatusForbidden {
			t.Errorf("database %s: got %d %s", database, status, body)
		}
	}
	// The engine itself refuses these.
	for _, query := range []string{
		"SELECT * FROM `default.elsewhere`", "SELECT * FROM `tenants.migrations`", "SELECT count() FROM numbers(3) WHERE toString(number) IN `default.elsewhere`", "SELECT * FROM \"system.parts\"", "SELECT * FROM nosuch", "SELECT * FROM ('migrations')",
		"SELECT * FROM tenants", "SELECT * FROM a.b.c", "SELECT `tenants.migrations`.name FROM events", "SELECT * FROM events JOIN ON 1", "SELECT nosuch() FROM events", "SELECT * FROM numbers('migrations')", "SELECT * FROM values('s String', (SELECT name FROM nosuch))",
	} {
		if status, body := as(t, e, "acme.ann", query, nil); status == http.StatusOK || strings.Contains(body, secret) {
			t.Errorf("%s: got %d %.300s", query, status, body)
		}
	}
	// An exception whose text is that of a spoiled part ends the process, but not if a reader made
	// the text.
	pid := e.PID()
	if status, body := as(t, e, "acme.ann", "SELECT toUInt8(substring('while reading from part "+t.TempDir()+" in table ', number + 1000)) FROM numbers(2)", nil); !strings.Contains(body, "Code: 32.") {
		t.Errorf("got %d %s", status, body)
	}
	owner := open(t, e, nil)
	if got := e.PID(); got != pid {
		t.Errorf("a reader ended the engine's process")
	}
	if got := one[uint64](t, owner, "SELECT count() FROM tenants.events"); got != 8 {
		t.Errorf("there are %d events, want 8", got)
	}
}

// trickySelects are allowed, and must show the rows of one organization only.
var trickySelects = []string{
	"SELECT * FROM events", "SELECT * FROM tenants.events", "SELECT * FROM `tenants`.\"events\"", "SELECT events.* FROM events", "SELECT tenants.events.actor FROM tenants.events", "SELECT e.* FROM events AS e",
	"SELECT * FROM events AS \"tenants.other\"", "SELECT * FROM events AS \"tenants.counts\"", "SELECT * FROM events AS counts", "SELECT * FROM events AS \"system.tables\"", "SELECT * FROM events AS \"system.databases\"",
	"SELECT 'globex' AS organization, actor FROM events", "SELECT actor, 'acme' AS organization FROM events WHERE organization = 'acme'", "WITH 'acme' AS organization SELECT actor FROM events",
	"SELECT * FROM (SELECT * FROM events)", "SELECT * FROM view(SELECT * FROM events)", "SELECT * FROM view(SELECT * FROM view(SELECT * FROM tenants.events))", "WITH events AS (SELECT * FROM tenants.events) SELECT * FROM events",
	"WITH x AS (SELECT * FROM events), y AS (SELECT * FROM x) SELECT * FROM y", "WITH RECURSIVE r AS (SELECT id, actor FROM events UNION ALL SELECT id + 100, actor FROM r WHERE id < 100) SELECT * FROM r",
	"SELECT * FROM events UNION ALL SELECT * FROM events", "SELECT actor FROM events UNION DISTINCT SELECT actor FROM counts", "SELECT actor FROM events INTERSECT SELECT actor FROM counts", "SELECT actor FROM events EXCEPT SELECT 'x'",
	"SELECT * FROM events AS a JOIN events AS b ON a.id = b.id", "SELECT * FROM events AS a LEFT JOIN counts AS b ON a.actor = b.actor", "SELECT * FROM counts AS a RIGHT JOIN events AS b USING actor", "SELECT * FROM events AS a FULL JOIN counts AS b ON a.actor = b.actor",
	"SELECT * FROM events AS a CROSS JOIN events AS b", "SELECT * FROM events AS a, counts AS b", "SELECT * FROM events AS a ANTI JOIN counts AS b ON a.organization = b.actor", "SELECT * FROM events AS a ASOF JOIN events AS b ON a.actor = b.actor AND a.at >= b.at",
	"SELECT * FROM numbers(10) AS n LEFT JOIN events AS e ON n.number = e.id", "SELECT * FROM numbers(10) AS n RIGHT JOIN events AS e ON n.number = e.id", "SELECT actor FROM events WHERE id IN (SELECT id FROM events WHERE organization = 'globex')", "SELECT actor FROM events WHERE actor GLOBAL IN (SELECT actor FROM events)",
	"SELECT count() FROM numbers(10) WHERE number IN (SELECT id FROM events)", "SELECT (SELECT groupArray(actor) FROM events)", "SELECT EXISTS(SELECT 1 FROM events WHERE organization = 'globex')",
	"SELECT arrayJoin(groupArray(actor)) FROM events", "SELECT arrayJoin(mapKeys(m)) FROM events", "SELECT m.keys, m.values FROM events", "SELECT k FROM events ARRAY JOIN mapKeys(m) AS k", "SELECT * FROM events LEFT ARRAY JOIN [1, 2] AS x",
	"SELECT groupUniqArray(organization), min(actor), max(actor), any(actor), anyLast(actor) FROM events", "SELECT max(at), min(at), count() FROM events", "SELECT organization, count() FROM events GROUP BY organization WITH TOTALS", "SELECT organization, actor, count() FROM events GROUP BY ROLLUP(organization, actor)",
	"SELECT DISTINCT organization FROM events", "SELECT * FROM events FINAL", "SELECT * FROM events ORDER BY organization DESC LIMIT 1", "SELECT * FROM events ORDER BY id LIMIT 1 BY organization", "SELECT * FROM events ORDER BY id OFFSET 0 ROWS FETCH FIRST 1 ROW ONLY",
	"SELECT row_number() OVER (PARTITION BY organization), actor FROM events", "SELECT lagInFrame(actor) OVER (ORDER BY id) FROM events", "SELECT actor FROM events QUALIFY row_number() OVER (ORDER BY id) = 1", "SELECT * EXCEPT(id) FROM events", "SELECT * REPLACE('x' AS data) FROM events", "SELECT COLUMNS('a.*') FROM events", "SELECT * APPLY(toString) FROM events",
	"SELECT _part, _partition_id, actor FROM events", "SELECT * FROM counts", "SELECT sum(n) FROM counts", "FROM events SELECT actor", "(SELECT actor FROM events)", "SELECT * FROM events WHERE 1 OR organization = 'globex'", "SELECT * FROM events WHERE NOT (organization = 'acme')", "SELECT * FROM events FORMAT Vertical",
	"-- a comment\nSELECT /* and one */ actor # here\nFROM events --", "SELECT formatRow('JSONEachRow', *) FROM events", "SELECT toJSONString(tuple(*)) FROM events", "SELECT getSetting('additional_table_filters')", "SELECT * FROM values('a String', 'x')",
	// An expression that fails shows the value it failed for, so no expression may see a row that
	// the filter removes.
	"SELECT count() FROM events WHERE toUInt8(actor) = 1", "SELECT count() FROM events FINAL WHERE toUInt8(actor) = 1", "SELECT count() FROM events WHERE organization = 'globex' AND toUInt8(actor) = 1", "SELECT count() FROM events WHERE throwIf(organization = 'globex') = 0",
	"SELECT count() FROM counts WHERE toUInt8(actor) = 1", "SELECT count() FROM (SELECT * FROM events) WHERE toUInt8(actor) = 1", "SELECT count() FROM view(SELECT * FROM events) WHERE toUInt8(actor) = 1", "SELECT count() FROM events AS a JOIN counts AS b ON toUInt8(a.actor) = toUInt8(b.actor)",
	"SELECT count() FROM events AS a JOIN counts AS b ON a.actor = b.actor WHERE toUInt8(b.actor) = 1 AND toUInt8(a.actor) = 1", "SELECT count() FROM events AS a SEMI JOIN counts AS b ON a.actor = b.actor AND toUInt8(a.actor) = toUInt8(b.actor)", "SELECT count() FROM events AS a, counts AS b WHERE toUInt8(a.actor) = toUInt8(b.actor)",
	"SELECT count() FROM events AS a LEFT JOIN counts AS b ON a.actor = b.actor AND toUInt8(b.actor) = 1", "SELECT count() FROM counts AS a RIGHT JOIN events AS b ON a.actor = b.actor AND toUInt8(b.actor) = 1", "SELECT count() FROM events AS a FULL JOIN counts AS b ON toUInt8(a.actor) = toUInt8(b.actor)",
	"SELECT count() FROM events AS a JOIN counts AS b ON a.actor = b.actor OR toUInt8(a.actor) = toUInt8(b.actor)", "SELECT count() FROM events WHERE toUInt8(actor) IN (SELECT toUInt8(actor) FROM counts)", "SELECT actor FROM events ORDER BY toUInt8(actor) LIMIT 1", "SELECT actor FROM events LIMIT 1 BY toUInt8(actor)",
	"SELECT toUInt8(actor) AS k, count() FROM events GROUP BY k HAVING k = 1", "SELECT actor, count() FROM events GROUP BY actor HAVING toUInt8(actor) = 1", "SELECT actor FROM events QUALIFY toUInt8(actor) = 1", "SELECT count() FROM events WHERE intDiv(1, organization = 'acme') = 1", "SELECT countIf(toUInt8(actor) = 1) FROM events",
	"SELECT x FROM events ARRAY JOIN [toUInt8(actor)] AS x WHERE x = 1", "SELECT count() FROM (SELECT actor FROM events UNION ALL SELECT actor FROM counts) WHERE toUInt8(actor) = 1", "SELECT count() FROM (SELECT DISTINCT actor FROM events) WHERE toUInt8(actor) = 1", "SELECT count() FROM (SELECT * FROM events ORDER BY id) WHERE toUInt8(actor) = 1",
	"SELECT count() FROM events AS a WHERE EXISTS (SELECT 1 FROM counts AS b WHERE b.actor = a.actor AND toUInt8(b.actor) = 1)", "SELECT count() FROM events AS a JOIN (SELECT toUInt8(actor) AS k FROM counts WHERE k = 1) AS b ON toUInt8(a.actor) = b.k",
	// A part has one dictionary for the values of all organizations.
	"SELECT sum(toUInt8(kind)) FROM events", "SELECT count() FROM events WHERE toUInt8(kind) = 1", "SELECT toUInt8(kind) AS k, count() FROM events GROUP BY k", "SELECT toTypeName(kind), toUInt8(toString(kind)) FROM events", "SELECT groupUniqArray(kind) FROM events", "SELECT lowCardinalityKeys(kind), lowCardinalityIndices(kind), kind FROM events",
	"SELECT kind FROM events GROUP BY kind WITH TOTALS", "SELECT count() FROM events AS a JOIN counts AS b ON toUInt8(a.kind) = toUInt8(b.actor)", "SELECT toDate(concat('2020-01-0', kind)) FROM events", "SELECT throwIf(kind = 'globexsecre' || 't') FROM events", "SELECT lowCardinalityIndices(kind), upper(kind), arrayMap(x -> toUInt8(x), [kind]) FROM events",
	"SELECT kind FROM events ORDER BY toUInt8(kind)", "SELECT CAST(kind, 'UInt8') FROM events FINAL WHERE CAST(kind, 'UInt8') = 1", "SELECT * FROM events FORMAT Native", "SELECT kind FROM events FORMAT Arrow", "SELECT kind FROM events FORMAT RowBinary", "SELECT kind FROM events FORMAT Parquet", "SELECT kind FROM events FORMAT ORC", "SELECT kind FROM events FORMAT Avro",
	"SELECT actor FROM events WHERE toUInt8(data) = 1 ORDER BY at DESC LIMIT 2", "SELECT count() FROM events WHERE toUInt8(actor) = 1 AND at > '2020-01-01' AND id < 100 AND m['a'] = '1'",
}

// TestReaderSeesItsRowsOnly checks that nothing of another organization is returned, in rows,
// counts or errors.
func TestReaderSeesItsRowsOnly(t *testing.T) {
	t.Parallel()
	e := readerTables(t)
	for _, query := range trickySelects {
		status, body := as(t, e, "acme.ann", query, nil)
		if strings.Contains(strings.ReplaceAll(query, "'globex'", ""), secret) {
			t.Fatalf("%s names the secret itself", query)
		}
		if strings.Contains(body, secret) {
			t.Errorf("%s: got %d %.300s, which shows a row of globex", query, status, body)
		}
		if status != http.StatusOK && !strings.Contains(query, "AS \"system.") {
			t.Errorf("%s: got %d %.300s", query, status, body)
		}
	}
	for query, want := range map[string][2]string{ // as acme and as one of all
		"SELECT count() FROM events": {"3", "8"}, "SELECT count() FROM events FINAL": {"3", "8"}, "SELECT sum(n) FROM counts": {"3", "8"}, "SELECT uniq(organization) FROM events": {"1", "2"}, "SELECT count() FROM events AS a CROSS JOIN events AS b": {"9", "64"},
		"SELECT max(id), count() FROM events": {"2\t3", "4\t8"}, "SELECT EXISTS(SELECT 1 FROM events WHERE organization = 'globex')": {"0", "1"}, "SELECT count() FROM numbers(10) WHERE number IN (SELECT id FROM events)": {"3", "5"}, "SELECT currentDatabase()": {"tenants", "tenants"},
	} {
		for i, reader := range []string{"acme.ann", "all"} {
			if status, body := as(t, e, reader, query, nil); strings.TrimSpace(body) != want[i] {
				t.Errorf("%s as %s: got %d %s, want %s", query, reader, status, body, want[i])
			}
		}
	}
	for _, format := range []string{"Arrow", "ArrowStream", "Native", "Parquet", "ORC"} {
		params := url.Values{"output_format_arrow_low_cardinality_as_dictionary": {"1"}, "client_protocol_version": {"54460"}}
		if status, body := as(t, e, "acme.ann", "SELECT * FROM events WHERE id = 1 FORMAT "+format, params); status != http.StatusOK || strings.Contains(body, secret) {
			t.Errorf("%s: got %d, which has a dictionary with values of globex: %.300q", format, status, body)
		}
	}
	// Statistics would tell how many rows everybody has.
	res := do(t, e, http.MethodPost, "/", "SELECT * FROM events FORMAT JSON", http.Header{"Authorization": nil, "X-Clickhouse-User": {"acme.ann"}, "X-Clickhouse-Key": {"acme.ann"}})
	if body := text(t, res); strings.Contains(body, "rows_read") || !strings.Contains(res.Header.Get("X-ClickHouse-Summary"), `"read_rows":"0"`) {
		t.Errorf("the answer shows what was read: %s %s", res.Header.Get("X-ClickHouse-Summary"), body)
	}
}

// biQueries are what tools send to find out what there is.
var biQueries = []string{
	"SELECT version()", "SELECT timezone()", "SELECT currentUser(), currentDatabase(), hostName()", "SHOW DATABASES", "SHOW TABLES", "SHOW TABLES FROM tenants", "SHOW TABLES IN tenants LIKE '%e%'", "SHOW FULL TABLES", "SHOW COLUMNS FROM events", "SHOW FULL COLUMNS FROM events FROM tenants",
	"DESCRIBE TABLE events", "DESC tenants.events", "DESCRIBE (SELECT * FROM events)", "EXISTS TABLE events", "EXISTS tenants.events",
	"SELECT name FROM system.databases ORDER BY name", "SELECT name, engine, comment FROM system.databases WHERE name NOT IN ('system')", "SELECT * FROM system.tables", "SELECT database, name, engine, total_rows, total_bytes FROM system.tables WHERE database = 'tenants'", "SELECT create_table_query FROM system.tables",
	"SELECT * FROM system.columns", "SELECT name, type, position, comment FROM system.columns WHERE database = 'tenants' AND table = 'events' ORDER BY position", "SELECT system.tables.name FROM system.tables", "SELECT t.name, c.name FROM system.tables AS t JOIN system.columns AS c ON t.database = c.database AND t.name = c.table",
	"SELECT name, value, readonly FROM system.settings LIMIT 3", "SELECT name, value, changed, description, type, readonly FROM system.settings WHERE name IN ('max_threads')", "SELECT name, is_aggregate FROM system.functions LIMIT 3", "SELECT name, case_insensitive, alias_to FROM system.data_type_families LIMIT 3", "SELECT * FROM system.one",
	"SELECT number FROM system.numbers LIMIT 3", "SELECT name FROM system.formats LIMIT 3", "SELECT name FROM system.table_functions LIMIT 3", "SELECT * FROM information_schema.tables", "SELECT table_name, table_type FROM INFORMATION_SCHEMA.TABLES WHERE table_schema = 'tenants'",
	"SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'events' ORDER BY ordinal_position", "SELECT schema_name FROM information_schema.schemata", "/* ApplicationName=DBeaver */ SELECT 1", "-- Metabase\nSELECT 1 AS `a.b`",
}

// TestReaderCatalogue checks that the queries of BI tools are answered and tell of the reader's
// tables only.
func TestReaderCatalogue(t *testing.T) {
	t.Parallel()
	e := readerTables(t)
	for _, query := range biQueries {
		status, body := as(t, e, "acme.ann", query, nil)
		if status != http.StatusOK || strings.TrimSpace(body) == "" && !strings.Contains(query, "create_table_query") {
			t.Errorf("%s: got %d %.300s", query, status, body)
		}
		for _, hidden := range []string{"migrations", "leak", "counts_view", "elsewhere", "reader_", "store/", "MergeTree ORDER BY", "metadata/", "tenants.events ("} {
			if strings.Contains(body, hidden) {
				t.Errorf("%s shows %s:\n%.600s", query, hidden, body)
			}
		}
	}
	for query, want := range map[string]string{
		"SHOW DATABASES": "tenants\n", "SHOW TABLES": "counts\nevents\n", "SELECT name FROM system.databases": "tenants\n", "SELECT name, total_rows, total_bytes FROM system.tables ORDER BY name": "counts\t\\N\t\\N\nevents\t\\N\t\\N\n",
		"SELECT DISTINCT database, table FROM system.columns ORDER BY table": "tenants\tcounts\ntenants\tevents\n", "SELECT sum(data_compressed_bytes + data_uncompressed_bytes + marks_bytes) FROM system.columns": "0\n",
		"SELECT table_name, table_rows FROM information_schema.tables ORDER BY table_name": "counts\t\\N\nevents\t\\N\n", "SELECT schema_name FROM information_schema.schemata": "tenants\n",
	} {
		if status, body := as(t, e, "acme.ann", query, nil); body != want {
			t.Errorf("%s: got %d %q, want %q", query, status, body, want)
		}
	}
}

// TestReaderClients uses clickhouse-go and plain HTTP: parameters, streaming, compression, formats.
func TestReaderClients(t *testing.T) {
	t.Parallel()
	e := readerTables(t)
	conn := open(t, e, func(o *clickhouse.Options) {
		o.Auth = clickhouse.Auth{Username: "acme.ann", Password: "acme.ann", Database: "tenants"}
		o.Settings = clickhouse.Settings{"max_execution_time": 60}
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	})
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := one[uint64](t, conn, "SELECT count() FROM events WHERE actor = {who:String} AND id < {n:UInt64}", clickhouse.Named("who", "1"), clickhouse.Named("n", "2")); got != 2 {
		t.Errorf("got %d events, want 2", got)
	}
	var rows []struct {
		Organization string            `ch:"organization"`
		ID           uint64            `ch:"id"`
		M            map[string]string `ch:"m"`
	}
	if err := conn.Select(t.Context(), &rows, "SELECT organization, id, m FROM events ORDER BY id"); err != nil || len(rows) != 3 || rows[2].ID != 2 || rows[0].M["a"] != "1" {
		t.Errorf("got %v, %v", rows, err)
	}
	table, err := ext.NewTable("extra", ext.Column("n", "UInt64"))
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Append(uint64(1)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithExternalTable(table)), "SELECT count() FROM extra"), codeReadonly)
	for format, begins := range map[string]string{"Parquet": "PAR1", "JSON": "{", "JSONEachRow": `{"organization":"acme"`, "CSVWithNames": `"organization"`, "ArrowStream": "", "Native": ""} {
		status, body := as(t, e, "acme.bob", "SELECT * FROM events ORDER BY id FORMAT "+format, nil)
		if status != http.StatusOK || !strings.HasPrefix(body, begins) || strings.Contains(body, secret) {
			t.Errorf("%s: got %d %.100q", format, status, body)
		}
	}
	status, body := as(t, e, "acme.bob", "SELECT {x:String}, {y:Array(UInt8)}", url.Values{"param_x": {"it's"}, "param_y": {"[1,2]"}, "default_format": {"JSONCompactEachRow"}})
	if status != http.StatusOK || strings.TrimSpace(body) != `["it's", [1,2]]` {
		t.Errorf("got %d %s", status, body)
	}
	status, body = as(t, e, "acme.bob", "SELECT number FROM numbers(200000)", nil)
	if status != http.StatusOK || strings.Count(body, "\n") != 200000 {
		t.Errorf("got %d and %d rows", status, strings.Count(body, "\n"))
	}
	for query, code := range map[string]string{"SELECT number FROM numbers(2000000)": "Code: 396.", "SELECT groupArray(toString(number)) FROM numbers(100000000)": "Code: 241."} {
		if status, body := as(t, e, "acme.bob", query, nil); !strings.Contains(body[max(0, len(body)-2000):], code) {
			t.Errorf("%s: got %d %.300s, want %s", query, status, body, code)
		}
	}
	if status, body := as(t, e, "stranger", "SELECT 1", nil); status != http.StatusForbidden {
		t.Errorf("got %d %s", status, body)
	}
	res := do(t, e, http.MethodGet, controlQueries, "", http.Header{"Authorization": nil, "X-Clickhouse-User": {"all"}, "X-Clickhouse-Key": {"all"}})
	if body := text(t, res); res.StatusCode != http.StatusForbidden {
		t.Errorf("a reader lists everybody's queries: %d %s", res.StatusCode, body)
	}
}

// TestReaderQueriesAreRecorded fetches what readers ran.
func TestReaderQueriesAreRecorded(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	run(t, open(t, e, nil), "CREATE DATABASE tenants")
	if err := e.SetReaders(t.Context(), []Reader{testReader("acme.ann", "acme")}); err != nil {
		t.Fatal(err)
	}
	as(t, e, "acme.ann", "SELECT number FROM numbers(3)", url.Values{"query_id": {"first"}})
	as(t, e, "acme.ann", "SELECT * FROM system.processes", url.Values{"query_id": {"second"}})
	var all []FinishedQuery
	ctx, cancel := context.WithTimeout(t.Context(), await.Limit)
	defer cancel()
	for len(all) < 2 {
		some, err := e.FinishedQueries(ctx)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, some...)
	}
	first, second := all[0], all[1]
	if first.QueryID != "first" || first.Query != "SELECT number FROM numbers(3)" || first.Rows != 3 || first.Code != 0 || first.ReaderID != "acme.ann" || first.Address != "127.0.0.1" || first.Duration <= 0 {
		t.Errorf("got %+v", first)
	}
	if second.QueryID != "second" || !second.Refused() || second.Code != codeAccessDenied || !strings.Contains(second.Error, "system.processes") {
		t.Errorf("got %+v", second)
	}
}

// TestFetchingRecordsDoesNotDelayTheStop closes an engine whose parent waits for records.
func TestFetchingRecordsDoesNotDelayTheStop(t *testing.T) {
	t.Parallel()
	e, err := Start(t.Context(), Options{Dir: t.TempDir(), Command: []string{os.Args[0], "engine"}, Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		_, _ = e.FinishedQueries(t.Context()) // it ends without records, or with the connection
	}()
	if _, err := e.Slots(t.Context()); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if err := e.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(began); took >= stopTimeout {
		t.Errorf("the stop took %s: it waited for the request", took)
	}
	await.Receive(t, await.Limit, "the request to end", fetched)
}

// slow runs until it is ended. The answer comes in one block.
const slow = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"

// untilRunning waits until a query of an id runs.
func untilRunning(t *testing.T, e *Engine, id string) {
	t.Helper()
	await.State(t, await.Limit, "query "+id+" to run", func() (bool, any) {
		all, err := e.Queries(t.Context())
		if err != nil {
			t.Fatalf("wait for query %s to run: %v", id, err)
		}
		return slices.ContainsFunc(all, func(q RunningQuery) bool { return q.QueryID == id }) && engineRuns(t, e, "sipHash64"), all
	})
}

// engineRuns reports whether the engine itself works on a query that has a word.
func engineRuns(t *testing.T, e *Engine, word string) bool {
	t.Helper()
	_, body := ownerAsks(t, e, "SELECT count() FROM system.processes WHERE position(query, '"+word[:4]+"' || '"+word[4:]+"') > 0")
	return strings.TrimSpace(body) != "0"
}

func ownerAsks(t *testing.T, e *Engine, query string) (int, string) {
	t.Helper()
	res := do(t, e, http.MethodPost, "/", query, nil)
	return res.StatusCode, text(t, res)
}

// begin runs the slow query as a reader in the background.
func begin(ctx context.Context, t *testing.T, e *Engine, reader, id string) (answer chan string) {
	t.Helper()
	answer = make(chan string, 1)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL()+"/?query_id="+id, strings.NewReader(slow))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-ClickHouse-User", reader)
	req.Header.Set("X-ClickHouse-Key", reader)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		body, err := io.ReadAll(res.Body)
		err = errors.Join(err, res.Body.Close())
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- res.Status + " " + string(body)
	}()
	return answer
}

// TestReaderQueriesEnd ends a query in each of the ways there are: its account is removed, its
// owner kills it, the client goes.
func TestReaderQueriesEnd(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	run(t, open(t, e, nil), "CREATE DATABASE tenants")
	ann, bob := testReader("acme.ann", "acme"), testReader("acme.bob", "acme")
	if err := e.SetReaders(t.Context(), []Reader{ann, bob}); err != nil {
		t.Fatal(err)
	}
	ended := func(what string) {
		t.Helper()
		await.True(t, await.Limit, "the query to end after "+what, func() bool { return !engineRuns(t, e, "sipHash64") })
	}
	killed := begin(t.Context(), t, e, "acme.ann", "q1")
	untilRunning(t, e, "q1")
	if status, body := as(t, e, "acme.bob", "KILL QUERY WHERE query_id = 'q1'", nil); status != http.StatusOK || body != "" {
		t.Errorf("bob kills ann's query: %d %s", status, body)
	}
	if status, body := as(t, e, "acme.ann", "KILL QUERY WHERE query_id = 'q1' SYNC;", nil); status != http.StatusOK || body != "waiting\tq1\tacme.ann\n" {
		t.Errorf("got %d %s", status, body)
	}
	if got := await.Receive(t, await.Limit, "the killed query to end", killed); !strings.Contains(got, "Code: 394.") {
		t.Errorf("got %s", got)
	}
	ended("KILL QUERY")

	byOperator := begin(t.Context(), t, e, "acme.ann", "q2")
	untilRunning(t, e, "q2")
	if n, err := e.KillQuery(t.Context(), "q2", ""); err != nil || n != 1 {
		t.Errorf("got %d, %v", n, err)
	}
	if got := await.Receive(t, await.Limit, "the query that the operator killed to end", byOperator); !strings.Contains(got, "Code: 394.") {
		t.Errorf("got %s", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	left := begin(ctx, t, e, "acme.ann", "q3")
	untilRunning(t, e, "q3")
	cancel()
	await.Receive(t, await.Limit, "the request of a client that left to end", left)
	ended("its client left")

	removed := begin(t.Context(), t, e, "acme.ann", "q4")
	untilRunning(t, e, "q4")
	if err := e.SetReaders(t.Context(), []Reader{bob}); err != nil {
		t.Fatal(err)
	}
	if got := await.Receive(t, await.Limit, "the query of a removed reader to end", removed); !strings.Contains(got, "Code: 516.") {
		t.Errorf("got %s", got)
	}
	ended("its account was removed")
	if status, body := as(t, e, "acme.ann", "SELECT 1", nil); status != http.StatusForbidden {
		t.Errorf("a removed reader gets %d %s", status, body)
	}
	if status, body := as(t, e, "acme.bob", "SELECT 1", nil); status != http.StatusOK {
		t.Errorf("another reader gets %d %s", status, body)
	}
	// The next child knows them, too.
	pid := e.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await.True(t, await.Limit, "the next child", func() bool { return e.PID() != pid && e.PID() != 0 })
	http.DefaultClient.CloseIdleConnections()
	if status, body := as(t, e, "acme.bob", "SELECT 1", nil); status != http.StatusOK {
		t.Errorf("after a restart: got %d %s", status, body)
	}
	if status, body := as(t, e, "acme.ann", "SELECT 1", nil); status != http.StatusForbidden {
		t.Errorf("after a restart, a removed reader gets %d %s", status, body)
	}
}

// TestReaderLimits checks the bounds on how many queries run and how often they come.
func TestReaderLimits(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	run(t, open(t, e, nil), "CREATE DATABASE tenants")
	often := testReader("often", "often")
	often.Limits.QueriesPerMinute = 2
	short := testReader("short", "short")
	short.Limits.ExecutionTime = 1e9
	if err := e.SetReaders(t.Context(), []Reader{often, short}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if status, body := as(t, e, "often", "SELECT 1", nil); status != http.StatusOK {
			t.Errorf("got %d %s", status, body)
		}
	}
	res := do(t, e, http.MethodPost, "/", "SELECT 1", http.Header{"Authorization": nil, "X-Clickhouse-User": {"often"}, "X-Clickhouse-Key": {"often"}})
	if body := text(t, res); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" || !strings.Contains(body, "Code: 201.") {
		t.Errorf("got %d %v %s", res.StatusCode, res.Header, body)
	}
	if status, body := as(t, e, "short", slow, url.Values{"max_execution_time": {"600"}}); !strings.Contains(body, "Code: 159.") {
		t.Errorf("got %d %s", status, body)
	}
}

// TestReadersLeaveSlots holds every slot that readers and reads on behalf of people can get, by
// queries that are slow and by clients that do not read. The owner's inserts and other statements
// still find one.
func TestReadersLeaveSlots(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	owner := open(t, e, nil)
	run(t, owner, "CREATE DATABASE tenants")
	run(t, owner, "CREATE TABLE tenants.events (organization String, n UInt64) ENGINE = MergeTree ORDER BY n")
	var readers []Reader
	for _, name := range []string{"a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"} {
		readers = append(readers, testReader(name, name))
	}
	if err := e.SetReaders(t.Context(), readers); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var answers []chan string
	for _, r := range readers {
		answers = append(answers, begin(ctx, t, e, r.Username, r.Username))
	}
	for range 8 { // these take the headers and nothing else
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL(), strings.NewReader("SELECT number, repeat('x', 1000) FROM numbers(100000000)"))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(e.Username(), e.Password())
		req.Header.Set(PurposeHeader, PurposeRead)
		answer := make(chan string, 1)
		answers = append(answers, answer)
		go func() {
			res, err := http.DefaultClient.Do(req)
			if err == nil {
				<-ctx.Done()
				_ = res.Body.Close()
			}
			answer <- ""
		}()
	}
	use := func(purpose string) SlotUse {
		all, err := e.Slots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all[slices.IndexFunc(all, func(u SlotUse) bool { return u.Purpose == purpose })]
	}
	await.State(t, await.Limit, "all slots of reads to be used", func() (bool, any) {
		reads, analysts := use("read"), use("reader")
		return reads.Used+analysts.Used == int64(reads.Size) && reads.Waiting > 0 && analysts.Waiting > 0, []SlotUse{reads, analysts}
	})
	run(t, owner, "INSERT INTO tenants.events VALUES ('acme', 1)")
	if got := one[uint64](t, owner, "SELECT count() FROM tenants.events"); got != 1 {
		t.Errorf("got %d rows", got)
	}
	cancel()
	for _, a := range answers {
		await.Receive(t, await.Limit, "a canceled request to end", a)
	}
	await.State(t, await.Limit, "all slots to be released", func() (bool, any) {
		used := use("read").Used + use("reader").Used
		return used <= 0, used
	})
}

// TestUnreadResponseIsGivenUp proves the write deadline.
func TestUnreadResponseIsGivenUp(t *testing.T) {
	t.Parallel()
	given := make(chan error, 1)
	server := newTestServer(t, func(w http.ResponseWriter, _ *http.Request) {
		p := newPatientWriter(w)
		p.patience = 50e6
		var err error
		for err == nil {
			_, err = p.Write(make([]byte, 1<<20))
		}
		given <- err
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := await.Receive(t, await.Limit, "the slow request to be given up", given); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("got %v", err)
	}
}

func newTestServer(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return server.URL
}

// TestReaderTravels checks that a reader survives the way to the child.
func TestReaderTravels(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(testReader("acme.ann", "acme"))
	if err != nil {
		t.Fatal(err)
	}
	var got Reader
	if err := json.Unmarshal(data, &got); err != nil || got.Tables["events"] != "organization = 'acme'" || len(got.Digest) != 32 {
		t.Errorf("%s: %+v, %v", data, got, err)
	}
}
