package tally

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Stream is the name of the stream that holds the tallies, and Subject where they are published.
const (
	Stream  = "TALLIES"
	Subject = "audit.tallies"
)

// maxTallies is how many go into one message.
const maxTallies = 20_000

// Ledger is the stream of tallies.
type Ledger struct{ JS jetstream.JetStream }

// Put writes tallies down; when it returns nil, they are on disk.
func (l Ledger) Put(ctx context.Context, tallies []Tally) error {
	for some := range slices.Chunk(tallies, maxTallies) {
		if _, err := l.JS.Publish(ctx, Subject, Encode(some), jetstream.WithExpectStream(Stream)); err != nil {
			return fmt.Errorf("write down %d tallies: %w", len(some), err)
		}
	}
	return nil
}

// ErrContradiction means that two tallies of one message are not the same.
var ErrContradiction = errors.New("tallies contradict each other")

// Between returns the tallies of the messages that were recorded from one instant up to, and without, another,
// each once, in the order of the stream; and the first of those recorded later, if there is one. It reads what
// was written since the first instant: a message is tallied after it was recorded, by the same clock. It takes
// some 80 bytes of memory a message.
func (l Ledger) Between(ctx context.Context, from, to time.Time) (tallies []Tally, after *Tally, err error) {
	stream, err := l.JS.Stream(ctx, Stream)
	if err != nil {
		return nil, nil, fmt.Errorf("look up stream %s: %w", Stream, err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 || state.LastTime.Before(from) {
		return nil, nil, nil
	}
	// Of a consumer that keeps nothing, for it lives as long as this call.
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from, AckPolicy: jetstream.AckNonePolicy,
		InactiveThreshold: 30 * time.Second, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the tallies: %w", err)
	}
	defer func() { _ = stream.DeleteConsumer(context.WithoutCancel(ctx), consumer.CachedInfo().Name) }() // or it goes by itself
	// Up to what the stream's leader has: the server that gives them to us may lag behind. What is written from now on is
	// of messages that are not closed yet.
	p := pulled{consumer: consumer}
	for last := uint64(0); last < state.LastSeq; {
		msg, err := p.next(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("read the tallies: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return nil, nil, fmt.Errorf("read the tallies: %w", err)
		}
		some, err := Decode(msg.Data())
		if err != nil {
			return nil, nil, fmt.Errorf("read message %d of %s: %w", meta.Sequence.Stream, Stream, err)
		}
		for i := range some {
			switch t := &some[i]; {
			case t.RecordedAt.Before(from):
			case t.RecordedAt.Before(to):
				tallies = append(tallies, *t)
			case after == nil || t.StreamSeq < after.StreamSeq:
				after = t
			}
		}
		last = meta.Sequence.Stream
	}
	tallies, err = once(tallies)
	return tallies, after, err
}

const (
	// nextWithin bounds the wait for a message that is in the stream.
	nextWithin = 30 * time.Second
	atOnce     = 256
)

// pulled takes the messages of a consumer one after another.
type pulled struct {
	consumer jetstream.Consumer
	batch    jetstream.MessageBatch
	read     uint64 // of the consumer
}

// next returns the next message. Right after a consumer was made, not every server of a cluster knows of it.
func (p *pulled) next(ctx context.Context) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, nextWithin)
	defer cancel()
	var err error
	for {
		if p.batch != nil {
			select {
			case msg, ok := <-p.batch.Messages():
				if ok {
					meta, err := msg.Metadata()
					if err == nil && meta.Sequence.Consumer != p.read+1 {
						err = fmt.Errorf("message %d of the consumer was lost on its way", p.read+1)
					}
					p.read++
					return msg, err
				}
				err = p.batch.Error()
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), err)
			}
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), err)
			case <-time.After(50 * time.Millisecond):
			}
		}
		var fetchErr error
		if p.batch, fetchErr = p.consumer.Fetch(atOnce, jetstream.FetchMaxWait(time.Second)); fetchErr != nil {
			p.batch, err = nil, fetchErr
		}
	}
}

// once sorts tallies and leaves each message's one. A message is known by its place in the stream and its time:
// a broker that lost what it had not acknowledged gives the place to another.
func once(all []Tally) ([]Tally, error) {
	slices.SortStableFunc(all, func(a, b Tally) int {
		return cmp.Or(cmp.Compare(a.StreamSeq, b.StreamSeq), a.RecordedAt.Compare(b.RecordedAt))
	})
	same := func(a, b Tally) bool { return a.StreamSeq == b.StreamSeq && a.RecordedAt.Equal(b.RecordedAt) }
	for i := 1; i < len(all); i++ {
		if same(all[i], all[i-1]) && all[i] != all[i-1] {
			return nil, fmt.Errorf("%w: message %d of AUDIT has %d events, %016x, and %d, %016x", ErrContradiction,
				all[i].StreamSeq, all[i-1].Rows, all[i-1].Sum, all[i].Rows, all[i].Sum)
		}
	}
	return slices.CompactFunc(all, same), nil
}
