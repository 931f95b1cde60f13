// Package watchdog keeps a role taking work when what it takes it from fails in a way that no error tells of, or
// that trying again does not mend: a pull that never ends, a consumer that somebody deleted.
//
// It owns no loop: the loops go on by themselves when a pull ends.
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
)

// ErrStuck means that a pull did not end in its time.
var ErrStuck = errors.New("the pull is stuck")

// Consumer is a consumer of a stream, as jetstream.Consumer is.
type Consumer interface {
	consumers.Queue
	Info(ctx context.Context) (*jetstream.ConsumerInfo, error)
}

// Config of a watched queue.
type Config struct {
	Role string
	// Patience is how long a pull may go on without a message beyond the time it was given. Default 15 s.
	Patience time.Duration
	// Lease is how long somebody may still work on a message that the deleted consumer gave him: the consumer is
	// not made again before that is over, or a message could be in two hands.
	Lease time.Duration
	// Restore makes the consumer again.
	Restore func(ctx context.Context) error
	Logger  *slog.Logger
}

// Queue is a watched consumer. It is safe for concurrent use.
type Queue struct {
	cfg      Config
	consumer Consumer
	ctx      context.Context // of the role
	restarts atomic.Uint64
	wrong    atomic.Pointer[string] // what does not work now
	mu       sync.Mutex             // held while the consumer is restored
}

// Watch returns a queue that hands on what consumer has, until ctx ends.
func Watch(ctx context.Context, consumer Consumer, cfg Config) *Queue {
	if cfg.Patience == 0 {
		cfg.Patience = 15 * time.Second
	}
	return &Queue{cfg: cfg, consumer: consumer, ctx: ctx}
}

// Restarts counts the times that the role had to begin again.
func (q *Queue) Restarts() uint64 { return q.restarts.Load() }

// Look says what does not work now: it is a health.Check's.
func (q *Queue) Look(context.Context) error {
	if wrong := q.wrong.Load(); wrong != nil {
		return errors.New(*wrong)
	}
	return nil
}

// batch is what a pull brings.
type batch struct {
	msgs chan jetstream.Msg
	err  error // valid once msgs is closed
}

func (b *batch) Messages() <-chan jetstream.Msg { return b.msgs }
func (b *batch) Error() error                   { return b.err }

// Fetch is consumers.Queue's. What it returns ends in any case, with ErrStuck if the pull did not.
func (q *Queue) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	out := &batch{msgs: make(chan jetstream.Msg, n)}
	p := pull{opened: make(chan jetstream.MessageBatch, 1), failed: make(chan error, 1), left: make(chan struct{})}
	// Nobody waits for this goroutine if it hangs: there is no way to end it but to close the connection.
	go p.run(func() (jetstream.MessageBatch, error) { return q.consumer.Fetch(n, opts...) })
	go func() {
		defer close(out.msgs)
		out.err = q.outcome(p.carry(out.msgs, consumers.FetchWait+q.cfg.Patience))
	}()
	return out, nil
}

// outcome sees to what an error says.
func (q *Queue) outcome(err error) error {
	switch {
	case err == nil:
		q.wrong.Store(nil)
		return nil
	case q.ctx.Err() != nil:
		return err
	case errors.Is(err, ErrStuck):
		q.restarts.Add(1)
		q.says("its last pull was stuck")
		q.cfg.Logger.Error("a pull is stuck, it is left behind and another begun", slog.String("role", q.cfg.Role))
		return err
	case errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrConsumerNotFound):
		return errors.Join(err, q.restore())
	default:
		return err
	}
}

// restore makes the consumer again if it is gone.
func (q *Queue) restore() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if gone, err := q.gone(); !gone {
		return err
	}
	q.says(fmt.Sprintf("its consumer was deleted on the server, and is made again within %s", q.cfg.Lease))
	q.cfg.Logger.Error("the consumer was deleted, it is made again when nobody can work on its messages any more",
		slog.String("role", q.cfg.Role), slog.Duration("after", q.cfg.Lease))
	lease := time.NewTimer(q.cfg.Lease)
	defer lease.Stop()
	select {
	case <-q.ctx.Done():
		return q.ctx.Err()
	case <-lease.C:
	}
	if gone, err := q.gone(); !gone {
		return err // another process was first
	}
	if err := q.cfg.Restore(q.ctx); err != nil {
		return fmt.Errorf("make the consumer again: %w", err)
	}
	q.restarts.Add(1)
	q.cfg.Logger.Warn("the consumer is there again", slog.String("role", q.cfg.Role))
	return nil
}

func (q *Queue) says(wrong string) { q.wrong.Store(&wrong) }

func (q *Queue) gone() (bool, error) {
	ctx, cancel := context.WithTimeout(q.ctx, 10*time.Second)
	defer cancel()
	_, err := q.consumer.Info(ctx)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return true, nil
	}
	return false, err
}

// pull is one call of Fetch that may never return.
type pull struct {
	opened chan jetstream.MessageBatch
	failed chan error
	left   chan struct{} // closed when nobody waits for it any more
}

func (p *pull) run(fetch func() (jetstream.MessageBatch, error)) {
	b, err := fetch()
	if err != nil {
		p.failed <- err
		return
	}
	p.opened <- b
	select {
	case <-p.left: // what it brings after all is somebody else's soon
		for msg := range b.Messages() {
			_ = msg.Nak() // if it fails, the message comes again a little later
		}
	default:
	}
}

// carry hands on the messages of a pull until it ends, or brings nothing for too long.
func (p *pull) carry(out chan<- jetstream.Msg, patience time.Duration) error {
	patient := time.NewTimer(patience)
	defer patient.Stop()
	var b jetstream.MessageBatch
	select {
	case b = <-p.opened:
	case err := <-p.failed:
		return err
	case <-patient.C:
		close(p.left)
		return ErrStuck
	}
	for {
		select {
		case msg, ok := <-b.Messages():
			if !ok {
				return b.Error()
			}
			out <- msg
			patient.Reset(patience)
		case <-patient.C:
			return ErrStuck
		}
	}
}
