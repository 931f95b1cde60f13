// Package floor knows how far the writers have come in the stream of events: which messages are stored for certain, and
// up to which instant nothing more can come in between. Closed hours, the cursor, kept messages and the lag all ask it.
//
// It owns no consumer, and believes nothing but acknowledgements where a server that answers may lag behind others.
package floor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// Broker answers for the stream of events and the consumers of its shards.
type Broker interface {
	// Writers tells how the stream is doing and then how the consumers of all shards are.
	Writers(ctx context.Context) (*jetstream.StreamInfo, []*jetstream.ConsumerInfo, error)
	// Mark puts a message without events into a shard, and returns its place in the stream when every message that was
	// acknowledged before is certain to be before it.
	Mark(ctx context.Context, shard int) (seq uint64, err error)
}

// Floor finds what is settled. It is safe for concurrent use.
//
// Where one server has the stream and one consumer takes all of it, that server's word is enough: nothing pending
// means that everything is settled. A consumer of a shard may have nothing to do for long, so that its last
// acknowledgement says nothing of what came since. And in a cluster, the server that answers for a consumer may not
// have seen yet what another one acknowledged to a producer; after an election, nor may the stream's new leader. So in
// these cases a mark is put into each shard. It takes the way of all messages, and everything acknowledged before lies
// before it: a shard that has acknowledged its mark has settled all that.
type Floor struct {
	Broker Broker
	// Stream is the stream of events, as jetstream.Stream is.
	Stream interface {
		GetMsg(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error)
	}
	// Grace is how far the clocks of the stream's servers may be apart: the message after a change of leaders may bear
	// an earlier time than the one before it. Of a server alone, it is how much later than the time it bears a message
	// may become visible.
	Grace time.Duration

	mu     sync.Mutex
	marked time.Time // when idle shards were last given marks by Seq
}

const (
	// patience is how long Closed waits for marks to be acknowledged, which takes a writer some 100 ms. Without that
	// what it returns is true as well, and less.
	patience = time.Second
	again    = 25 * time.Millisecond
	// markEvery is the least time between two marks of an idle shard for the cursor.
	markEvery = 250 * time.Millisecond
)

func alone(s *jetstream.StreamInfo, shards []*jetstream.ConsumerInfo) bool {
	return s.Config.Replicas <= 1 && len(shards) == 1
}

// waits tells whether a consumer knows of messages that are not acknowledged.
func waits(c *jetstream.ConsumerInfo) bool { return c.NumPending > 0 || c.NumAckPending > 0 }

// Closed returns an instant before which the broker stored no message that is not in the table, and will store none;
// and the place in the stream up to which all are.
func (f *Floor) Closed(ctx context.Context) (until time.Time, seq uint64, err error) {
	stream, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return until, 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	if alone(stream, shards) {
		c := shards[0]
		idle := c.TimeStamp.Add(-f.Grace)
		if !waits(c) {
			return idle, c.AckFloor.Stream, nil
		}
		until, err = f.after(ctx, c.AckFloor.Stream)
		if errors.Is(err, jetstream.ErrMsgNotFound) { // it was acknowledged and removed meanwhile
			return idle, c.AckFloor.Stream, nil
		}
		if err != nil || until.After(idle) {
			until = idle
		}
		return until, c.AckFloor.Stream, err
	}
	marks, err := f.mark(ctx, len(shards))
	if err != nil {
		return until, 0, err
	}
	for wait := time.Now().Add(patience); ; {
		if _, shards, err = f.Broker.Writers(ctx); err != nil {
			return until, 0, fmt.Errorf("ask how far the writers have come: %w", err)
		}
		if len(shards) != len(marks) {
			return until, 0, fmt.Errorf("the stream is being shared out anew: it had %d shards and has %d", len(marks), len(shards))
		}
		var all bool
		if seq, all = settled(shards, marks); all || time.Now().After(wait) {
			break
		}
		select {
		case <-ctx.Done():
			return until, 0, ctx.Err()
		case <-time.After(again):
		}
	}
	// What comes after it, there is: a mark at least. A server that does not have it yet is behind.
	for wait := time.Now().Add(patience); ; {
		until, err = f.after(ctx, seq)
		if !errors.Is(err, jetstream.ErrMsgNotFound) || time.Now().After(wait) {
			return until.Add(-f.Grace), seq, err
		}
		select {
		case <-ctx.Done():
			return until, 0, ctx.Err()
		case <-time.After(again):
		}
	}
}

// settled returns the place up to which every shard has settled its messages, at most up to the first mark, and whether
// it is that.
func settled(shards []*jetstream.ConsumerInfo, marks []uint64) (seq uint64, all bool) {
	seq, all = ^uint64(0), true
	for shard, mark := range marks {
		done := shards[shard].AckFloor.Stream
		if done < mark {
			all = false
		} else {
			done = mark - 1 // of what came after it among the others, nothing is known
		}
		seq = min(seq, done)
	}
	return seq, all
}

func (f *Floor) mark(ctx context.Context, shards int) ([]uint64, error) {
	marks := make([]uint64, shards)
	var marking errgroup.Group
	for shard := range marks {
		marking.Go(func() (err error) {
			marks[shard], err = f.Broker.Mark(ctx, shard)
			return err
		})
	}
	return marks, marking.Wait()
}

// after returns when the first message after a place was stored.
func (f *Floor) after(ctx context.Context, seq uint64) (time.Time, error) {
	msg, err := f.Stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(">"))
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the first message that is not acknowledged: %w", err)
	}
	return msg.Time, nil
}

// Seq returns the place in the stream up to which every event is in the table. Where the stream is shared out it may be
// behind by as much as it takes to settle a mark, for a shard in which nothing happens.
func (f *Floor) Seq(ctx context.Context) (uint64, error) {
	_, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	low, high := ^uint64(0), uint64(0)
	for _, c := range shards {
		low, high = min(low, c.AckFloor.Stream), max(high, c.AckFloor.Stream)
	}
	if low == high {
		return low, nil
	}
	f.mu.Lock()
	due := time.Since(f.marked) >= markEvery
	if due {
		f.marked = time.Now()
	}
	f.mu.Unlock()
	if !due {
		return low, nil
	}
	for shard, c := range shards {
		if c.AckFloor.Stream < high && !waits(c) {
			if _, err := f.Broker.Mark(ctx, shard); err != nil {
				return 0, err
			}
		}
	}
	return low, nil
}

// Lag tells how the consumers of all shards are doing, and the age of the first message that is not settled.
func (f *Floor) Lag(ctx context.Context) (shards []*jetstream.ConsumerInfo, age time.Duration, err error) {
	stream, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	low, behind := ^uint64(0), false
	for _, c := range shards {
		if waits(c) {
			low, behind = min(low, c.AckFloor.Stream), true
		}
	}
	if !behind {
		return shards, 0, nil
	}
	first, err := f.after(ctx, low)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return shards, 0, nil
	}
	return shards, max(0, stream.TimeStamp.Sub(first)), err
}

// Recorded returns when the stream stored a message, and false if it does not have it.
func (f *Floor) Recorded(ctx context.Context, seq uint64) (time.Time, bool, error) {
	msg, err := f.Stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look at message %d: %w", seq, err)
	}
	return msg.Time, true, nil
}
