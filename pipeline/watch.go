package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/broker"
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

func (s *System) work(ctx context.Context, role Role, stream, consumer string, w consumers.Work) error {
	c, err := s.Client.JS.Consumer(ctx, stream, consumer)
	if err != nil {
		return fmt.Errorf("look up consumer %s: %w", consumer, err)
	}
	w.AckWait = c.CachedInfo().Config.AckWait
	w.Queue = s.watch(role, c, w.AckWait, func(ctx context.Context) error {
		return s.Client.RestoreConsumer(ctx, stream, consumer, broker.Floor{})
	})
	s.roles.Go(func() error { return w.Run(s.ended) })
	return nil
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
