package repair

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/control"
)

// verb is what a running system is asked: only that reaches both the broker and an embedded engine.
const verb = "repair"

// timeout bounds one repair.
const timeout = 10 * time.Minute

// Serve answers requests until ctx ends, one at a time; of several systems one answers.
func (r *Repairer) Serve(ctx context.Context, nc *nats.Conn) error {
	return control.Serve(ctx, nc, nil, control.On(verb, timeout, r.Run))
}

// Ask has a running system do what a request says.
func Ask(ctx context.Context, nc *nats.Conn, q Request) (*Report, error) {
	return control.Ask[*Report](ctx, nc, "rollup", verb, timeout, q)
}
