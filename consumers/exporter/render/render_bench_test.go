package render_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
	"github.com/kansa-audit/kansa/schema/seal"
)

// partitionsOf puts partitions of rows events each into a bucket.
func partitionsOf(tb testing.TB, bucket *blob.Bucket, n, rows int) (sources []render.Source) {
	tb.Helper()
	hour := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	src := sample.New(1, func() time.Time { return hour })
	for i := range n {
		p := schema.Partition{Organization: "acme", Trail: schema.Activity, Hour: hour.Add(time.Duration(i) * time.Hour), Length: time.Hour}
		text := codec.AppendCSVHeader(nil)
		for j := range rows {
			e := codec.Stored{Event: src.Next(), RecordedAt: p.Hour.Add(time.Duration(j) * time.Millisecond), StreamSeq: uint64(i*rows + j + 1)}
			e.Organization, e.Trail = p.Organization, p.Trail
			text = codec.AppendCSV(text, &e)
		}
		seals := seal.NewRows(p, codec.CSVColumns)
		if _, err := seals.Write(text); err != nil {
			tb.Fatal(err)
		}
		c, err := seals.Close()
		if err != nil {
			tb.Fatal(err)
		}
		var file bytes.Buffer
		gz, err := gzip.NewWriterLevel(&file, gzip.BestSpeed)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := gz.Write(text); err != nil {
			tb.Fatal(err)
		}
		if err := gz.Close(); err != nil {
			tb.Fatal(err)
		}
		if err := bucket.WriteAll(tb.Context(), p.CSVKey(), file.Bytes(), nil); err != nil {
			tb.Fatal(err)
		}
		sources = append(sources, render.Source{Partition: p, Rows: c.Rows, CSVBytes: c.Bytes, CSVSHA256: fmt.Sprintf("%x", c.SHA256)})
	}
	return sources
}

// BenchmarkRender reads partitions from a directory and writes their rendered files, durable, into another.
func BenchmarkRender(b *testing.B) {
	const n, rows = 8, 20_000
	bucket, err := partitions.Open(b.Context(), "file://"+b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = bucket.Close() })
	sources := partitionsOf(b, bucket, n, rows)
	for _, c := range []render.Content{
		{Profile: codec.ProfileDataPrep},
		{Format: codec.FormatTSV},
		{Format: codec.FormatNDJSON},
		{Format: codec.FormatJSON},
		{Format: codec.FormatCEF},
		{Format: codec.FormatNDJSON, Filter: schema.Filter{Action: "publish"}},
	} {
		name := c.Suffix()[1:]
		if !c.Filter.IsZero() {
			name += "-filtered"
		}
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				a := render.Area{Bucket: bucket, Export: fmt.Sprint(name, i), Content: &c}
				if err := a.Render(b.Context(), sources, func(int, uint64) {}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*n*rows/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// Memory does not grow with a partition: rendering one of a hundred times the events takes no more.
func TestMemoryIsConstant(t *testing.T) {
	bucket, err := partitions.Open(t.Context(), "file://"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bucket.Close() })
	allocated := func(rows int) float64 {
		sources := partitionsOf(t, bucket, 1, rows)
		i := 0
		r := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				i++
				c := render.Content{Format: codec.FormatNDJSON}
				a := render.Area{Bucket: bucket, Export: fmt.Sprint(rows, "-", i), Content: &c}
				if err := a.Render(t.Context(), sources, func(int, uint64) {}); err != nil {
					b.Fatal(err)
				}
			}
		})
		return float64(r.AllocedBytesPerOp())
	}
	small, large := allocated(500), allocated(50_000)
	if large > 2*small+4<<20 { // events with attributes allocate a little each
		t.Errorf("50,000 events allocate %.1f MB, 500 %.1f MB", large/1e6, small/1e6)
	}
}
