package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/watchdog"
)

// watch returns a role's consumer as a queue that goes on when a pull is stuck or the consumer was deleted.
func (s *System) watch(role Role, consumer jetstream.Consumer, lease time.Duration, restore func(context.Context) error) *watchdog.Queue {
	q := watchdog.Watch(s.ended, consumer, watchdog.Config{
		Role: string(role), Lease: lease, Restore: restore, Logger: s.log.With(slog.String("part", "watchdog")),
	})
	s.watched[role] = append(s.watched[role], q)
	return q
}

// restoreWriter makes a consumer of the writer's again. It begins where the old one had come to, as far as that is known.
// It gives as new what the old one gave and nobody acknowledged, so that the writer has to suspect all of it. If the
// consumer is gone because the stream was shared out anew, the writer ends.
func (s *System) restoreWriter(stream jetstream.Stream, name string, progress *health.Floor) func(context.Context) error {
	created := stream.CachedInfo().Created
	return func(ctx context.Context) error {
		s.Writer.Suspect(^uint64(0))
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

// restarts counts how often each role of this process had to begin again.
func (s *System) restarts() map[string]func() uint64 {
	all := map[string]func() uint64{}
	for role, queues := range s.watched {
		all[string(role)] = func() (n uint64) {
			for _, q := range queues {
				n += q.Restarts()
			}
			if role == RoleWriter {
				n += s.Writer.Stats().Stuck
			}
			return n
		}
	}
	return all
}
