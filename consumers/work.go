package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// Queue is a consumer of a stream, as jetstream.Consumer is.
type Queue interface {
	Fetch(batch int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error)
}

// FetchWait is how long one fetch waits for messages: a consumer stops within about this time.
const FetchWait = time.Second

// Handler does what a task asks for. Its error decides what becomes of the task: nil, done; one made
// by [Later], tried again after its pause, even if it wraps [ErrPermanent]; one that answers to [ErrPermanent],
// given up; any other, tried again after a while. It must not panic, and must not acknowledge the
// message.
type Handler func(ctx context.Context, msg jetstream.Msg) error

// Work takes tasks one at a time, in parallel as told, and runs handle for each, until ctx ends; a task
// that is then being handled sees its context end, and is tried again by whoever comes next.
type Work struct {
	Queue    Queue
	Handle   Handler
	Parallel int           // default 1
	AckWait  time.Duration // of the consumer; progress is told three times within it
	// Backoff is the pause before a task is tried again, by the number of times it was tried.
	// Default: 1 s, doubling up to 5 minutes.
	Backoff func(tried uint64) time.Duration
	Logger  *slog.Logger
}

// Run returns nil when ctx has ended and nothing is being handled any more.
func (w Work) Run(ctx context.Context) error {
	if w.Backoff == nil {
		w.Backoff = Backoff
	}
	var g errgroup.Group
	for range max(w.Parallel, 1) {
		g.Go(func() error {
			w.loop(ctx)
			return nil
		})
	}
	return g.Wait()
}

// Backoff doubles from one second up to five minutes.
func Backoff(tried uint64) time.Duration {
	return min(time.Second<<min(max(tried, 1)-1, 20), 5*time.Minute)
}

func (w Work) loop(ctx context.Context) {
	for ctx.Err() == nil {
		// A plain fetch, again and again, has no state that a lost connection could leave stuck. It is
		// short, and not cut off by ctx, so that no message is under way to nobody when we stop.
		batch, err := w.Queue.Fetch(1, jetstream.FetchMaxWait(FetchWait))
		if err == nil {
			for msg := range batch.Messages() {
				w.one(ctx, msg)
			}
			err = batch.Error()
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, nats.ErrTimeout) {
			w.Logger.Warn("fetch failed, trying again", slog.Any("error", err))
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
}

func (w Work) one(ctx context.Context, msg jetstream.Msg) {
	err := w.handle(ctx, msg)
	tried := uint64(1)
	if meta, metaErr := msg.Metadata(); metaErr == nil {
		tried = meta.NumDelivered
	}
	var early *later
	switch {
	case err == nil:
		err = msg.Ack()
	case ctx.Err() != nil:
		err = msg.Nak()
	case errors.As(err, &early): // before permanent: a handler that says when to try again has decided
		err = msg.NakWithDelay(early.pause)
	case errors.Is(err, ErrPermanent):
		w.Logger.Error("task given up", slog.String("subject", msg.Subject()), slog.Any("error", err))
		err = msg.TermWithReason(err.Error())
	default:
		pause := w.Backoff(tried)
		w.Logger.Warn("task failed, trying again", slog.String("subject", msg.Subject()),
			slog.Uint64("tried", tried), slog.Duration("in", pause), slog.Any("error", err))
		err = msg.NakWithDelay(pause)
	}
	if err != nil && ctx.Err() == nil {
		w.Logger.Warn("acknowledge failed, the task will come again", slog.String("subject", msg.Subject()), slog.Any("error", err))
	}
}

// handle runs the handler and tells the broker meanwhile that work goes on.
func (w Work) handle(ctx context.Context, msg jetstream.Msg) (err error) {
	ctx, stop := context.WithCancel(ctx)
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		tick := time.NewTicker(max(w.AckWait, 3*time.Second) / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = msg.InProgress() // if it fails, the task comes again, which is allowed
			}
		}
	}()
	defer func() {
		stop()
		<-beating
		if p := recover(); p != nil {
			err = Permanent(fmt.Errorf("handler panicked: %v\n%s", p, debug.Stack()))
		}
	}()
	return w.Handle(ctx, msg)
}
