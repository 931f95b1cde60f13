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

// Closed returns the time of the first message that is not acknowledged; if all are, the server's own clock
// less the grace. seq is the last message before it.
func (f AckFloor) Closed(ctx context.Context) (until time.Time, seq uint64, err error) {
	info, err := f.Consumer.Info(ctx)
	if err != nil {
		return until, 0, fmt.Errorf("ask how far the writer has come: %w", err)
	}
	idle, seq := info.TimeStamp.Add(-f.Grace), info.AckFloor.Stream
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return idle, seq, nil
	}
	msg, err := f.Stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(">"))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return idle, seq, nil // it was acknowledged and removed meanwhile
	}
	if err != nil {
		return until, 0, fmt.Errorf("look at the first message that is not acknowledged: %w", err)
	}
	if msg.Time.Before(idle) {
		return msg.Time, seq, nil
	}
	return idle, seq, nil
}

// Recorded returns when the stream stored a message, and false if it does not have it.
func (f AckFloor) Recorded(ctx context.Context, seq uint64) (time.Time, bool, error) {
	msg, err := f.Stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look at message %d: %w", seq, err)
	}
	return msg.Time, true, nil
}
