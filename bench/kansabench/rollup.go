package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/klauspost/compress/gzip"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/schema"
)

type rollupSettings struct {
	Broker string        `json:"broker"`
	Store  storeSettings `json:"store"`
	Dir    string        `json:"dir"` // of the partitions
	Until  time.Time     `json:"until"`
}

// closed is a floor that has been reached.
type closed time.Time

func (c closed) Closed(context.Context) (time.Time, uint64, error) { return time.Time(c), 0, nil }

func (c closed) Messages(context.Context, uint64, uint64, func(floor.Message) error) error {
	return nil
}

func (c closed) Since(context.Context, time.Time) (floor.Message, bool, error) {
	return floor.Message{}, false, nil
}

// ledger stands for the writer's account, as there was no writer: the table was filled without.
type ledger []tally.Tally

func (l ledger) Between(_ context.Context, from, to time.Time) (tallies []tally.Tally, after *tally.Tally, err error) {
	for _, t := range l {
		if !t.RecordedAt.Before(from) && t.RecordedAt.Before(to) {
			tallies = append(tallies, t)
		}
	}
	return tallies, nil, nil
}

// rollupPart rolls up everything before an instant.
func rollupPart(ctx context.Context, s *session) (r report, err error) {
	var set rollupSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	client, err := broker.Connect(ctx, broker.Options{URL: set.Broker, Name: "bench rollup", Logger: warnings()})
	if err != nil {
		return r, err
	}
	defer client.Close()
	table, err := set.Store.open(ctx)
	if err != nil {
		return r, err
	}
	defer table.Close()
	kv, err := client.JS.KeyValue(ctx, broker.BucketRollup)
	if err != nil {
		return r, fmt.Errorf("open the bucket of the rollup: %w", err)
	}
	bucket, err := partitions.OpenDirectory(set.Dir)
	if err != nil {
		return r, fmt.Errorf("open the partition store: %w", err)
	}
	defer bucket.Close()
	sealer, err := keys.Open(ctx, filepath.Dir(set.Dir), bucket)
	if err != nil {
		return r, err
	}
	taken, err := table.Tallies(ctx, time.Unix(0, 0), set.Until)
	if err != nil {
		return r, err
	}
	roll, err := rollup.New(table, ledger(taken), closed(set.Until), rollup.Progress{JS: client.JS, KV: kv}, bucket, sealer, client.JS, rollup.Config{})
	if err != nil {
		return r, err
	}
	s.say(r)
	ctx = s.untilTold(ctx, nil)
	began := time.Now()
	if _, err := roll.Advance(ctx); err != nil {
		return r, err
	}
	s.say(report{Stored: roll.Stats().Rows, Seconds: time.Since(began).Seconds(), Done: true})
	<-ctx.Done() // so that the parent can look at what it used
	return report{Stored: roll.Stats().Rows, Seconds: time.Since(began).Seconds()}, nil
}

// rollupDetails is what is kept of the measurement.
type rollupDetails struct {
	Rows       uint64  `json:"rows"`
	CSVBytes   int64   `json:"csv_bytes"`
	Seconds    float64 `json:"seconds"`
	PeakMiB    float64 `json:"peak_mib"`
	CSVSeconds float64 `json:"engine_csv_seconds"`
	GzSeconds  float64 `json:"compressor_seconds"`
	Ratio      float64 `json:"ratio"`
}

// lastHour is a closed hour, in the middle of a month's partition.
func lastHour() time.Time {
	now := time.Now().UTC()
	return time.Date(now.Year(), now.Month()-1, 15, 4, 0, 0, 0, time.UTC)
}

func (b *bench) rollup(ctx context.Context) error {
	d, err := b.rollUp(ctx, "rollup", scale(b, uint64(5_000_000), 300_000), true)
	if err != nil {
		return err
	}
	d.Ratio = (d.CSVSeconds + d.GzSeconds) / d.Seconds
	b.say("rollup: %.1f s; the engine's CSV %.1f s and the compressor %.1f s", d.Seconds, d.CSVSeconds, d.GzSeconds)
	sum := &b.result.Summary
	sum.RollupRatio, sum.RollupRowsPerS = figure(d.Ratio), figure(float64(d.Rows)/d.Seconds)
	b.result.add("rollup", d, table{
		title:  "Rollup: one hour of one trail to .csv.gz",
		header: []string{"rows", "CSV MB", "seconds", "rows/s", "the engine's CSV alone, s", "the compressor alone, s", "ratio of the sum", "peak MiB"},
		rows: [][]string{{
			number(float64(d.Rows)), number(float64(d.CSVBytes) / 1e6), number(d.Seconds), number(float64(d.Rows) / d.Seconds),
			number(d.CSVSeconds), number(d.GzSeconds), number(d.Ratio), number(d.PeakMiB),
		}},
	})
	return nil
}

