package engine

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
)

// get asks without clickhouse-go.
func get(t testing.TB, e *Engine, method, path, body string) (io.Reader, func()) {
	t.Helper()
	res := do(t, e, method, path, body, nil) //nolint:bodyclose // the caller closes it
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("%s %s: %s: %s", method, path, res.Status, text)
	}
	return res.Body, func() { _ = res.Body.Close() }
}

func do(t testing.TB, e *Engine, method, path, body string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, e.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(e.Username(), e.Password())
	for name, values := range header {
		req.Header[name] = values
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func text(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	e := sharedEngine(t)
	table := tableName(t)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(e.Username()+":no"))
	for _, test := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		want                     string
		exact                    bool
	}{
		{name: "ping", method: "GET", path: "/ping", status: 200, want: "Ok.\n", exact: true},
		{name: "root", method: "GET", path: "/", status: 200, want: "Ok.\n", exact: true},
		{name: "default format", method: "POST", path: "/", body: "SELECT 1, 'a'", status: 200, want: "1\ta\n", exact: true},
		{name: "get", method: "GET", path: "/?query=SELECT+1+FORMAT+CSV", status: 200, want: "1\n", exact: true},
		{name: "query in both parts", method: "POST", path: "/?query=SELECT", body: "2 + 2;", status: 200, want: "4\n", exact: true},
		{name: "parameter", method: "POST", path: "/?param_x=7", body: "SELECT {x:UInt8} + 1", status: 200, want: "8\n", exact: true},
		{name: "database", method: "POST", path: "/?database=system", body: "SELECT currentDatabase()", status: 200, want: "system\n", exact: true},
		{name: "no database", method: "POST", path: "/?database=nosuch", body: "SELECT 1", status: 404, want: "Code: 81."},
		{name: "show", method: "POST", path: "/", body: "SHOW DATABASES", status: 200, want: "default\n"},
		{name: "explain", method: "POST", path: "/", body: "EXPLAIN SELECT 1", status: 200, want: "ReadFrom"},
		{name: "union", method: "POST", path: "/", body: "(SELECT 1) UNION ALL (SELECT 1) -- done", status: 200, want: "1\n1\n", exact: true},
		{name: "with", method: "POST", path: "/", body: "/* a; */ WITH 1 AS x SELECT x", status: 200, want: "1\n", exact: true},
		{name: "json", method: "POST", path: "/", body: "SELECT number FROM numbers(200000) FORMAT JSON", status: 200, want: "\"rows\": 200000"},
		{name: "totals", method: "POST", path: "/", body: "SELECT number % 2 AS p, count() FROM numbers(10) GROUP BY p WITH TOTALS ORDER BY p", status: 200, want: "0\t5\n1\t5\n\n0\t10\n", exact: true},
		{name: "create", method: "POST", path: "/", body: "CREATE TABLE " + table + " (n UInt64, s String DEFAULT 'none') ENGINE = MergeTree ORDER BY n", status: 200, exact: true},
		{name: "insert by body", method: "POST", path: "/", body: "INSERT INTO " + table + " (n, s) FORMAT TSV\n1\ta;b\n2\t\n", status: 200, exact: true},
		{name: "insert by both", method: "POST", path: "/?query=INSERT+INTO+" + table + "+(n)", body: "SETTINGS async_insert=0 FORMAT CSV\n3\n4\n", status: 200, exact: true},
		{name: "insert data in both", method: "POST", path: "/?query=INSERT+INTO+" + table + "+(n)+VALUES+(5),", body: "(6)", status: 200, exact: true},
		{name: "insert settings after format", method: "POST", path: "/", body: "INSERT INTO " + table + " FORMAT JSONEachRow SETTINGS input_format_skip_unknown_fields = 1\n{\"n\": 7, \"x\": 1}", status: 200, exact: true},
		{name: "all inserted", method: "POST", path: "/", body: "SELECT n, s FROM " + table + " ORDER BY n FORMAT CSV", status: 200, want: "1,\"a;b\"\n2,\"\"\n3,\"none\"\n4,\"none\"\n5,\"none\"\n6,\"none\"\n7,\"none\"\n", exact: true},
		{name: "get does not write", method: "GET", path: "/?query=INSERT+INTO+" + table + "+VALUES+(9,'x')", status: 403, want: "Code: 164."},
		{name: "get does not drop", method: "GET", path: "/?query=DROP+TABLE+" + table, status: 403, want: "Code: 164."},
		{name: "empty", method: "POST", path: "/", status: 400, want: "Code: 62."},
		{name: "unknown path", method: "GET", path: "/play", status: 404},
		{name: "session", method: "POST", path: "/?session_id=1", body: "SELECT 1", status: 501, want: "Code: 48."},
		{name: "setting by injection", method: "POST", path: "/?a%3D1,b=1", body: "SELECT 1", status: 404, want: "Code: 115."},
		{name: "infile", method: "POST", path: "/", body: "INSERT INTO " + table + " FROM INFILE 'x' FORMAT CSV", status: 501, want: "Code: 48."},
		{name: "kill", method: "POST", path: "/", body: "KILL QUERY WHERE 1", status: 501, want: "Code: 48."},
		{name: "bad encoding", method: "POST", path: "/", body: "SELECT 1", header: http.Header{"Content-Encoding": {"gzip"}}, status: 400, want: "Code: 271."},
		{name: "bad blocks", method: "POST", path: "/?decompress=1", body: strings.Repeat("SELECT 1", 20), status: 400, want: "Code: 271."},
		{name: "wrong password", method: "POST", path: "/", body: "SELECT 1", header: http.Header{"Authorization": {basic}}, status: 403, want: "Code: 516."},
		{name: "password in headers", method: "POST", path: "/", body: "SELECT 1", header: http.Header{"Authorization": nil, "X-Clickhouse-User": {e.Username()}, "X-Clickhouse-Key": {e.Password()}}, status: 200, want: "1\n"},
		{name: "password in address", method: "POST", path: "/?user=" + e.Username() + "&password=" + e.Password(), body: "SELECT 1", header: http.Header{"Authorization": nil}, status: 200, want: "1\n"},
		{name: "json column", method: "POST", path: "/?client_protocol_version=54460", body: "SELECT '{}'::JSON FORMAT Native", status: 501, want: "Code: 48."},
		{name: "division by zero", method: "POST", path: "/", body: "SELECT intDiv(1, 0)", status: 500, want: "Code: 153."},
	} {
		res := do(t, e, test.method, test.path, test.body, test.header)
		got := text(t, res)
		if res.StatusCode != test.status || test.exact && got != test.want || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %d %q, want %d %q", test.name, res.StatusCode, got, test.status, test.want)
		}
		if code := res.Header.Get("X-ClickHouse-Exception-Code"); test.status != 200 && test.path != "/play" && !strings.Contains(got, "Code: "+code+".") {
			t.Errorf("%s: the header says code %q of %q", test.name, code, got)
		}
	}
	for encoding := range map[string]bool{"gzip": true, "br": true, "zstd": true, "deflate": true, "lz4": true} {
		res := do(t, e, "POST", "/", "SELECT number FROM numbers(100000)", http.Header{"Accept-Encoding": {encoding}})
		if res.Header.Get("Content-Encoding") != encoding {
			t.Errorf("%s: the answer is %q", encoding, res.Header.Get("Content-Encoding"))
		}
		plain, done, err := newDecoder(encoding, res.Body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(plain)
		done()
		if err := errors.Join(err, res.Body.Close()); err != nil || bytes.Count(got, []byte("\n")) != 100000 {
			t.Errorf("%s: %d bytes, error %v", encoding, len(got), err)
		}
	}
	res := do(t, e, "POST", "/?query_id=mine&wait_end_of_query=1", "SELECT number FROM numbers(1000)", nil)
	if text(t, res); res.Header.Get("X-ClickHouse-Query-Id") != "mine" || !strings.Contains(res.Header.Get("X-ClickHouse-Summary"), `"result_rows":"1000"`) || res.Header.Get("X-ClickHouse-Timezone") != "UTC" {
		t.Errorf("got headers %v", res.Header)
	}
}

