package rollup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// AckFloor finds what is closed from the writer's consumer of AUDIT.
type AckFloor struct {
	Stream   jetstream.Stream
	Consumer jetstream.Consumer
	// Grace is kept from the server's clock where the writer is idle: in a cluster, a message may
	// become visible a moment after the time it bears.
	Grace time.Duration
}

// ClosedUntil returns the time of the first message that is not acknowledged; if all are, the server's
// own clock less the grace.
func (f AckFloor) ClosedUntil(ctx context.Context) (time.Time, error) {
	info, err := f.Consumer.Info(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask how far the writer has come: %w", err)
	}
	idle := info.TimeStamp.Add(-f.Grace)
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return idle, nil
	}
	msg, err := f.Stream.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(">"))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return idle, nil // it was acknowledged and removed meanwhile
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the first message that is not acknowledged: %w", err)
	}
	if msg.Time.Before(idle) {
		return msg.Time, nil
	}
	return idle, nil
}
