package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

var compressions = map[string]*clickhouse.Compression{
	"none":    nil,
	"lz4":     {Method: clickhouse.CompressionLZ4},
	"zstd":    {Method: clickhouse.CompressionZSTD, Level: 1},
	"gzip":    {Method: clickhouse.CompressionGZIP, Level: 1},
	"deflate": {Method: clickhouse.CompressionDeflate, Level: 1},
	"br":      {Method: clickhouse.CompressionBrotli, Level: 1},
}

// TestRoundTrip stores every type that Kansa may use, and reads it back, in each compression.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, compression := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open(t, sharedEngine(t), func(o *clickhouse.Options) { o.Compression = compression })
			table := tableName(t)
			run(t, conn, "CREATE TABLE "+table+` (
				n UInt64, i Int32, f Float64, b Bool, s String, fs FixedString(4), id UUID,
				d Date, dt DateTime('UTC'), t6 DateTime64(6, 'UTC'), lc LowCardinality(String), lcn LowCardinality(Nullable(String)),
				e Enum8('it''s, (odd' = 1, 'two' = 2), ns Nullable(String), a Array(String), al Array(LowCardinality(String)),
				m Map(LowCardinality(String), String), tu Tuple(x UInt8, y Nullable(String)), ip IPv6, dec Decimal(18, 3), aa Array(Array(UInt16))
			) ENGINE = MergeTree ORDER BY n`)
			const rows = 5000
			now := time.Date(2026, 11, 22, 4, 5, 6, 123456000, time.UTC)
			row := func(n int) []any {
				text := fmt.Sprintf("row %d\n\nblank \x00 line", n)
				var null *string
				if n%2 == 0 {
					null = &text
				}
				return []any{
					uint64(n), int32(-n), float64(n) / 4, n%2 == 0, text, "abcd", uuid.MustParse("018f3d2e-0000-7000-8000-0000000000ff"),
					now.Truncate(24 * time.Hour), now.Truncate(time.Second), now.Add(time.Duration(n) * time.Microsecond), fmt.Sprint("lc", n%300), null,
					"it's, (odd", null, []string{"a", text}[:n%3%2+1], []string{"x", "y", "x"}[:n%4%3],
					map[string]string{"k": text},
					map[string]any{"x": uint8(n), "y": null},
					netip.MustParseAddr("2001:db8::1"), "12.345",
					[][]uint16{{1, uint16(n)}, {}},
				}
			}
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table)
			if err != nil {
				t.Fatal(err)
			}
			defer batch.Close()
			for n := range rows {
				values := row(n)
				values[18] = values[18].(netip.Addr).String()
				if err := batch.Append(values...); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			read, err := conn.Query(t.Context(), "SELECT * REPLACE (toString(ip) AS ip, toString(dec) AS dec, CAST(tu AS Tuple(x UInt8, y Nullable(String))) AS tu) FROM "+table+" ORDER BY n")
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			n := 0
			for ; read.Next(); n++ {
				want := row(n)
				want[18] = "2001:db8::1"
				got := make([]any, len(want))
				for i, v := range want {
					got[i] = reflect.New(reflect.TypeOf(v)).Interface()
				}
				if err := read.Scan(got...); err != nil {
					t.Fatal(err)
				}
				for i := range want {
					g := reflect.ValueOf(got[i]).Elem().Interface()
					if tm, ok := g.(time.Time); ok {
						g = tm.UTC()
					}
					if !reflect.DeepEqual(g, want[i]) && fmt.Sprint(deref(g)) != fmt.Sprint(deref(want[i])) {
						t.Fatalf("row %d, column %d: got %#v, want %#v", n, i, g, want[i])
					}
				}
			}
			if err := read.Err(); err != nil || n != rows {
				t.Fatalf("got %d rows and error %v, want %d", n, err, rows)
			}
		})
	}
}

func deref(v any) any {
	if m, ok := v.(map[string]any); ok {
		out := map[string]any{}
		for k, v := range m {
			out[k] = deref(v)
		}
		return out
	}
	if p, ok := v.(*string); ok && p != nil {
		return *p
	}
	return v
}