// rollUp makes the partition of one hour of n events; with parts, what it is made of is measured too.
func (b *bench) rollUp(ctx context.Context, name string, n uint64, apart bool) (d rollupDetails, err error) {
	s, err := b.newStack(name)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startBroker(ctx); err != nil {
		return d, err
	}
	if err := s.startEngine(ctx); err != nil {
		return d, err
	}
	hour := lastHour()
	if err := s.fill(ctx, n, hour, time.Hour-time.Second, "acme"); err != nil {
		return d, err
	}
	if apart { // first, so that the rollup is not the one that finds caches cold, nor the one that finds them warm
		if err := s.warm(ctx); err != nil {
			return d, err
		}
	}
	p, err := s.start(ctx, "rollup", rollupSettings{
		Broker: s.broker.now().URL, Store: s.settings(), Dir: filepath.Join(s.dir, "partitions"), Until: hour.Add(time.Hour),
	})
	if err != nil {
		return d, err
	}
	r, err := p.until(ctx, func(r report) bool { return r.Done })
	if err != nil {
		return d, err
	}
	d.Rows, d.Seconds, d.PeakMiB = r.Stored, r.Seconds, p.usage().PeakMiB
	if _, err := p.finish(ctx); err != nil {
		return d, err
	}
	if !apart {
		return d, nil
	}
	return d, s.apart(ctx, hour, &d)
}

func (s *stack) warm(ctx context.Context) error {
	out, err := s.csv(ctx)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, out)
	return errors.Join(err, out.Close())
}

// csv is the engine's own text of the hour, in its own order and its own settings.
func (s *stack) csv(ctx context.Context) (io.ReadCloser, error) {
	out, err := s.store.Conn().QueryFormat(clickhouse.Context(ctx), "CSVWithNames",
		"SELECT * FROM audit_events WHERE organization = 'acme' AND trail = '"+string(schema.Activity)+"' ORDER BY organization, trail, recorded_at, stream_seq, batch_index")
	if err != nil {
		return nil, fmt.Errorf("read as CSV: %w", err)
	}
	return out, nil
}

// apart measures the engine's CSV thrown away, and the compressor on the same text from the page cache.
func (s *stack) apart(ctx context.Context, hour time.Time, d *rollupDetails) (err error) {
	began := time.Now()
	if err := s.warm(ctx); err != nil {
		return err
	}
	d.CSVSeconds = time.Since(began).Seconds()
	text, err := os.Create(filepath.Join(s.dir, "hour.csv"))
	if err != nil {
		return fmt.Errorf("keep the CSV: %w", err)
	}
	defer func() { err = errors.Join(err, text.Close()) }()
	// The partition's own text, not the other query's.
	p := schema.Partition{Organization: "acme", Trail: schema.Activity, Hour: hour, Length: time.Hour}
	stored, err := os.Open(filepath.Join(s.dir, "partitions", p.CSVKey()))
	if err != nil {
		return fmt.Errorf("read the partition: %w", err)
	}
	defer stored.Close()
	unzipped, err := gzip.NewReader(stored)
	if err != nil {
		return fmt.Errorf("read the partition: %w", err)
	}
	if d.CSVBytes, err = io.Copy(text, unzipped); err != nil {
		return fmt.Errorf("keep the CSV: %w", err)
	}
	if _, err := text.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("keep the CSV: %w", err)
	}
	gz, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	began = time.Now()
	buf := make([]byte, 256<<10)
	// Without ReadFrom and WriteTo, so that the buffer is used.
	if _, err := io.CopyBuffer(struct{ io.Writer }{gz}, struct{ io.Reader }{text}, buf); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	if err := gz.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	d.GzSeconds = time.Since(began).Seconds()
	return ctx.Err()
}
