package rollup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"slices"
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
	"github.com/kansa-audit/kansa/consumers/floor"
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
	// Messages visits the messages that the stream still has from one place to another, both included, in order.
	Messages(ctx context.Context, first, last uint64, visit func(floor.Message) error) error
	// Since returns the first message that the stream stored at an instant or later, and false if there is none.
	Since(ctx context.Context, at time.Time) (floor.Message, bool, error)
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
	// Alarm is called once when an hour cannot be sealed, and Resumed once when it is. Retries call neither. If the stream
	// has lost messages, p is without an organization. Default: the log has it.
	Alarm   func(ctx context.Context, p schema.Partition, err error)
	Resumed func(ctx context.Context, p schema.Partition, since time.Time)
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
	// tries counts how often an hour was tried of which some partitions could be made and some could not.
	tries struct {
		hour time.Time
		n    int
	}
	failing atomic.Pointer[Failure]
	busy    atomic.Int64 // when what is under way began, in nanoseconds; 0: nothing is
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
	if cfg.Resumed == nil {
		cfg.Resumed = func(context.Context, schema.Partition, time.Time) {}
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

// retryBlocked is how often what is blocked is tried again, or the length of an hour if that is less.
const retryBlocked = time.Minute

// Tick does what is due: a consumers.Handler for the ticks of HOURS.
func (r *Rollup) Tick(ctx context.Context, _ jetstream.Msg) error {
	next, err := r.Advance(ctx)
	// A tick comes when an hour ends, and what was recorded last is then on its way.
	due := !next.IsZero() && !next.Add(r.cfg.Hour).After(time.Now())
	switch {
	case err == nil && due, errors.As(err, new(leftBehind)) && due && !errors.Is(err, ErrLost):
		return consumers.Later(fmt.Errorf("the hour of %s is over, and not all of it is stored yet", next.Format(time.RFC3339)), min(r.cfg.Hour/4, 2*time.Second))
	case errors.As(err, new(leftBehind)), errors.Is(err, ErrLost):
		return consumers.Later(err, min(r.cfg.Hour, retryBlocked)) // the alarm was given when it happened
	}
	return err
}

// leftBehind is the error of series that were left behind, and of nothing else.
type leftBehind struct{ error }

func (e leftBehind) Unwrap() error { return e.error }

// Failure is why the last attempts to seal hours failed, for every organization.
type Failure struct {
	Hour  time.Time // zero if it is not known
	Since time.Time // the first of these attempts
	Err   error
}

// Failing returns why this rollup could seal nothing when it last tried, or nil. Blocked series are not a failure.
func (r *Rollup) Failing() *Failure { return r.failing.Load() }

// Busy returns for how long the hour, or the trail, that is being sealed has taken; 0 if none is.
func (r *Rollup) Busy() time.Duration {
	if at := r.busy.Load(); at > 0 {
		return time.Since(time.Unix(0, at))
	}
	return 0
}

func (r *Rollup) note(next time.Time, err error) {
	if err == nil || errors.As(err, new(leftBehind)) {
		r.failing.Store(nil)
		return
	}
	f := &Failure{Hour: next, Since: time.Now(), Err: err}
	if before := r.failing.Load(); before != nil {
		f.Since = before.Since
	}
	r.failing.Store(f)
}

// Advance rolls up every hour that is closed and not yet done, and returns the first instant that is
// not rolled up. An organization and trail that cannot be sealed is left behind, and tried again each time;
// the error is then [ErrDisagree], [ErrUnstored], [ErrLate] or [ErrChain]. If the stream has lost messages of which
// nobody can say whose they were, nobody's hour is sealed: [ErrLost].
func (r *Rollup) Advance(ctx context.Context) (time.Time, error) {
	r.busy.Store(time.Now().UnixNano())
	defer r.busy.Store(0)
	next, err := r.advance(ctx)
	if ctx.Err() == nil { // or it was told to stop
		r.note(next, err)
	}
	return next, err
}

func (r *Rollup) advance(ctx context.Context) (time.Time, error) {
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
	stopped, err := r.progress.Stopped(ctx)
	if err != nil {
		return at.next, err
	}
	for !at.next.Add(r.cfg.Hour).After(until) {
		began := time.Now()
		sealing, span := r.tracer.Start(ctx, "seal hour", trace.WithAttributes(attribute.String("kansa.hour", at.next.Format(time.RFC3339))))
		h, err := r.account(sealing, at, floor)
		if err == nil {
			err = h.lostErr()
		}
		if err == nil {
			err = r.hour(sealing, at, h)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
		if errors.Is(err, ErrLost) {
			if stopErr := r.stop(ctx, at, stopped, h, err); stopErr != nil {
				return at.next, stopErr
			}
		}
		if err != nil {
			return at.next, fmt.Errorf("roll up the hour of %s: %w", at.next.Format(time.RFC3339), err)
		}
		if stopped != nil {
			r.resumed(ctx, schema.Partition{Hour: stopped.Hour, Length: r.cfg.Hour}, stopped.Since)
			if err := r.progress.resume(ctx); err != nil {
				return at.next, err
			}
			stopped = nil
		}
		at = position{at.next.Add(r.cfg.Hour), h.lastSeq}
		if err := r.progress.setPosition(ctx, at); err != nil {
			return at.next, err
		}
		r.busy.Store(time.Now().UnixNano())
		took := int64(time.Since(began))
		r.hours.Add(1)
		r.spent.Add(took)
		r.last.Store(took)
	}
	return at.next, r.retry(ctx, at.next, floor)
}

// stop keeps why nothing is sealed, and gives the alarm if that is new.
func (r *Rollup) stop(ctx context.Context, at position, before *Stop, h *hour, err error) error {
	now := Stop{Hour: at.next, Reason: err.Error(), Since: time.Now(), Lost: h.lost[:min(len(h.lost), most)]}
	if before == nil {
		r.alarm(ctx, schema.Partition{Hour: at.next, Length: r.cfg.Hour}, err)
	} else {
		now.Since = before.Since
		if before.Reason == now.Reason {
			return nil
		}
	}
	return r.progress.stop(ctx, now)
}

// mostTries is how often an hour is tried of which some partitions can be made and others cannot, before the others are left
// behind.
const mostTries = 3

// hour makes the partitions of one closed hour, but not those of series that are left behind.
func (r *Rollup) hour(ctx context.Context, at position, h *hour) error {
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
	blocked, err := r.progress.blocks(ctx)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(r.cfg.Parallel)
	var mu sync.Mutex
	made, failed := 0, map[series]error{}
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
			if ctx.Err() != nil {
				return ctx.Err()
			}
			err := r.partition(ctx, s, h)
			if kind := kindOf(err); kind != "" {
				return r.block(ctx, at, s, h, kind, err, nil)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else {
				failed[s] = err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || len(failed) == 0 {
		return err
	}
	return r.someFailed(ctx, at, h, made, failed)
}

// someFailed leaves behind those whose partitions cannot be made, if others' can.
func (r *Rollup) someFailed(ctx context.Context, at position, h *hour, made int, failed map[series]error) error {
	var errs []error
	for _, err := range failed {
		errs = append(errs, err)
	}
	if len(errs) > most {
		errs = append(errs[:most], fmt.Errorf("and %d more", len(errs)-most))
	}
	if r.tries.hour != h.start {
		r.tries.hour, r.tries.n = h.start, 0
	}
	r.tries.n++
	if made == 0 || r.tries.n < mostTries || ctx.Err() != nil {
		return errors.Join(errs...)
	}
	for s, err := range failed {
		if err := r.block(ctx, at, s, h, KindFailed, err, nil); err != nil {
			return err
		}
	}
	return nil
}

// block leaves a series behind, and gives the alarm if it was not so before.
func (r *Rollup) block(ctx context.Context, at position, s series, h *hour, kind string, err error, before *block) error {
	now := block{Hour: at.next, After: at.seq, Kind: kind, Reason: err.Error(), Since: time.Now()}
	if kind == KindUnstored || kind == KindLate {
		for i := range h.unstored {
			if u := &h.unstored[i]; u.Organization == s.organization && u.Trail == s.trail && len(now.Messages) < most {
				now.Messages = addTo(now.Messages, u.Seq, u.Seq)
			}
		}
	}
	if before != nil && before.Hour.Equal(now.Hour) {
		if kind == KindLost { // what is known of whose they are is in it
			now.Messages = before.Messages
		}
		now.Since = before.Since
		if before.Kind == now.Kind && before.Reason == now.Reason {
			return nil
		}
	}
	if before == nil || !before.Hour.Equal(now.Hour) || before.Kind != now.Kind {
		r.alarm(ctx, h.partition(s), err)
	}
	return r.progress.block(ctx, s, now)
}

// retry goes on where a series was left behind, up to next.
func (r *Rollup) retry(ctx context.Context, next time.Time, floor uint64) error {
	blocked, err := r.progress.blocks(ctx)
	if err != nil {
		return err
	}
	all := slices.Collect(maps.Keys(blocked))
	slices.SortFunc(all, func(a, b series) int { return blocked[a].Hour.Compare(blocked[b].Hour) })
	// Many may wait for the same hour, of which the ledger and the table are asked once.
	var hours map[position]*hour
	account := func(at position) (*hour, error) {
		if h, ok := hours[at]; ok {
			return h, nil
		}
		h, err := r.account(ctx, at, floor)
		if len(hours) >= 4 || hours == nil {
			hours = map[position]*hour{}
		}
		if err == nil {
			hours[at] = h
		}
		return h, err
	}
	var left []error
	for _, s := range all {
		if err := r.catchUp(ctx, s, blocked[s], next, account); err != nil {
			left = append(left, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(left) > 0 {
		return leftBehind{errors.Join(left...)}
	}
	return nil
}

// catchUp seals the hours of a series that was left behind, up to next, and returns why it has to stop before.
func (r *Rollup) catchUp(ctx context.Context, s series, b block, next time.Time, account func(position) (*hour, error)) error {
	at, before := position{b.Hour, b.After}, &b
	for at.next.Before(next) {
		h, err := account(at)
		if err != nil {
			return err
		}
		if err = h.lostErr(); err == nil {
			err = r.partition(ctx, s, h)
		}
		if err != nil {
			if kind := kindOf(err); kind != "" {
				err = errors.Join(err, r.block(ctx, at, s, h, kind, err, before))
			} else if at.next.After(b.Hour) { // what was made need not be made again
				err = errors.Join(err, r.progress.block(ctx, s, block{Hour: at.next, After: at.seq, Kind: KindFailed, Reason: err.Error(), Since: b.Since}))
			}
			return err
		}
		r.busy.Store(time.Now().UnixNano())
		at, before = position{at.next.Add(r.cfg.Hour), h.lastSeq}, nil
	}
	r.resumed(ctx, schema.Partition{Organization: s.organization, Trail: s.trail, Hour: b.Hour, Length: r.cfg.Hour}, b.Since)
	return r.progress.unblock(ctx, s)
}

func (r *Rollup) resumed(ctx context.Context, p schema.Partition, since time.Time) {
	r.cfg.Logger.Info("sealing goes on", slog.String("path", p.Path()), slog.Time("blocked_since", since))
	r.cfg.Resumed(ctx, p, since)
}

func (r *Rollup) alarm(ctx context.Context, p schema.Partition, err error) {
	r.alarms.Add(1)
	r.cfg.Logger.Error("an hour cannot be sealed", slog.String("path", p.Path()), slog.Any("reason", err))
	r.cfg.Alarm(ctx, p, err)
}

// partition makes one partition, or finds that it is made, and announces it.
func (r *Rollup) partition(ctx context.Context, s series, h *hour) error {
	if err := h.err(s); err != nil {
		return err
	}
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
