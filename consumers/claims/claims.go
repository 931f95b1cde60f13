// Package claims lets writers of all processes know which ids the inserts of the others have in hand, so that two copies of an event that
// are under way at once are stored one after the other: the second writer then finds the first copy in the table.
//
// A claim is a message of the stream CLAIMS. The stream's order decides: an insert waits until the claims before its own that have an id in
// common with it are released or over. So no two inserts wait for each other.
//
// The package owns that stream. It never looks at the table, and a claim says nothing about what is stored.
package claims

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// Stream is the name of the stream that holds the claims, and Subject where they are published.
const (
	Stream  = "CLAIMS"
	Subject = "audit.claims"
)

// Message is one of the stream of events, with the ids that are claimed of its events.
type Message struct {
	StreamSeq uint64
	IDs       []uuid.UUID
}

// Log is the stream of claims, and what a process knows of it.
type Log struct {
	js     jetstream.JetStream
	hold   time.Duration
	logger *slog.Logger

	mu   sync.Mutex
	upTo uint64 // the claims up to this one are known
	live map[uint64]*claim
	// moved is closed and replaced when upTo moves.
	moved chan struct{}
	again context.CancelFunc // has the stream read again
	reads int
}

// New returns a log in which a claim that is not released is over after hold: the process that made it is gone by then, or its insert is.
func New(js jetstream.JetStream, hold time.Duration, logger *slog.Logger) *Log {
	return &Log{js: js, hold: hold, logger: logger, live: map[uint64]*claim{}, moved: make(chan struct{})}
}

// claim is what one insert has in hand.
type claim struct {
	hashes map[uint64][]uint64 // of ids, by message
	all    bool                // it has every id
	until  time.Time
	over   chan struct{} // closed when it is released, or another one has its messages
}

func (c *claim) meets(o *claim) bool {
	if c.all || o.all {
		return true
	}
	if len(c.hashes) == 0 || len(o.hashes) == 0 {
		return false
	}
	has := map[uint64]bool{}
	for _, of := range c.hashes {
		for _, h := range of {
			has[h] = true
		}
	}
	for _, of := range o.hashes {
		for _, h := range of {
			if has[h] {
				return true
			}
		}
	}
	return false
}

// errPassed means that another writer has the messages by now.
var errPassed = errors.New("another writer has claimed the same messages meanwhile")

// Take claims the ids of messages and returns when no earlier claim has any of them: then the table has what the others stored. The
// caller calls release when its insert has ended, however it did. Run must be running.
func (l *Log) Take(ctx context.Context, messages []Message) (release func(), err error) {
	ack, err := l.js.Publish(ctx, Subject, encode(messages), jetstream.WithExpectStream(Stream))
	if err != nil {
		return nil, fmt.Errorf("claim ids: %w", err)
	}
	if err := l.await(ctx, ack.Sequence); err != nil {
		l.release(ack.Sequence)
		return nil, fmt.Errorf("wait for an insert of events with the same ids: %w", err)
	}
	return func() { l.release(ack.Sequence) }, nil
}

// release does not wait for an answer. If its message is lost, the claim is over after some time.
func (l *Log) release(seq uint64) {
	if err := l.js.Conn().Publish(Subject, binary.BigEndian.AppendUint64([]byte{kindRelease}, seq)); err != nil {
		l.logger.Warn("claimed ids could not be released", slog.Duration("claimed_for", l.hold), slog.Any("error", err))
	}
}

// patience is how long a claim may be under way from the broker, before the stream is read again: it may be another one by now, of
// which the reader waits for a sequence that is far away.
const patience = 2 * time.Second

func (l *Log) readAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again != nil {
		l.again()
	}
}

