package rollup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Count is what ClickHouse holds of one organization and trail in an hour.
type Count struct {
	Organization string
	Trail        schema.Trail
	seal.Digest
	FirstSeq, LastSeq uint64
}

// Table is audit_events.
type Table interface {
	// Counts returns what was recorded from one instant up to, and without, another, for each
	// organization and trail that has any; final collapses rows that are stored twice.
	Counts(ctx context.Context, from, to time.Time, final bool) ([]Count, error)
	// FirstRecorded returns the time of the earliest event, and false if there is none.
	FirstRecorded(ctx context.Context) (time.Time, bool, error)
	// CSV streams a partition with a header line; final collapses rows that are stored twice.
	CSV(ctx context.Context, p schema.Partition, final bool) (io.ReadCloser, error)
}

// Floor knows AUDIT, and how far the writer has come in it.
type Floor interface {
	// Closed returns an instant before which the broker stored no message that is not in ClickHouse, and
	// will store none; and the place in the stream up to which all are.
	Closed(ctx context.Context) (until time.Time, seq uint64, err error)
	// Recorded returns when the stream stored a message, and false if it does not have it.
	Recorded(ctx context.Context, seq uint64) (time.Time, bool, error)
}

// Recording knows when trails were switched off. What it returns holds for every hour that was over before the call:
// see package recording.
type Recording interface {
	Now(ctx context.Context) (recording.State, error)
}

// Config of a rollup. The zero value of a field means its default.
type Config struct {
	// Hour is the length of a partition; default one hour. It divides a day.
	Hour time.Duration
	// Parallel bounds the partitions made at once; default the number of cores.
	Parallel int
	// Recording says when trails were switched off, for the manifests. Default: never.
	Recording Recording
	// Alarm is told of every hour that can't be sealed because its counts disagree, or because the stream
	// has lost messages; p is then without an organization. Default: the log has it.
	Alarm func(ctx context.Context, p schema.Partition, err error)
	// Tracing has each hour be a span. Default: none.
	Tracing trace.TracerProvider
	Logger  *slog.Logger
}

// Rollup makes partitions. Any number may run; those of one hour made twice are the same.
type Rollup struct {
	cfg        Config
	table      Table
	ledger     Ledger
	floor      Floor
	progress   Progress
	bucket     *blob.Bucket
	sealer     Sealer
	js         jetstream.JetStream
	tracer     trace.Tracer
	partitions atomic.Uint64
	rows       atomic.Uint64
	alarms     atomic.Uint64
	hours      atomic.Uint64
	spent      atomic.Int64 // on hours
	last       atomic.Int64 // of it, on the last one

	// first is the first hour of each series, as far as it was asked for.
	mu    sync.Mutex
	first map[series]time.Time
}

// New returns a rollup that keeps how far it has come in progress, writes to bucket what sealer signs, and
// announces it on js.
func New(table Table, ledger Ledger, floor Floor, progress Progress, bucket *blob.Bucket, sealer Sealer, js jetstream.JetStream, cfg Config) (*Rollup, error) {
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
	if cfg.Tracing == nil {
		cfg.Tracing = noop.NewTracerProvider()
	}
	if cfg.Alarm == nil {
		cfg.Alarm = func(context.Context, schema.Partition, error) {}
	}
	return &Rollup{
		cfg: cfg, table: table, ledger: ledger, floor: floor, progress: progress, bucket: bucket, sealer: sealer, js: js,
		tracer: cfg.Tracing.Tracer("github.com/kansa-audit/kansa/consumers/rollup"),
	}, nil
}

// Stats counts since the rollup was made.
type Stats struct {
	Partitions, Rows, Alarms uint64
	Hours                    uint64        // that were sealed
	Spent, Last              time.Duration // on all of them, and on the last one
}

// Stats returns the counts.
func (r *Rollup) Stats() Stats {
	return Stats{
		Partitions: r.partitions.Load(), Rows: r.rows.Load(), Alarms: r.alarms.Load(), Hours: r.hours.Load(),
		Spent: time.Duration(r.spent.Load()), Last: time.Duration(r.last.Load()),
	}
}

// Tick does what is due: a consumers.Handler for the ticks of HOURS.
func (r *Rollup) Tick(ctx context.Context, _ jetstream.Msg) error {
	next, err := r.Advance(ctx)
	if errors.As(err, new(leftBehind)) {
		err = nil // the alarm was given when it happened; the next tick, or a repair, has it tried again
	}
	// A tick comes when an hour ends, and what was recorded last is then on its way.
	if due := next.Add(r.cfg.Hour); err == nil && !due.After(time.Now()) {
		return consumers.Later(fmt.Errorf("the hour of %s is over, and not all of it is stored yet", next.Format(time.RFC3339)), min(r.cfg.Hour/4, 2*time.Second))
	}
	return err
}

// leftBehind is the error of series that were left behind, and of nothing else.
type leftBehind struct{ error }

func (e leftBehind) Unwrap() error { return e.error }

