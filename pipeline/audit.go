package pipeline

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/operator"
)

// audit are the parts behind the API.
func (s *System) audit(ctx context.Context) (*api.Audit, error) {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return nil, err
	}
	desk := integrity.New(s.Bucket, *progress, s.verifications, s.Config.Rollup.Hour, s.log.With(slog.String("part", "integrity")))
	s.roles.Go(func() error { return desk.Run(s.ended) })
	return &api.Audit{
		Integrity: desk,
		Access:    &s.Access, Store: s.Store, Bucket: s.Bucket, States: s.States, Floor: s.newFloor(), Hour: s.Config.Rollup.Hour, JS: s.Client.JS,
		Ask:    func(by string) operator.Client { return operator.Client{NC: s.Client.NC, By: by} },
		Secure: strings.HasPrefix(s.Config.Exports.PublicURL, "https://"),
		Record: s.own.Record, Logger: s.log.With(slog.String("part", "api")),
	}, nil
}

// floorFor is how long the writer's ack floor is believed: a page is as fresh as that.
const floorFor = 100 * time.Millisecond

// newFloor returns a function that tells up to which place in the stream every event is in the table. However many
// ask, the broker is asked once in a while.
func (s *System) newFloor() func(context.Context) (uint64, error) {
	var mu sync.Mutex
	var floor uint64
	var at time.Time
	return func(ctx context.Context) (uint64, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) < floorFor {
			return floor, nil
		}
		seq, err := s.floor.Seq(ctx)
		if err != nil {
			return 0, err
		}
		floor, at = seq, time.Now()
		return floor, nil
	}
}