func (l *Log) await(ctx context.Context, seq uint64) error {
	for read := 0; ; {
		before, moved, err := l.before(seq, &read)
		if err != nil || before == nil && moved == nil {
			return err
		}
		wait := patience
		var over <-chan struct{}
		if before != nil {
			over, wait = before.over, time.Until(before.until)
		}
		select {
		case <-moved:
		case <-over:
		case <-time.After(wait):
			if before == nil {
				l.readAgain()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// before returns a claim that seq has to wait for; or what is closed when more is known, if too little is. If seq itself is not known, the
// stream is read again; read remembers that.
func (l *Log) before(seq uint64, read *int) (before *claim, moved <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.upTo < seq {
		return nil, l.moved, nil
	}
	mine := l.live[seq]
	switch {
	case mine != nil:
	case *read == 0:
		*read = l.reads + 1
		l.again()
		return nil, l.moved, nil
	case l.reads < *read:
		return nil, l.moved, nil
	default:
		return nil, nil, errPassed
	}
	now := time.Now()
	for other, c := range l.live {
		if other < seq && c.until.After(now) && c.meets(mine) {
			return c, nil, nil
		}
	}
	return nil, nil, nil
}

// retry is the pause before the stream is followed again.
const retry = 100 * time.Millisecond

// Run follows the stream until ctx ends.
func (l *Log) Run(ctx context.Context) {
	said := ""
	for {
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if said != err.Error() {
			said = err.Error()
			l.logger.Warn("the stream of claims cannot be followed, trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

func (l *Log) follow(ctx context.Context) error {
	stream, err := l.js.Stream(ctx, Stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", Stream, err)
	}
	// Older claims are over, even if the broker's clock differs from this one.
	since := time.Now().Add(-2 * l.hold)
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, InactiveThreshold: time.Minute, MaxResetAttempts: 3,
	})
	if err != nil {
		return fmt.Errorf("read stream %s: %w", Stream, err)
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(10*time.Second))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", Stream, err)
	}
	defer messages.Stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.forget(cancel)
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read stream %s: %w", Stream, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", Stream, err)
		}
		if err := l.apply(meta.Sequence.Stream, msg.Data()); err != nil {
			l.logger.Error("a claim cannot be read and is passed over", slog.Uint64("seq", meta.Sequence.Stream), slog.Any("error", err))
		}
	}
}

// forget is called before the stream is read again.
func (l *Log) forget(again context.CancelFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again = again
	l.reads++
	for seq, c := range l.live {
		l.end(seq, c)
	}
	l.upTo = 0
}

// end ends a claim; mu is held.
func (l *Log) end(seq uint64, c *claim) {
	delete(l.live, seq)
	close(c.over)
}

// apply takes a message of the stream in.
func (l *Log) apply(seq uint64, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		l.upTo = seq
		close(l.moved)
		l.moved = make(chan struct{})
	}()
	now := time.Now()
	for other, c := range l.live {
		if !c.until.After(now) {
			l.end(other, c)
		}
	}
	released, c, err := decode(data)
	if err != nil {
		return err
	}
	if c == nil {
		if c := l.live[released]; c != nil {
			l.end(released, c)
		}
		return nil
	}
	// A message belongs to one writer at a time: the latest claim of it counts, and the insert of an earlier claim is over.
	for other, o := range l.live {
		n := len(o.hashes)
		for message := range c.hashes {
			delete(o.hashes, message)
		}
		if n > len(o.hashes) && len(o.hashes) == 0 {
			l.end(other, o)
		}
	}
	c.until, c.over = now.Add(l.hold), make(chan struct{})
	l.live[seq] = c
	return nil
}

// A message of the stream is a kind and either a sequence, or for each message its sequence, the number of its ids, and a hash of each; all
// big-endian. Of more ids than mostIDs, no hash is named, and all ids are claimed.
const (
	kindRelease = 0
	kindSome    = 1
	kindAll     = 2

	// With the sequences of their messages they fit into one message of the broker, which has little more than 4 MiB.
	mostIDs = 400_000
)

func encode(messages []Message) []byte {
	n := 0
	for _, m := range messages {
		n += len(m.IDs)
	}
	kind := byte(kindSome)
	if n > mostIDs {
		kind, n = kindAll, 0
	}
	data := append(make([]byte, 0, 1+12*len(messages)+8*n), kind)
	for _, m := range messages {
		data = binary.BigEndian.AppendUint64(data, m.StreamSeq)
		if kind == kindAll {
			data = binary.BigEndian.AppendUint32(data, 0)
			continue
		}
		data = binary.BigEndian.AppendUint32(data, uint32(len(m.IDs)))
		for _, id := range m.IDs {
			data = binary.BigEndian.AppendUint64(data, hash(id))
		}
	}
	return data
}

// hash is not one for adversaries: two ids with the same one wait for each other, and no more.
func hash(id uuid.UUID) uint64 {
	return binary.BigEndian.Uint64(id[:8])*0x9e3779b97f4a7c15 ^ binary.BigEndian.Uint64(id[8:])
}

var errShort = errors.New("it ends too early")

func decode(data []byte) (released uint64, c *claim, err error) {
	if len(data) == 0 {
		return 0, nil, errShort
	}
	kind, data := data[0], data[1:]
	switch kind {
	case kindRelease:
		if len(data) != 8 {
			return 0, nil, errShort
		}
		return binary.BigEndian.Uint64(data), nil, nil
	case kindSome, kindAll:
	default:
		return 0, nil, fmt.Errorf("its kind is %d, which is none: another program publishes on %s", kind, Subject)
	}
	c = &claim{hashes: map[uint64][]uint64{}, all: kind == kindAll}
	for len(data) > 0 {
		if len(data) < 12 {
			return 0, nil, errShort
		}
		message, n := binary.BigEndian.Uint64(data), uint64(binary.BigEndian.Uint32(data[8:]))
		data = data[12:]
		if uint64(len(data)) < 8*n {
			return 0, nil, errShort
		}
		hashes := make([]uint64, n)
		for i := range hashes {
			hashes[i] = binary.BigEndian.Uint64(data[8*i:])
		}
		c.hashes[message], data = hashes, data[8*n:]
	}
	return 0, c, nil
}
