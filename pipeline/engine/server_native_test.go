package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/engine/clickhousetest"
)

// TestNativeProtocol shows that what talks to the embedded engine talks to a server by the native protocol
// as well. The oldest server that a distribution still ships is the strictest: it lacks what came later.
func TestNativeProtocol(t *testing.T) {
	t.Parallel()
	native, _ := clickhousetest.StartServer(t)
	for name, method := range map[string]clickhouse.CompressionMethod{"none": clickhouse.CompressionNone, "lz4": clickhouse.CompressionLZ4} {
		options, err := clickhouse.ParseDSN("clickhouse://" + native + "/default")
		if err != nil {
			t.Fatal(err)
		}
		options.Compression = &clickhouse.Compression{Method: method}
		conn, err := clickhouse.Open(options)
		if err != nil {
			t.Fatal(err)
		}
		version, err := conn.ServerVersion()
		if err != nil {
			t.Fatalf("%s: handshake: %v", name, err)
		}
		t.Logf("server %s, revision %d", version.Version.String(), version.Revision)
		table := "native_" + name
		run(t, conn, "CREATE TABLE "+table+" (n UInt64, s String, d DateTime, a Array(String), o Nullable(String)) ENGINE = MergeTree ORDER BY n")
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table)
		if err != nil {
			t.Fatalf("%s: prepare: %v", name, err)
		}
		now := time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC)
		const rows = 10_000
		for n := range rows {
			if err := batch.Append(uint64(n), "some\n\ntext", now, []string{"a", "b"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(batch.Send(), batch.Close()); err != nil {
			t.Fatalf("%s: send: %v", name, err)
		}
		var count, sum uint64
		var last time.Time
		if err := conn.QueryRow(t.Context(), "SELECT count(), sum(n), max(d) FROM "+table).Scan(&count, &sum, &last); err != nil {
			t.Fatalf("%s: select: %v", name, err)
		}
		if count != rows || sum != rows*(rows-1)/2 || !last.Equal(now) {
			t.Errorf("%s: got %d rows, sum %d, %s", name, count, sum, last)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
