package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/health"
)

func (s *System) startWriter(ctx context.Context) error {
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	_, shards, err := s.Client.Writers(ctx)
	if err != nil {
		return err
	}
	c := s.Config.Writer
	queues := make([]writer.Stream, len(shards))
	for i, shard := range shards {
		consumer, err := stream.Consumer(ctx, shard.Name)
		if err != nil {
			return fmt.Errorf("look up consumer %s: %w", shard.Name, err)
		}
		progress := &health.Floor{Name: shard.Name, Consumer: consumer, StuckAfter: c.AckWait}
		s.shards = append(s.shards, progress)
		queues[i] = s.watch(RoleWriter, consumer, c.AckWait, s.restoreWriter(stream, shard.Name, progress))
	}
	settled := func(ctx context.Context) (time.Time, error) {
		until, _, err := s.floor.Closed(ctx)
		return until, err
	}
	w, err := writer.New(queues, s.Client.NC, s.Store, tally.Ledger{JS: s.Client.JS}, consumers.DeadLetters{JS: s.Client.JS}, writer.Config{
		MaxRows: c.MaxRows, MaxBytes: c.MaxBytes, Linger: c.Linger, MaxLinger: c.MaxLinger, Inserts: c.Inserts, Memory: c.Memory,
		AckWait: c.AckWait, InsertTimeout: c.InsertTimeout, Retention: s.retentions.Expires, Server: s.serverOf(stream),
		Recording: recording.New(s.Client.JS), Window: stream.CachedInfo().Config.Duplicates, Settled: settled, Tracing: s.tracing,
		Logger: s.log.With(slog.String("part", "writer")),
	})
	if err != nil {
		return err
	}
	s.Writer = w
	// After a start and after each reconnect, what the stream holds by then may have been stored before.
	known := func(ctx context.Context) { suspect(ctx, stream, w) }
	known(ctx)
	status := s.Client.NC.StatusChanged(nats.CONNECTED, nats.RECONNECTING)
	s.roles.Go(func() error {
		defer s.Client.NC.RemoveStatusListener(status)
		for {
			select {
			case <-s.ended.Done():
				return nil
			case st, ok := <-status:
				if !ok {
					return nil
				}
				w.SuspectAll()
				if st == nats.CONNECTED {
					known(s.ended)
				}
			}
		}
	})
	for _, progress := range s.shards {
		s.roles.Go(func() error { progress.Run(s.ended); return nil })
	}
	s.roles.Go(func() error {
		select {
		case <-s.ended.Done():
			return nil
		case err := <-s.shared:
			return fmt.Errorf("the writer ends, to be started again: %w", err)
		}
	})
	s.roles.Go(func() error { return w.Run(s.ended) })
	return nil
}

// suspect has the writer look up what the stream holds by now.
func suspect(ctx context.Context, stream jetstream.Stream, w *writer.Writer) {
	w.SuspectAll()
	server := w.Server()
	if info, err := stream.Info(ctx); err == nil {
		w.Suspect(server, info.State.LastSeq)
	}
}

// restoreWriter makes a consumer of the writer's again. It begins where the old one had come to, as far as that is known.
// It gives as new what the old one gave and nobody acknowledged, so that the writer has to suspect all of it. If the
// consumer is gone because the stream was shared out anew, the writer ends.
func (s *System) restoreWriter(stream jetstream.Stream, name string, progress *health.Floor) func(context.Context) error {
	created := stream.CachedInfo().Created
	return func(ctx context.Context) error {
		s.Writer.SuspectAll()
		_, _, seq := progress.Age()
		if err := s.Client.RestoreConsumer(ctx, broker.StreamAudit, name, broker.Floor{Seq: seq, Created: created}); err != nil {
			if errors.Is(err, broker.ErrShards) {
				select {
				case s.shared <- err:
				default: // another shard has said so
				}
			}
			return err
		}
		suspect(ctx, stream, s.Writer)
		return nil
	}
}

// serverOf names the run of the server that gives a stream's messages; see writer.Config. A stream with replicas has its
// deliveries replicated before they are made, so that none is forgotten. (A consumer that is made again has forgotten all,
// but that is done only when every lease is over.)
func (s *System) serverOf(stream jetstream.Stream) func() string {
	if stream.CachedInfo().Config.Replicas > 1 {
		return nil
	}
	return s.Client.NC.ConnectedServerId
}
