package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/engine/clickhousetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// The native protocol against a real server. Debian's knows no DateTime64 and no Map, so the table is a
// reduced one; the columns go the same way as those of audit_events.
func TestNativeProtocol(t *testing.T) {
	t.Parallel()
	addr, _ := clickhousetest.StartServer(t)
	s, err := Open(t.Context(), Options{URL: "clickhouse://default@" + addr, Database: "reduced"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if !s.native {
		t.Fatal("not the native protocol")
	}
	var in codec.Insert
	var want []schema.Event
	source := sample.New(4, nil)
	for seq := range uint64(3) {
		block := codec.NewBlock()
		for range 100 {
			e := source.Next()
			block.Append(&e)
			want = append(want, e)
		}
		in.Add(codec.Part{
			Organization: "acme", Trail: schema.Activity, RecordedAt: time.Now(), StreamSeq: seq + 1, ExpiresAt: time.Now().AddDate(2, 0, 0), Block: block,
		})
	}
	types := map[string]string{"organization": "String", "stream_seq": "UInt64", "batch_index": "UInt32", "expires_at": "DateTime('UTC')", "id": "UUID", "description": "String", "data": "String"}
	var names, columns []string
	for _, c := range in.Columns() {
		if types[c.Name] != "" {
			names, columns = append(names, c.Name), append(columns, c.Name+" "+types[c.Name])
		}
	}
	err = s.conn.Exec(t.Context(), "CREATE TABLE reduced.events ("+strings.Join(columns, ", ")+") ENGINE = MergeTree ORDER BY (stream_seq, batch_index)")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := s.conn.PrepareBatch(t.Context(), "INSERT INTO reduced.events ("+strings.Join(names, ", ")+")")
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for _, c := range in.Columns() {
		if types[c.Name] == "" {
			continue
		}
		if err := appendColumn(batch.Column(i), c, in.Rows()); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		i++
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	if err := batch.Close(); err != nil {
		t.Fatal(err)
	}
	rows, err := s.conn.Query(t.Context(), "SELECT id, description, data, stream_seq, batch_index, organization FROM reduced.events ORDER BY stream_seq, batch_index")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var id uuid.UUID
		var description, data, organization string
		var seq uint64
		var index uint32
		if err := rows.Scan(&id, &description, &data, &seq, &index, &organization); err != nil {
			t.Fatal(err)
		}
		e := want[n]
		if id != e.ID || description != e.Description || data != string(e.Data) || seq != uint64(n/100+1) || index != uint32(n%100) || organization != "acme" {
			t.Fatalf("row %d: %s %q %q %d %d %s; want %+v", n, id, description, data, seq, index, organization, e)
		}
		n++
	}
	if err := rows.Err(); err != nil || n != len(want) {
		t.Errorf("%d rows, %v; want %d", n, err, len(want))
	}
}

func TestOptionsOfAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"http://host": "host:8123", "https://host": "host:8443", "clickhouse://host": "host:9000", "clickhouse://host?secure=true": "host:9440",
		"clickhouse://u:p@host:1/db": "host:1",
	} {
		o, err := options(Options{URL: address})
		if err != nil || o.Addr[0] != want {
			t.Errorf("%s: %v, %v; want %s", address, o, err, want)
		}
	}
	for address, says := range map[string]string{"ftp://u:secret@host": "use http://, https:// or clickhouse://", "http://": "names no host", "http://u:secret@[": "clickhouse.url"} {
		if _, err := options(Options{URL: address}); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v; want %q", address, err, says)
		}
	}
}

// Inserts that are under way when it is asked are waited for.
func TestAwaitInserts(t *testing.T) {
	t.Parallel()
	addr, _ := clickhousetest.StartServer(t)
	s, err := Open(t.Context(), Options{URL: "clickhouse://default@" + addr, Database: "kansa"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.conn.Exec(t.Context(), "CREATE TABLE kansa.audit_events (n UInt64) ENGINE = MergeTree ORDER BY n"); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitInserts(t.Context()); err != nil {
		t.Errorf("with none: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.conn.Exec(t.Context(), "INSERT INTO audit_events (n) SELECT sleep(2)") }()
	for {
		ids, err := s.insertsUnderWay(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(ids) == 1 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the insert was never seen: %v", err)
		default:
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.AwaitInserts(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("did not wait: %v", err)
	}
	if err := s.AwaitInserts(t.Context()); err != nil {
		t.Error(err)
	}
	var rows uint64
	if err := s.conn.QueryRow(t.Context(), "SELECT count() FROM kansa.audit_events").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows when the insert had ended, %v", rows, err)
	}
	if err := await.Receive(t, await.Limit, "the insert to end", ended); err != nil {
		t.Error(err)
	}
}
