package engine

import (
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// BenchmarkInsert stores blocks of 50,000 small rows by clickhouse-go, four at once.
func BenchmarkInsert(b *testing.B) {
	conn := open(b, startEngine(b, b.TempDir()), nil)
	run(b, conn, "CREATE TABLE bench (n UInt64, t DateTime64(6), actor LowCardinality(String), text String) ENGINE = MergeTree ORDER BY n")
	const rows, workers = 50_000, 4
	numbers, actors, texts := make([]uint64, rows), make([]string, rows), make([]string, rows)
	times := make([]int64, rows)
	for i := range rows {
		numbers[i], times[i], actors[i], texts[i] = uint64(i), int64(i), "actor", "a short text that says what was done"
	}
	b.ReportAllocs()
	var group sync.WaitGroup
	blocks := make(chan struct{})
	for range workers {
		group.Go(func() {
			for range blocks {
				batch, err := conn.PrepareBatch(b.Context(), "INSERT INTO bench")
				if err != nil {
					b.Error(err)
					continue
				}
				if err := errors.Join(fill(batch, numbers, times, actors, texts), batch.Send(), batch.Close()); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for b.Loop() {
		blocks <- struct{}{}
	}
	close(blocks)
	await.Return(b, await.Limit, "the inserts to end", group.Wait)
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func fill(batch driver.Batch, columns ...any) error {
	for i, column := range columns {
		if err := batch.Column(i).Append(column); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkSelect reads a column of numbers and one of text, re-framed for a client of today.
func BenchmarkSelect(b *testing.B) {
	e := startEngine(b, b.TempDir())
	const query = "SELECT number, repeat('x', 100) FROM numbers(1000000)"
	b.ReportAllocs()
	for b.Loop() {
		body, done := get(b, e, "POST", "/?client_protocol_version=54460&default_format=Native", query)
		n, err := io.Copy(io.Discard, body)
		if err != nil {
			b.Fatal(err)
		}
		done()
		b.SetBytes(n)
	}
}

// BenchmarkPing is the cost of one small query.
func BenchmarkPing(b *testing.B) {
	conn := open(b, startEngine(b, b.TempDir()), nil)
	for b.Loop() {
		if err := conn.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
