package rollup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrDisagree means that an hour's events, counted in two ways, are not the same number. Nothing is
// announced, and the hour stays open.
var ErrDisagree = errors.New("the counts of an hour disagree")

// Count is what ClickHouse holds of one organization and trail in an hour.
type Count struct {
	Organization string
	Trail        schema.Trail
	Rows         uint64 // as stored
	Distinct     uint64 // events; less than Rows if an event is stored twice and not yet collapsed
	FirstSeq     uint64
	LastSeq      uint64
}

// Table is audit_events.
type Table interface {
	// Counts returns what was recorded from one instant up to, and without, another, for each
	// organization and trail that has any.
	Counts(ctx context.Context, from, to time.Time) ([]Count, error)
	// FirstRecorded returns the time of the earliest event, and false if there is none.
	FirstRecorded(ctx context.Context) (time.Time, bool, error)
	// CSV streams a partition with a header line; final collapses rows that are stored twice.
	CSV(ctx context.Context, p schema.Partition, final bool) (io.ReadCloser, error)
}

// Floor knows how far the writer has come.
type Floor interface {
	// ClosedUntil returns an instant before which the broker stored no message that is not in
	// ClickHouse, and will store none.
	ClosedUntil(ctx context.Context) (time.Time, error)
}

// Config of a rollup. The zero value of a field means its default.
type Config struct {
	// Hour is the length of a partition; default one hour. It divides a day.
	Hour time.Duration
	// Parallel bounds the partitions made at once; default the number of cores.
	Parallel int
	Logger   *slog.Logger
}

// Rollup makes partitions. Any number may run; those of one hour made twice are the same.
type Rollup struct {
	cfg        Config
	table      Table
	floor      Floor
	progress   Progress
	bucket     *blob.Bucket
	sealer     Sealer
	js         jetstream.JetStream
	partitions atomic.Uint64
	rows       atomic.Uint64
}

// New returns a rollup that keeps how far it has come in progress, writes to bucket what sealer signs, and
// announces it on js.
func New(table Table, floor Floor, progress Progress, bucket *blob.Bucket, sealer Sealer, js jetstream.JetStream, cfg Config) (*Rollup, error) {
	if cfg.Hour == 0 {
		cfg.Hour = time.Hour
	}
	if cfg.Hour < time.Second || (24*time.Hour)%cfg.Hour != 0 {
		return nil, fmt.Errorf("rollup.hour is %s: it has to be one second at least and divide a day", cfg.Hour)
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = runtime.GOMAXPROCS(0)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Rollup{cfg: cfg, table: table, floor: floor, progress: progress, bucket: bucket, sealer: sealer, js: js}, nil
}

// Stats counts since the rollup was made.
type Stats struct{ Partitions, Rows uint64 }

// Stats returns the counts.
func (r *Rollup) Stats() Stats { return Stats{r.partitions.Load(), r.rows.Load()} }

// Tick does what is due: a consumers.Handler for the ticks of HOURS.
func (r *Rollup) Tick(ctx context.Context, _ jetstream.Msg) error {
	_, err := r.Advance(ctx)
	return err
}

// Advance rolls up every hour that is closed and not yet done, and returns the first instant that is
// not rolled up.
func (r *Rollup) Advance(ctx context.Context) (time.Time, error) {
	until, err := r.floor.ClosedUntil(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("find which hours are closed: %w", err)
	}
	next, err := r.progress.Next(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if next.IsZero() {
		// Nothing was recorded in the hours that are closed but before the first event.
		next = until.Truncate(r.cfg.Hour)
		switch first, any, err := r.table.FirstRecorded(ctx); {
		case err != nil:
			return time.Time{}, err
		case any && first.Before(next):
			next = first.Truncate(r.cfg.Hour)
		}
		if err := r.progress.setNext(ctx, next); err != nil {
			return next, err
		}
	}
	for !next.Add(r.cfg.Hour).After(until) {
		if err := r.hour(ctx, next); err != nil {
			return next, fmt.Errorf("roll up the hour of %s: %w", next.Format(time.RFC3339), err)
		}
		next = next.Add(r.cfg.Hour)
		if err := r.progress.setNext(ctx, next); err != nil {
			return next, err
		}
	}
	return next, nil
}

// hour makes the partitions of one closed hour.
func (r *Rollup) hour(ctx context.Context, start time.Time) error {
	counts, err := r.table.Counts(ctx, start, start.Add(r.cfg.Hour))
	if err != nil {
		return err
	}
	known, err := r.progress.known(ctx)
	if err != nil {
		return err
	}
	have := map[series]Count{}
	for _, c := range counts {
		s := series{c.Organization, c.Trail}
		have[s] = c
		if !known[s] {
			if err := r.progress.learn(ctx, s, start); err != nil {
				return err
			}
			known[s] = true
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.cfg.Parallel)
	for s := range known {
		p := schema.Partition{Organization: s.organization, Trail: s.trail, Hour: start, Length: r.cfg.Hour}
		g.Go(func() error {
			if err := r.partition(ctx, p, have[s]); err != nil {
				return fmt.Errorf("partition %s: %w", p, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// partition makes one partition, or finds that it is made, and announces it.
func (r *Rollup) partition(ctx context.Context, p schema.Partition, c Count) error {
	m, err := r.sealed(ctx, p.ManifestKey())
	if err != nil {
		return err
	}
	if m == nil {
		if m, err = r.write(ctx, p, c); err != nil {
			return err
		}
		r.partitions.Add(1)
		r.rows.Add(m.Rows)
	}
	if m.Rows != c.Distinct {
		return fmt.Errorf("%w: ClickHouse has %d events, the manifest says %d", ErrDisagree, c.Distinct, m.Rows)
	}
	return r.announce(ctx, p, m)
}

// announce publishes what the manifest says; its signature is in the store.
func (r *Rollup) announce(ctx context.Context, p schema.Partition, m *seal.Sealed) error {
	msg := nats.NewMsg(schema.SubjectPartitions + "." + p.Organization + "." + string(p.Trail))
	msg.Data = m.Text
	msg.Header.Set(nats.MsgIdHdr, p.Path())
	if _, err := r.js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	r.cfg.Logger.Info("partition", slog.String("path", p.Path()), slog.Uint64("rows", m.Rows), slog.Int64("bytes", m.FileBytes))
	return nil
}
