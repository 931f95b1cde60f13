package pipeline

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/watchdog"
)

// watch returns a role's consumer as a queue that goes on when a pull is stuck or the consumer was deleted.
func (s *System) watch(role Role, consumer jetstream.Consumer, lease time.Duration, restore func(context.Context) error) *watchdog.Queue {
	q := watchdog.Watch(s.ended, consumer, watchdog.Config{
		Role: string(role), Lease: lease, Restore: restore, Logger: s.log.With(slog.String("part", "watchdog")),
	})
	s.watched[role] = q
	return q
}

// restoreWriter makes the writer's consumer again. It begins where the old one had come to, as far as that is known.
// It gives as new what the old one gave and nobody acknowledged, so that the writer has to suspect all of it.
func (s *System) restoreWriter(stream jetstream.Stream) func(context.Context) error {
	created := stream.CachedInfo().Created
	return func(ctx context.Context) error {
		s.Writer.Suspect(^uint64(0))
		_, _, floor := s.floor.Age()
		if err := s.Client.RestoreConsumer(ctx, broker.StreamAudit, broker.Floor{Seq: floor, Created: created}); err != nil {
			return err
		}
		suspect(ctx, stream, s.Writer)
		return nil
	}
}

// restarts counts how often each role of this process had to begin again.
func (s *System) restarts() map[string]func() uint64 {
	all := map[string]func() uint64{}
	for role, q := range s.watched {
		all[string(role)] = q.Restarts
	}
	if w := s.Writer; w != nil {
		pulls := all[string(RoleWriter)]
		all[string(RoleWriter)] = func() uint64 { return pulls() + w.Stats().Stuck }
	}
	return all
}
