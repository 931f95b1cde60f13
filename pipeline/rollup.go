package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/reconcile"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/pipeline/retention"
	"github.com/kansa-audit/kansa/schema"
)

func (s *System) rolledUp(ctx context.Context) (*rollup.Progress, error) {
	kv, err := s.Client.JS.KeyValue(ctx, broker.BucketRollup)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", broker.BucketRollup, err)
	}
	return &rollup.Progress{JS: s.Client.JS, KV: kv}, nil
}

func (s *System) startRollup(ctx context.Context) error {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return err
	}
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	if s.Keys, err = keys.Open(ctx, s.Config.DataDir, s.Bucket); err != nil {
		return err
	}
	log := s.log.With(slog.String("part", "rollup"))
	damaged := func(seq uint64, err error) {
		log.Error("a message of the ledger cannot be read and is passed over; the messages it was about have no entry now: kansa repair names them", slog.Uint64("ledger_seq", seq), slog.Any("error", err))
	}
	s.Rollup, err = rollup.New(s.Store, tally.Ledger{JS: s.Client.JS, Damaged: damaged}, s.floor, *progress, s.Bucket, s.Keys, s.Client.JS, rollup.Config{
		Hour: s.Config.Rollup.Hour, Parallel: s.Config.Rollup.Parallel, Recording: recording.New(s.Client.JS), Logger: log, Alarm: s.alarm, Resumed: s.resumed, Tracing: s.tracing,
	})
	if err != nil {
		return err
	}
	restorer, err := s.restorer(stream)
	if err != nil {
		return err
	}
	mender := repair.Repairer{
		Store: s.Store, Client: s.Client, Progress: *progress, Rollup: s.Rollup, Writer: restorer, Hour: s.Config.Rollup.Hour, Retention: s.retentions.Expires,
	}
	s.roles.Go(func() error { return mender.Serve(s.ended, s.Client.NC, log) })
	s.auditor = &reconcile.Auditor{
		Bucket: s.Bucket, Table: s.Store.InBackground(), Progress: *progress, Findings: &s.findings, Hour: s.Config.Rollup.Hour, Share: float64(s.Config.Rollup.ComparePercent) / 100,
		Expires: s.retentions.Expires, Record: s.own.Record, Logger: s.log.With(slog.String("part", "reconcile")),
	}
	fromPartitions := &reconcile.Restorer{Auditor: s.auditor}
	s.roles.Go(func() error { return s.auditor.Run(s.ended) })
	s.roles.Go(func() error { return fromPartitions.Run(s.ended) })
	s.roles.Go(func() error { return fromPartitions.Serve(s.ended, s.Client.NC, log) })
	keeper := retention.Keeper{
		Bucket: s.Bucket, Settings: s.openSettings(), Rows: s.Store, Sealer: s.Keys, Stream: stream, Hour: s.Config.Rollup.Hour, Record: s.own.Record,
		Logger: s.log.With(slog.String("part", "retention")),
	}
	s.roles.Go(func() error { return keeper.Run(s.ended, s.Config.Retention.Every) })
	s.roles.Go(func() error { s.keepTicking(s.ended, progress); return nil })
	s.roles.Go(func() error { s.watchLedger(s.ended); return nil })
	// Hours may have closed while nobody was here; the next tick may be an hour away.
	if err := s.Client.Tick(ctx); err != nil {
		return err
	}
	return s.work(ctx, RoleRollup, broker.StreamHours, broker.ConsumerRollup, consumers.Work{
		Handle: s.Rollup.Tick, Logger: log,
		Backoff: func(tried uint64) time.Duration { return min(consumers.Backoff(tried), time.Minute) },
	})
}

// alarm makes an event of the operator's trail of an hour that cannot be sealed: the operator repairs it, and the
// organization's own trail is what is not sealed. It is one event when that begins and one when it ends.
func (s *System) alarm(ctx context.Context, p schema.Partition, err error) {
	code := "sealing.blocked"
	switch {
	case errors.Is(err, rollup.ErrLost):
		code = "messages.lost"
	case errors.Is(err, rollup.ErrUnstored):
		code = "messages.unstored"
	case errors.Is(err, rollup.ErrDisagree):
		code = "hour.disagreed"
	}
	s.recordSealing(ctx, p, schema.Event{Event: code, Outcome: schema.Failure, Description: err.Error()}, nil)
}

// resumed makes an event of the end of what alarm recorded.
func (s *System) resumed(ctx context.Context, p schema.Partition, since time.Time) {
	s.recordSealing(ctx, p, schema.Event{Event: "sealing.resumed", Outcome: schema.Success, Description: "sealing goes on from this hour"}, map[string]any{"blocked_since": since})
}

func (s *System) recordSealing(ctx context.Context, p schema.Partition, e schema.Event, more map[string]any) {
	all := map[string]any{"organization": p.Organization, "trail": p.Trail, "hour": p.Hour}
	maps.Copy(all, more)
	data, err := json.Marshal(all)
	if err != nil {
		s.log.Error("an event of sealing has no data", slog.Any("error", err))
	}
	e.Action, e.Target, e.Data, e.DataType = "seal", schema.Target{Type: "partition", ID: p.Path()}, data, "kansa."+e.Event+".v1"
	e.Attributes = map[string]string{"organization": p.Organization}
	s.own.Record(ctx, e)
}

// reportDamage makes an event of what the embedded broker had to drop.
func (s *System) reportDamage(ctx context.Context) {
	if s.server == nil || s.server.CutOff() == 0 {
		return
	}
	s.own.Record(ctx, schema.Event{
		Event: "messages.lost", Action: "recover", Outcome: schema.Failure, Target: schema.Target{Type: "stream", ID: broker.StreamAudit},
		Description: fmt.Sprintf("the newest block of the stream is damaged, and %d bytes were cut off there", s.server.CutOff()),
	})
}
