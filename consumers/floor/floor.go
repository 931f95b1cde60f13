// Package floor knows how far the writers have come in the stream of events: which messages are stored for certain, and
// up to which instant nothing more can come in between. Closed hours, the cursor, kept messages and the lag all ask it.
//
// It owns no consumer, and believes nothing but acknowledgements where a server that answers may lag behind others.
package floor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/schema"
)

// Lane is a part of the stream of events that is stored independently of the other one.
type Lane int

// The lanes of the stream.
const (
	Prompt Lane = iota // stored as soon as possible
	Bulk               // what organizations publish beyond their prompt share
	Lanes              // how many there are
)

func (l Lane) String() string { return [Lanes]string{"prompt", "bulk"}[l] }

// Shard is what one consumer takes of the stream of events.
type Shard struct {
	Consumer string
	Lane     Lane
	Number   int // in its lane
}

// Info is how the consumer of a shard is doing.
type Info struct {
	Shard
	*jetstream.ConsumerInfo
}

// Broker answers for the stream of events and the consumers of its shards.
type Broker interface {
	// Writers tells how the stream is doing and then how the consumers of all shards are.
	Writers(ctx context.Context) (*jetstream.StreamInfo, []Info, error)
	// Mark puts a message without events into a shard, and returns its place in the stream when every message that was
	// acknowledged before is certain to be before it.
	Mark(ctx context.Context, shard Shard) (seq uint64, err error)
}

// Floor finds what is settled. It is safe for concurrent use.
//
// Where one server has the stream and one consumer takes each lane, the server's answer is exact: nothing pending means that
// everything is settled. One shard of several may have nothing to do for long, so that its last acknowledgement says nothing of
// what came since. And in a cluster, the server that answers for a consumer may not
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
	patience  = time.Second
	lookAgain = 25 * time.Millisecond
	// markEvery is the least time between two marks of an idle shard for the cursor.
	markEvery = 250 * time.Millisecond
)

// exact tells whether the server knows everything about the consumers.
func exact(s *jetstream.StreamInfo, shards []Info) bool {
	return s.Config.Replicas <= 1 && len(shards) <= int(Lanes)
}

// waits tells whether a consumer knows of messages that are not acknowledged.
func waits(c Info) bool { return c.NumPending > 0 || c.NumAckPending > 0 }

// again queries the consumers once more, where the server's answer is exact, and returns the highest place that any of them had
// settled at first. A consumer that has nothing to do the second time has settled everything up to there: the server gives messages
// to their consumers in the order of the stream.
func (f *Floor) again(ctx context.Context, shards []Info) (high uint64, _ []Info, err error) {
	for _, c := range shards {
		high = max(high, c.AckFloor.Stream)
	}
	if len(shards) > 1 {
		if _, shards, err = f.Broker.Writers(ctx); err != nil {
			return 0, nil, fmt.Errorf("ask how far the writers have come: %w", err)
		}
	}
	return high, shards, nil
}

// Closed returns an instant before which the broker stored no message that is not in the table, and will store none;
// and the place in the stream up to which all are.
func (f *Floor) Closed(ctx context.Context) (until time.Time, seq uint64, err error) {
	stream, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return until, 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	if exact(stream, shards) {
		// A message that was stored before until has been visible since before the consumers were queried.
		until, seq = stream.TimeStamp.Add(-f.Grace), stream.State.LastSeq
		for _, c := range shards {
			if !waits(c) {
				continue
			}
			first, err := f.first(ctx, c)
			switch {
			case errors.Is(err, jetstream.ErrMsgNotFound): // it was acknowledged and removed meanwhile
			case err != nil:
				return until, 0, err
			default:
				seq = min(seq, first.Sequence-1)
				if first.Time.Before(until) {
					until = first.Time
				}
			}
		}
		return until, seq, nil
	}
	if seq, err = f.byMarks(ctx, shards); err != nil {
		return until, 0, err
	}
	// There is a message after it: a mark at least. A server that does not have it yet is behind.
	for wait := time.Now().Add(patience); ; {
		first, err := f.after(ctx, seq, ">")
		if err == nil {
			return first.Time.Add(-f.Grace), seq, nil
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) || time.Now().After(wait) {
			return time.Time{}, 0, err
		}
		select {
		case <-ctx.Done():
			return until, 0, ctx.Err()
		case <-time.After(lookAgain):
		}
	}
}