// TestClientGone cancels while rows are on their way; the slots come free again.
func TestClientGone(t *testing.T) {
	t.Parallel()
	e := sharedEngine(t)
	conn := open(t, e, nil)
	for range DefaultConnections + 2 {
		ctx, cancel := context.WithCancel(t.Context())
		rows, err := conn.Query(ctx, "SELECT number, repeat('x', 100) FROM system.numbers")
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Errorf("no rows: %v", rows.Err())
		}
		cancel()
		for rows.Next() {
		}
		_ = rows.Close()
	}
	if got := one[uint8](t, conn, "SELECT 1"); got != 1 {
		t.Errorf("got %d", got)
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	s := &spool{limit: 1 << 20}
	defer s.close()
	if _, err := s.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte{0}); asException(err).code != codeLimitExceeded {
		t.Errorf("got %v", err)
	}
	if data, err := s.bytes(); err != nil || len(data) != 1<<20 {
		t.Errorf("got %d bytes and %v", len(data), err)
	}
}

// TestExternalTable sends a table along with the query.
func TestExternalTable(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	table, err := ext.NewTable("wanted", ext.Column("n", "UInt64"), ext.Column("s", "String"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := table.Append(uint64(n), "text"); err != nil {
			t.Fatal(err)
		}
	}
	ctx := clickhouse.Context(t.Context(), clickhouse.WithExternalTable(table))
	var got uint64
	if err := conn.QueryRow(ctx, "SELECT sum(n) FROM wanted WHERE s = 'text'").Scan(&got); err != nil || got != 3 {
		t.Errorf("got %d, %v", got, err)
	}
	wantCode(t, conn.QueryRow(t.Context(), "SELECT count() FROM wanted").Scan(&got), 60)
}

// TestCutBody sends a body that ends within a compressed block: nothing of it may be stored.
func TestCutBody(t *testing.T) {
	t.Parallel()
	e := sharedEngine(t)
	conn := open(t, e, nil)
	table := tableName(t)
	run(t, conn, "CREATE TABLE "+table+" (n UInt64) ENGINE = MergeTree ORDER BY n")
	w := compress.NewWriter(compress.LevelZero, compress.LZ4)
	if err := w.Compress([]byte("1\n2\n3\n")); err != nil {
		t.Fatal(err)
	}
	block := string(w.Data)
	path := "/?decompress=1&query=INSERT+INTO+" + table + "+FORMAT+CSV"
	for _, cut := range []int{1, 24, 25, 26, len(block) - 1} {
		res := do(t, e, "POST", path, block+block[:cut], nil)
		if body := text(t, res); res.StatusCode != http.StatusBadRequest {
			t.Errorf("cut at %d: got %d %s", cut, res.StatusCode, body)
		}
	}
	if got := one[uint64](t, conn, "SELECT count() FROM "+table); got != 0 {
		t.Errorf("%d rows of cut bodies were stored", got)
	}
	res := do(t, e, "POST", path, block+block, nil)
	if body := text(t, res); res.StatusCode != http.StatusOK {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
}
