package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/schema"
)

// writers are the writers of this process: one for each lane of the stream, so that a backlog in one does not delay the other. They
// share nothing.
type writers [floor.Lanes]*writer.Writer

// Stats returns the counts of both.
func (w *writers) Stats() (all writer.Stats) {
	for _, of := range w {
		st := of.Stats()
		all.Stored += st.Stored
		all.Skipped += st.Skipped
		all.Duplicates += st.Duplicates
		all.Rejected += st.Rejected
		all.Unrecorded += st.Unrecorded
		all.Inserts += st.Inserts
		all.Failures += st.Failures
		all.Stuck += st.Stuck
	}
	return all
}

// suspectAll has the writers look up everything before they store it.
func (w *writers) suspectAll() {
	for _, of := range w {
		of.SuspectAll()
	}
}

// suspect has the writers look up what the stream holds by now.
func (w *writers) suspect(ctx context.Context, stream jetstream.Stream) {
	w.suspectAll()
	server := w[floor.Prompt].Server()
	if info, err := stream.Info(ctx); err == nil {
		for _, of := range w {
			of.Suspect(server, info.State.LastSeq)
		}
	}
}

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
	var queues [floor.Lanes][]writer.Stream
	for _, shard := range shards {
		consumer, err := stream.Consumer(ctx, shard.Consumer)
		if err != nil {
			return fmt.Errorf("look up consumer %s: %w", shard.Consumer, err)
		}
		progress := &health.Floor{Name: shard.Consumer, Consumer: consumer, StuckAfter: c.AckWait}
		s.shards = append(s.shards, progress)
		queues[shard.Lane] = append(queues[shard.Lane], s.watch(RoleWriter, consumer, c.AckWait, s.restoreWriter(stream, shard.Consumer, progress)))
	}
	s.Writer = &writers{}
	for lane := range floor.Lanes {
		cfg := s.writerConfig(stream)
		cfg.Logger = cfg.Logger.With(slog.String("lane", lane.String()))
		table := s.Store
		if lane == floor.Bulk { // it leaves half of the processors, and more of the engine, to the other one
			cfg.Inserts, cfg.Memory, cfg.MaxBytes = max(1, c.Inserts-1), c.Memory/2, min(c.MaxBytes, int(c.Memory/4))
			cfg.Decoders = max(1, runtime.GOMAXPROCS(0)/2)
			table = s.Store.InBackground()
		}
		w, err := writer.New(queues[lane], s.Client.NC, table, tally.Ledger{JS: s.Client.JS}, consumers.DeadLetters{JS: s.Client.JS}, cfg)
		if err != nil {
			return err
		}
		s.Writer[lane] = w
	}
	// After a start and after each reconnect, what the stream holds by then may have been stored before.
	s.Writer.suspect(ctx, stream)
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
				s.Writer.suspectAll()
				if st == nats.CONNECTED {
					s.Writer.suspect(s.ended, stream)
				}
			}
		}
	})
	s.roles.Go(func() error {
		bounds := deadletter.Bounds{MaxAge: s.Config.Streams.DeadLetterMaxAge, MaxBytes: s.Config.Streams.DeadLetterMaxBytes}
		return s.letters.Keep(s.ended, bounds, s.log.With(slog.String("part", "dead letters")))
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
	for _, w := range s.Writer {
		s.roles.Go(func() error { return w.Run(s.ended) })
	}
	return nil
}

// writerConfig is what all writers of this process have in common.
func (s *System) writerConfig(stream jetstream.Stream) writer.Config {
	c := s.Config.Writer
	return writer.Config{
		MaxRows: c.MaxRows, MaxBytes: c.MaxBytes, Linger: c.Linger, MaxLinger: c.MaxLinger, Inserts: c.Inserts, Memory: c.Memory,
		AckWait: c.AckWait, InsertTimeout: c.InsertTimeout, Retention: s.retentions.Expires, Server: s.serverOf(stream),
		IDWindow: c.IDWindow, Claims: s.claims,
		Recording: recording.New(s.Client.JS), Window: stream.CachedInfo().Config.Duplicates, Tracing: s.tracing,
		Settled: func(ctx context.Context) (time.Time, error) {
			until, _, err := s.floor.Closed(ctx)
			return until, err
		},
		Logger: s.log.With(slog.String("part", "writer")),
	}
}

// restorer is a writer that takes nothing from the stream by itself: repairs store by it.
func (s *System) restorer(stream jetstream.Stream) (*writer.Writer, error) {
	cfg := s.writerConfig(stream)
	cfg.Memory = max(cfg.Memory/4, 4*schema.MaxMessageBytes)
	return writer.New(nil, s.Client.NC, s.Store, tally.Ledger{JS: s.Client.JS}, consumers.DeadLetters{JS: s.Client.JS}, cfg)
}

// restoreWriter makes a consumer of the writer's again. It begins where the old one had come to, as far as that is known.
// It gives as new what the old one gave and nobody acknowledged, so that the writer has to suspect all of it. If the
// consumer is gone because the stream was shared out anew, the writer ends.
func (s *System) restoreWriter(stream jetstream.Stream, name string, progress *health.Floor) func(context.Context) error {
	created := stream.CachedInfo().Created
	return func(ctx context.Context) error {
		s.Writer.suspectAll()
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
		s.Writer.suspect(ctx, stream)
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
