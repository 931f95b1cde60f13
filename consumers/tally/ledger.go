package tally

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
)

// Stream is the name of the stream that holds the tallies, and Subject where they are published.
const (
	Stream  = "TALLIES"
	Subject = "audit.tallies"
)

// maxTallies is how many go into one message.
const maxTallies = 20_000

// Ledger is the stream of tallies.
type Ledger struct {
	JS jetstream.JetStream
	// Damaged is called for a message of the ledger that cannot be read. It is passed over: the messages it was about are
	// then without an entry, which the rollup finds. Default: nothing.
	Damaged func(seq uint64, err error)
}

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
// some 80 bytes of memory a message. Entries of one message that contradict each other are all returned: see Contradicts.
func (l Ledger) Between(ctx context.Context, from, to time.Time) (tallies []Tally, after *Tally, err error) {
	stream, err := l.JS.Stream(ctx, Stream)
	if err != nil {
		return nil, nil, fmt.Errorf("look up stream %s: %w", Stream, err)
	}
	err = l.each(ctx, stream, from, func(_ uint64, some []Tally) error {
		for i := range some {
			switch t := &some[i]; {
			case t.RecordedAt.Before(from):
			case t.RecordedAt.Before(to):
				tallies = append(tallies, *t)
			case after == nil || t.StreamSeq < after.StreamSeq:
				after = t
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return once(tallies), after, nil
}

// each visits the messages of the ledger that were written since an instant.
func (l Ledger) each(ctx context.Context, stream jetstream.Stream, since time.Time, visit func(at uint64, entries []Tally) error) error {
	// Not what the stream's state says: the last message may have been deleted.
	newest, err := stream.GetLastMsgForSubject(ctx, Subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look at the end of stream %s: %w", Stream, err)
	case newest.Time.Before(since):
		return nil
	}
	// Of a consumer that keeps nothing, for it lives as long as this call.
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, AckPolicy: jetstream.AckNonePolicy,
		InactiveThreshold: 30 * time.Second, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return fmt.Errorf("read the tallies: %w", err)
	}
	defer func() { _ = stream.DeleteConsumer(context.WithoutCancel(ctx), consumer.CachedInfo().Name) }() // or it goes by itself
	// Up to what the stream's leader has: the server that gives them to us may lag behind. What is written from now on is
	// of messages that are not closed yet.
	p := consumers.Pulled{Consumer: consumer}
	for last := uint64(0); last < newest.Sequence; {
		msg, err := p.Next(ctx)
		if err != nil {
			return fmt.Errorf("read the tallies: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read the tallies: %w", err)
		}
		some, err := Decode(msg.Data())
		if err != nil {
			if l.Damaged != nil {
				l.Damaged(meta.Sequence.Stream, fmt.Errorf("read message %d of %s: %w", meta.Sequence.Stream, Stream, err))
			}
			some = nil
		}
		if err := visit(meta.Sequence.Stream, some); err != nil {
			return err
		}
		last = meta.Sequence.Stream
	}
	return nil
}

// once sorts tallies and leaves each message's one, or all that contradict each other. A message is known by its place in
// the stream and its time: a broker that lost what it had not acknowledged gives the place to another.
func once(all []Tally) []Tally {
	slices.SortStableFunc(all, func(a, b Tally) int {
		return cmp.Or(cmp.Compare(a.StreamSeq, b.StreamSeq), a.RecordedAt.Compare(b.RecordedAt), cmp.Compare(a.Rows, b.Rows), cmp.Compare(a.Sum, b.Sum))
	})
	return slices.Compact(all)
}

// Contradicts returns an error if two neighbours of what Between returns are entries of the same message that are not the
// same. It answers to [ErrContradiction].
func Contradicts(before, t *Tally) error {
	if before.StreamSeq != t.StreamSeq || !before.RecordedAt.Equal(t.RecordedAt) {
		return nil
	}
	return fmt.Errorf("%w: message %d of AUDIT has %d events, %016x, and %d, %016x", ErrContradiction, t.StreamSeq, before.Rows, before.Sum, t.Rows, t.Sum)
}

// Forget removes the entries of messages that were recorded since an instant from the ledger: for repairs, which write them again.
// The other entries beside them are written again before, so that nothing is lost if it is cut off.
func (l Ledger) Forget(ctx context.Context, since time.Time, messages map[uint64]bool) error {
	stream, err := l.JS.Stream(ctx, Stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", Stream, err)
	}
	return l.each(ctx, stream, since, func(at uint64, entries []Tally) error {
		left := slices.DeleteFunc(slices.Clone(entries), func(t Tally) bool { return messages[t.StreamSeq] })
		if len(left) == len(entries) {
			return nil
		}
		if len(left) > 0 {
			if err := l.Put(ctx, left); err != nil {
				return err
			}
		}
		if err := stream.DeleteMsg(ctx, at); err != nil {
			return fmt.Errorf("remove message %d of %s: %w", at, Stream, err)
		}
		return nil
	})
}
