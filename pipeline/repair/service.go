package repair

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/control"
)

// verb is what a running system is asked: only that reaches both the broker and an embedded engine.
const verb = "repair"

// timeout bounds one repair.
const timeout = 10 * time.Minute

// Serve answers requests until ctx ends, one at a time; of several systems one answers.
func (r *Repairer) Serve(ctx context.Context, nc *nats.Conn, log *slog.Logger) error {
	turn := make(chan struct{}, 1)
	return control.Serve(ctx, nc, nil, log, control.On(verb, timeout, func(ctx context.Context, q Request) (*Report, error) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the repair that is under way: %w", ctx.Err())
		}
		return r.Run(ctx, q)
	}))
}

// Ask has a running system do what a request says.
func Ask(ctx context.Context, nc *nats.Conn, q Request) (*Report, error) {
	return control.Ask[*Report](ctx, nc, "rollup", verb, timeout, q)
}