// Advance rolls up every hour that is closed and not yet done, and returns the first instant that is
// not rolled up. An organization and trail whose counts disagree is left behind, and tried again each time;
// the error is then [ErrDisagree]. If the stream has lost messages, nobody's hour is sealed: [ErrLost].
func (r *Rollup) Advance(ctx context.Context) (time.Time, error) {
	until, floor, err := r.floor.Closed(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("find which hours are closed: %w", err)
	}
	at, err := r.progress.position(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if at.next.IsZero() {
		// Nothing was recorded in the hours that are closed but before the first event.
		at.next = until.Truncate(r.cfg.Hour)
		switch first, any, err := r.table.FirstRecorded(ctx); {
		case err != nil:
			return time.Time{}, err
		case any && first.Before(at.next):
			at.next = first.Truncate(r.cfg.Hour)
		}
		if err := r.progress.setPosition(ctx, at); err != nil {
			return at.next, err
		}
	}
	for !at.next.Add(r.cfg.Hour).After(until) {
		began := time.Now()
		sealing, span := r.tracer.Start(ctx, "seal hour", trace.WithAttributes(attribute.String("kansa.hour", at.next.Format(time.RFC3339))))
		h, err := r.account(sealing, at, floor)
		if err == nil {
			err = r.hour(sealing, h)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
		if errors.Is(err, ErrLost) {
			r.alarm(ctx, schema.Partition{Hour: at.next, Length: r.cfg.Hour}, err)
		}
		if err != nil {
			return at.next, fmt.Errorf("roll up the hour of %s: %w", at.next.Format(time.RFC3339), err)
		}
		at = position{at.next.Add(r.cfg.Hour), h.lastSeq}
		if err := r.progress.setPosition(ctx, at); err != nil {
			return at.next, err
		}
		took := int64(time.Since(began))
		r.hours.Add(1)
		r.spent.Add(took)
		r.last.Store(took)
	}
	return at.next, r.retry(ctx, at.next, floor)
}

// hour makes the partitions of one closed hour, but not those of series that are left behind.
func (r *Rollup) hour(ctx context.Context, h *hour) error {
	r.mu.Lock()
	first := r.first
	r.mu.Unlock()
	known, err := r.progress.known(ctx, first)
	if err != nil {
		return err
	}
	unknown := false
	// That a trail is switched off is to be stated, too, and be it from the beginning.
	for s := range h.series() {
		if _, ok := known[s]; !ok {
			if err := r.progress.learn(ctx, s, h.start); err != nil {
				return err
			}
			unknown = true
		}
	}
	if unknown { // another rollup may have learnt of them first
		if known, err = r.progress.known(ctx, known); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.first = known
	r.mu.Unlock()
	blocked, err := r.progress.blocked(ctx)
	if err != nil {
		return err
	}
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(r.cfg.Parallel)
	for s, first := range known {
		if _, ok := blocked[s]; ok {
			continue
		}
		// Whoever was held up and does an hour again must not find it empty for a series that was seen later: its chain
		// would have two beginnings.
		if first.After(h.start) {
			continue
		}
		g.Go(func() error {
			err := r.partition(working, s, h)
			if errors.Is(err, ErrDisagree) {
				r.alarm(ctx, h.partition(s), err)
				return r.progress.block(ctx, s, h.start)
			}
			return err
		})
	}
	return g.Wait()
}

// retry goes on where a series was left behind, up to next.
func (r *Rollup) retry(ctx context.Context, next time.Time, floor uint64) error {
	blocked, err := r.progress.blocked(ctx)
	if err != nil {
		return err
	}
	var left []error
	for s, start := range blocked {
		for ; start.Before(next); start = start.Add(r.cfg.Hour) {
			h, err := r.account(ctx, position{next: start}, floor)
			if err == nil {
				err = r.partition(ctx, s, h)
			}
			if errors.Is(err, ErrDisagree) {
				left = append(left, err)
				err = r.progress.block(ctx, s, start)
				if err == nil {
					break
				}
			}
			if err != nil {
				return err
			}
		}
		if !start.Before(next) {
			if err := r.progress.unblock(ctx, s); err != nil {
				return err
			}
		}
	}
	if len(left) > 0 {
		return leftBehind{errors.Join(left...)}
	}
	return nil
}

func (r *Rollup) alarm(ctx context.Context, p schema.Partition, err error) {
	r.alarms.Add(1)
	r.cfg.Logger.Error("an hour can not be sealed", slog.String("path", p.Path()), slog.Any("reason", err))
	r.cfg.Alarm(ctx, p, err)
}

// partition makes one partition, or finds that it is made, and announces it.
func (r *Rollup) partition(ctx context.Context, s series, h *hour) error {
	p := h.partition(s)
	m, err := r.makePartition(ctx, p, h)
	if err != nil {
		return fmt.Errorf("partition %s: %w", p, err)
	}
	return r.announce(ctx, p, m)
}

func (r *Rollup) makePartition(ctx context.Context, p schema.Partition, h *hour) (*seal.Sealed, error) {
	a := h.accounts[series{p.Organization, p.Trail}]
	m, err := r.sealed(ctx, p.ManifestKey())
	if err != nil {
		return nil, err
	}
	if m != nil {
		if m.Digest != a.stream || m.Digest != a.table.Digest {
			return nil, a.disagree(&m.Digest)
		}
		return m, nil
	}
	if a.stream != a.table.Digest {
		return nil, a.disagree(nil)
	}
	if m, err = r.write(ctx, p, a, h.gapsOf(series{p.Organization, p.Trail})); err != nil {
		return nil, err
	}
	r.partitions.Add(1)
	r.rows.Add(m.Rows)
	return m, nil
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
