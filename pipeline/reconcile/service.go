package reconcile

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/control"
)

// What a running system is asked for.
const (
	verbStart  = "restore.start"
	verbStatus = "restore.status"
	timeout    = 30 * time.Second
)

// Status is how the comparison and the last restoration are doing.
type Status struct {
	Walk     Walk         `json:"walk"`
	Findings []Finding    `json:"findings"`
	Last     *Restoration `json:"last,omitempty"`
}

// Serve answers requests until ctx ends.
func (r *Restorer) Serve(ctx context.Context, nc *nats.Conn, log *slog.Logger) error {
	return control.Serve(ctx, nc, control.Kinds{ErrBusy}, log,
		control.On(verbStart, timeout, r.Start),
		control.On(verbStatus, timeout, func(ctx context.Context, _ struct{}) (*Status, error) {
			w, _, err := r.Findings.Walk(ctx)
			if err != nil {
				return nil, err
			}
			found, err := r.Findings.List(ctx)
			if err != nil {
				return nil, err
			}
			s := &Status{Walk: w, Findings: found[:min(len(found), mostEvents)]}
			last, ok, err := r.Findings.Last(ctx)
			if ok {
				s.Last = &last
			}
			return s, err
		}))
}

// Start has a running system restore.
func Start(ctx context.Context, nc *nats.Conn, q Request) (*Restoration, error) {
	return control.Ask[*Restoration](ctx, nc, "rollup", verbStart, timeout, q)
}

// Ask asks a running system how comparison and restoration are doing.
func Ask(ctx context.Context, nc *nats.Conn) (*Status, error) {
	return control.Ask[*Status](ctx, nc, "rollup", verbStatus, timeout, struct{}{})
}