func TestParameters(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	ctx := clickhouse.Context(t.Context(), clickhouse.WithParameters(clickhouse.Parameters{
		"n": "42", "s": "it's \\\\ a; 'text'", "a": "['x','y']",
	}))
	var n uint64
	var s string
	var a []string
	if err := conn.QueryRow(ctx, "SELECT {n:UInt64}, {s:String}, {a:Array(String)}").Scan(&n, &s, &a); err != nil {
		t.Fatal(err)
	}
	if n != 42 || s != `it's \ a; 'text'` || len(a) != 2 {
		t.Errorf("got %d, %q, %q", n, s, a)
	}
	if got := one[string](t, conn, "SELECT {s:String}", clickhouse.Named("s", "bound")); got != "bound" {
		t.Errorf("got %q", got)
	}
	table := tableName(t)
	run(t, conn, "CREATE TABLE "+table+" (n UInt64) ENGINE = MergeTree ORDER BY n")
	run(t, conn, "INSERT INTO "+table+" VALUES (1), (2); ")
	run(t, conn, "INSERT INTO "+table+" SELECT number FROM numbers({c:UInt64})", clickhouse.Named("c", "3"))
	run(t, conn, "INSERT INTO "+table+" (n) SELECT number FROM numbers(5)")
	if got := one[uint64](t, conn, "SELECT count() FROM "+table); got != 10 {
		t.Errorf("got %d rows, want 10", got)
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	for name, compression := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open(t, sharedEngine(t), func(o *clickhouse.Options) { o.Compression = compression })
			table := tableName(t)
			run(t, conn, "CREATE TABLE "+table+" (n UInt64, s String, d DateTime64(3, 'UTC') DEFAULT toDateTime64('2020-01-01 00:00:00', 3)) ENGINE = MergeTree ORDER BY n")
			insert := func(format, columns, data string) {
				t.Helper()
				if err := conn.InsertFormat(t.Context(), format, "INSERT INTO "+table+columns, strings.NewReader(data)); err != nil {
					t.Fatal(err)
				}
			}
			insert("CSV", " (n, s)", "1,\"a\n\nb\"\n2,\"say \"\"hi\"\"\"\n")
			insert("JSONEachRow", "", "{\"n\":3}\n\n{\"n\":\"4\",\"s\":\"x\",\"d\":\"2021-01-01 00:00:00.5\"}")
			csv, err := conn.QueryFormat(t.Context(), "CSVWithNames", "SELECT * FROM "+table+" ORDER BY n", nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(csv)
			if err := errors.Join(err, csv.Close()); err != nil {
				t.Fatal(err)
			}
			want := "\"n\",\"s\",\"d\"\n1,\"a\n\nb\",\"2020-01-01 00:00:00.000\"\n2,\"say \"\"hi\"\"\",\"2020-01-01 00:00:00.000\"\n3,\"\",\"2020-01-01 00:00:00.000\"\n4,\"x\",\"2021-01-01 00:00:00.500\"\n"
			if string(got) != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			native, err := conn.QueryFormat(t.Context(), "Native", "SELECT n + 10 AS n, s, d FROM "+table+" ORDER BY n", nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, native)
			if err := errors.Join(err, native.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestManyBlocks checks that documents with a header have it once, however many blocks they came in.
func TestManyBlocks(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	for format, lines := range map[string]int{"CSVWithNames": 300_001, "CSV": 300_000, "TSVWithNamesAndTypes": 300_002, "JSONEachRow": 300_000, "JSONCompactEachRowWithNames": 300_001, "JSONColumns": 4} {
		stream, err := conn.QueryFormat(t.Context(), format, "SELECT number AS \"a\nb\" FROM numbers(300000)")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(stream)
		if err := errors.Join(err, stream.Close()); err != nil {
			t.Fatal(err)
		}
		if format == "CSVWithNames" {
			lines++ // the name has a line break
		}
		if n := bytes.Count(got, []byte("\n")); n != lines && format != "JSONColumns" {
			t.Errorf("%s: got %d lines, want %d", format, n, lines)
		}
		if n := bytes.Count(got, []byte("a")); format != "CSV" && format != "JSONEachRow" && n > 2 {
			t.Errorf("%s: the header is there %d times", format, n)
		}
	}
}

func TestParallelInserts(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	table := tableName(t)
	run(t, conn, "CREATE TABLE "+table+" (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
	var group sync.WaitGroup
	for worker := range 12 {
		group.Go(func() {
			for range 5 {
				batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table)
				if err != nil {
					t.Error(err)
					return
				}
				for n := range 1000 {
					if err := batch.Append(uint64(worker*1000+n), "text"); err != nil {
						t.Error(err)
					}
				}
				if err := errors.Join(batch.Send(), batch.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	await.Return(t, await.Limit, "all inserts to end", group.Wait)
	if got := one[uint64](t, conn, "SELECT count() FROM "+table); got != 60_000 {
		t.Errorf("got %d rows, want 60000", got)
	}
}

func TestDeduplicationToken(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	table := tableName(t)
	run(t, conn, "CREATE TABLE "+table+" (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100, fsync_after_insert = 1, fsync_part_directory = 1")
	for _, token := range []string{"it's:1-10", "it's:1-10", "other"} {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{
			"insert_deduplication_token": token, "async_insert": 0, "optimize_on_insert": 0, "max_execution_time": 30,
		}))
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+table)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(batch.Append(uint64(7)), batch.Send(), batch.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if got := one[uint64](t, conn, "SELECT count() FROM "+table); got != 2 {
		t.Errorf("got %d rows, want 2: a token stored twice or not at all", got)
	}
}

func TestSettingsTakeEffect(t *testing.T) {
	t.Parallel()
	conn := open(t, sharedEngine(t), nil)
	with := func(settings clickhouse.Settings) context.Context {
		return clickhouse.Context(t.Context(), clickhouse.WithSettings(settings))
	}
	var got string
	for name, value := range map[string]any{"async_insert": 1, "optimize_on_insert": 0, "max_execution_time": 17, "insert_deduplication_token": "a'b", "max_threads": 3} {
		if err := conn.QueryRow(with(clickhouse.Settings{name: value}), "SELECT toString(getSetting('"+name+"'))").Scan(&got); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(value); got != want && !(got == "true" && want == "1") && !(got == "false" && want == "0") {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := one[bool](t, conn, "SELECT getSetting('async_insert')"); got {
		t.Error("async_insert is on by default")
	}
	for setting, want := range map[string]string{"date_time_output_format=iso": "\"2020-01-02T03:04:05Z\"\n", "output_format_csv_crlf_end_of_line=1": "\"2020-01-02 03:04:05\"\r\n"} {
		name, value, _ := strings.Cut(setting, "=")
		stream, err := conn.QueryFormat(with(clickhouse.Settings{name: value}), "CSV", "SELECT toDateTime('2020-01-02 03:04:05', 'UTC')")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(stream)
		if err := errors.Join(err, stream.Close()); err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s: got %q, want %q", setting, got, want)
		}
	}
	err := conn.Exec(with(clickhouse.Settings{"no_such_setting": 1}), "SELECT 1")
	wantCode(t, err, codeUnknownSetting)
	err = conn.QueryRow(with(clickhouse.Settings{"max_execution_time": 1}), "SELECT sum(sleepEachRow(0.1)) FROM numbers(100) SETTINGS max_block_size = 1").Scan(new(uint64))
	wantCode(t, err, 159)
}

func wantCode(t testing.TB, err error, code int32) {
	t.Helper()
	var exception *clickhouse.Exception
	if !errors.As(err, &exception) {
		t.Errorf("got %v, want an exception of code %d", err, code)
	} else if exception.Code != code {
		t.Errorf("got code %d (%v), want %d", exception.Code, exception, code)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, compression := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open(t, sharedEngine(t), func(o *clickhouse.Options) { o.Compression = compression })
			_, err := conn.Query(t.Context(), "SELECT * FROM no_such_table")
			wantCode(t, err, 60)
			wantCode(t, conn.Exec(t.Context(), "SELEC 1"), codeSyntaxError)
			wantCode(t, conn.Exec(t.Context(), "SELECT 1; SELECT 2"), codeSyntaxError)
			wantCode(t, conn.Exec(t.Context(), "SELECT 1 INTO OUTFILE 'x'"), codeNotImplemented)
			_, err = conn.PrepareBatch(t.Context(), "INSERT INTO no_such_table")
			wantCode(t, err, 60)
			wantCode(t, conn.InsertFormat(t.Context(), "CSV", "INSERT INTO no_such_table", strings.NewReader("1\n")), 60)
			table := tableName(t)
			run(t, conn, "CREATE TABLE "+table+" (n UInt64) ENGINE = MergeTree ORDER BY n")
			wantCode(t, conn.InsertFormat(t.Context(), "CSV", "INSERT INTO "+table, strings.NewReader("1\nx\n")), 117)
			if got := one[uint64](t, conn, "SELECT count() FROM "+table); got != 0 {
				t.Errorf("a refused insert has left %d rows", got)
			}

			// Far into the output.
			rows, err := conn.Query(t.Context(), "SELECT throwIf(number = 900000), number, repeat('x', 20) FROM numbers(1000000) SETTINGS max_threads = 1")
			if err != nil {
				t.Fatal(err)
			}
			count := 0
			for rows.Next() {
				count++
			}
			if err := errors.Join(rows.Err(), rows.Close()); count == 0 {
				t.Errorf("no rows before the error %v", err)
			} else {
				wantCode(t, err, 395)
			}
			stream, err := conn.QueryFormat(t.Context(), "CSV", "SELECT throwIf(number = 900000), number, repeat('x', 20) FROM numbers(1000000) SETTINGS max_threads = 1")
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, stream)
			if err := errors.Join(err, stream.Close()); n == 0 {
				t.Errorf("no output before the error %v", err)
			} else {
				wantCode(t, err, 395)
			}
			ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"wait_end_of_query": 1}))
			_, err = conn.QueryFormat(ctx, "CSV", "SELECT throwIf(number = 900000), number FROM numbers(1000000)")
			wantCode(t, err, 395)
			var httpError *clickhouse.HTTPError
			if !errors.As(err, &httpError) {
				t.Errorf("got %v, want a status", err)
			}
		})
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	e := sharedEngine(t)
	for _, auth := range []clickhouse.Auth{{}, {Username: e.Username()}, {Username: e.Username(), Password: "wrong"}, {Username: "other", Password: e.Password()}} {
		conn := open(t, e, func(o *clickhouse.Options) { o.Auth = auth })
		wantCode(t, conn.Ping(t.Context()), codeAuthenticationFailed)
	}
}
