package repair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Subject is where a running system takes requests: only that reaches both the broker and an embedded engine.
const Subject = "kansa.repair"

// timeout bounds one repair.
const timeout = 10 * time.Minute

type answer struct {
	Report *Report `json:"report,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// Serve answers requests until ctx ends, one at a time; of several systems one answers.
func (r *Repairer) Serve(ctx context.Context, nc *nats.Conn) error {
	requests := make(chan *nats.Msg, 1)
	sub, err := nc.ChanQueueSubscribe(Subject, "repair", requests)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", Subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails only when the connection is closed
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-requests:
			var q Request
			var a answer
			err := json.Unmarshal(msg.Data, &q)
			if err == nil {
				working, cancel := context.WithTimeout(ctx, timeout)
				a.Report, err = r.Run(working, q)
				cancel()
			}
			if err != nil {
				a.Error = err.Error()
			}
			data, err := json.Marshal(a)
			if err != nil {
				data = []byte(`{"error":"the report can not be encoded"}`)
			}
			_ = msg.Respond(data) // who asked may be gone
		}
	}
}

// ErrNobody means that no system with the role rollup is connected to the broker.
var ErrNobody = errors.New("no rollup is running: start kansa up, or kansa run rollup, and ask again")

// Ask has a running system do what a request says.
func Ask(ctx context.Context, nc *nats.Conn, q Request) (*Report, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	msg, err := nc.RequestWithContext(ctx, Subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, fmt.Errorf("ask for a repair: %w", err)
	}
	var a answer
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a.Report, nil
}