// Marked puts a mark into each shard and returns the place in the stream up to which all is settled: that of the marks, or less if
// they are not settled in time, as while no writer runs. It needs no Stream.
func (f *Floor) Marked(ctx context.Context) (seq uint64, err error) {
	_, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	return f.byMarks(ctx, shards)
}

func (f *Floor) byMarks(ctx context.Context, shards []Info) (seq uint64, err error) {
	marks, err := f.mark(ctx, shards)
	if err != nil {
		return 0, err
	}
	for wait := time.Now().Add(patience); ; {
		if _, shards, err = f.Broker.Writers(ctx); err != nil {
			return 0, fmt.Errorf("ask how far the writers have come: %w", err)
		}
		if len(shards) != len(marks) {
			return 0, fmt.Errorf("the stream is being resharded: it had %d shards and has %d", len(marks), len(shards))
		}
		var all bool
		if seq, all = settled(shards, marks); all || time.Now().After(wait) {
			return seq, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(lookAgain):
		}
	}
}

// settled returns the place up to which every shard has settled its messages, at most up to the first mark, and whether
// it is that.
func settled(shards []Info, marks []uint64) (seq uint64, all bool) {
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

func (f *Floor) mark(ctx context.Context, shards []Info) ([]uint64, error) {
	marks := make([]uint64, len(shards))
	var marking errgroup.Group
	for i := range marks {
		marking.Go(func() (err error) {
			marks[i], err = f.Broker.Mark(ctx, shards[i].Shard)
			return err
		})
	}
	return marks, marking.Wait()
}

// first returns the first message of a shard that is not acknowledged, or a message before it.
func (f *Floor) first(ctx context.Context, c Info) (*jetstream.RawStreamMsg, error) {
	return f.after(ctx, c.AckFloor.Stream, cmp.Or(c.Config.FilterSubject, ">"))
}

// after returns the first message on a subject after a place.
func (f *Floor) after(ctx context.Context, seq uint64, subject string) (*jetstream.RawStreamMsg, error) {
	msg, err := f.Stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(subject))
	if err != nil {
		return nil, fmt.Errorf("look at the first message that is not acknowledged: %w", err)
	}
	return msg, nil
}

// Places are the places in the stream up to which every event of a lane is in the table.
type Places [Lanes]uint64

// Places returns how far each lane is settled. Where lanes have several shards, a lane may be behind by as long as it
// takes to settle a mark, for a shard in which nothing happens.
func (f *Floor) Places(ctx context.Context) (Places, error) {
	stream, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return Places{}, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	if exact(stream, shards) {
		high, shards, err := f.again(ctx, shards)
		if err != nil {
			return Places{}, err
		}
		p := Places{high, high}
		for _, c := range shards {
			if waits(c) {
				p[c.Lane] = min(high, c.AckFloor.Stream)
			}
		}
		return p, nil
	}
	p, high := Places{^uint64(0), ^uint64(0)}, uint64(0)
	for _, c := range shards {
		p[c.Lane], high = min(p[c.Lane], c.AckFloor.Stream), max(high, c.AckFloor.Stream)
	}
	f.mu.Lock()
	due := time.Since(f.marked) >= markEvery
	if due {
		f.marked = time.Now()
	}
	f.mu.Unlock()
	if !due {
		return p, nil
	}
	for _, c := range shards {
		if c.AckFloor.Stream < high && !waits(c) {
			if _, err := f.Broker.Mark(ctx, c.Shard); err != nil {
				return Places{}, err
			}
		}
	}
	return p, nil
}

// Of returns the place in the stream up to which every event of an organization is in the table, given how far the lanes are. Messages
// of other organizations in the bulk lane do not hold it back.
func (f *Floor) Of(ctx context.Context, p Places, organization string) (uint64, error) {
	if p[Bulk] >= p[Prompt] {
		return p[Prompt], nil
	}
	first, err := f.after(ctx, p[Bulk], schema.SubjectEvents+"."+organization+".*."+schema.BulkToken+".*")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return p[Prompt], nil
	}
	if err != nil {
		return 0, err
	}
	return min(p[Prompt], first.Sequence-1), nil
}

// Lag tells how the consumers of all shards are doing, and the age of the first message that is not settled.
func (f *Floor) Lag(ctx context.Context) (shards []Info, age time.Duration, err error) {
	stream, shards, err := f.Broker.Writers(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("ask how far the writers have come: %w", err)
	}
	for _, c := range shards {
		if !waits(c) {
			continue
		}
		first, err := f.first(ctx, c)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return shards, 0, err
		}
		age = max(age, stream.TimeStamp.Sub(first.Time))
	}
	return shards, age, nil
}

// Message is a message of the stream without its data.
type Message struct {
	Seq      uint64
	Recorded time.Time
	Subject  string
}

// few is how many messages are looked at one by one; more are read in order, without their data.
const few = 64

// reader is a stream that can be read in order, as jetstream.Stream is.
type reader interface {
	CreateConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error)
	DeleteConsumer(ctx context.Context, consumer string) error
}

// Messages visits the messages that the stream still has from one place to another, both included, in order.
func (f *Floor) Messages(ctx context.Context, first, last uint64, visit func(Message) error) error {
	if r, ok := f.Stream.(reader); ok && last-first >= few {
		return f.read(ctx, r, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: first}, func(m Message) (bool, error) {
			if m.Seq > last {
				return false, nil
			}
			return m.Seq < last, visit(m)
		})
	}
	for seq := first; seq <= last; {
		msg, err := f.Stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at message %d: %w", seq, err)
		}
		if msg.Sequence > last {
			return nil
		}
		if err := visit(Message{msg.Sequence, msg.Time, msg.Subject}); err != nil {
			return err
		}
		seq = msg.Sequence + 1
	}
	return nil
}

// Since returns the first message that the stream stored at an instant or later, and false if there is none.
func (f *Floor) Since(ctx context.Context, at time.Time) (first Message, ok bool, err error) {
	r, can := f.Stream.(reader)
	if !can {
		return first, false, nil
	}
	err = f.read(ctx, r, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &at}, func(m Message) (bool, error) {
		first, ok = m, true
		return false, nil
	})
	return first, ok, err
}

// read visits messages in order until visit says that it has enough, or there are no more.
func (f *Floor) read(ctx context.Context, stream reader, cfg jetstream.ConsumerConfig, visit func(Message) (more bool, err error)) error {
	cfg.AckPolicy, cfg.HeadersOnly, cfg.InactiveThreshold, cfg.MemoryStorage, cfg.Replicas = jetstream.AckNonePolicy, true, 30*time.Second, true, 1
	consumer, err := stream.CreateConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read the stream of events: %w", err)
	}
	info := consumer.CachedInfo()
	defer func() { _ = stream.DeleteConsumer(context.WithoutCancel(ctx), info.Name) }() // or it goes by itself
	p := consumers.Pulled{Consumer: consumer}
	for range info.NumPending {
		msg, err := p.Next(ctx)
		if err != nil {
			return fmt.Errorf("read the stream of events: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read the stream of events: %w", err)
		}
		if more, err := visit(Message{meta.Sequence.Stream, meta.Timestamp, msg.Subject()}); !more || err != nil {
			return err
		}
	}
	return nil
}
