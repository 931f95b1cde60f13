package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Floor watches how far a consumer has come: if messages wait and none is settled for a while, it is stuck,
// whatever the reason. It keeps nothing but the last look.
type Floor struct {
	// Name of the consumer, for whoever looks.
	Name string
	// Consumer tells.
	Consumer interface {
		Info(ctx context.Context) (*jetstream.ConsumerInfo, error)
	}
	// StuckAfter is how long the first message that is not acknowledged may stay so.
	StuckAfter time.Duration
	Now        func() time.Time // default time.Now

	mu    sync.Mutex
	floor uint64
	moved time.Time // when it was last seen to have moved, or that nothing waits
	err   error     // of the last look
	waits uint64    // messages not acknowledged
}

// every is how often Run looks.
const every = time.Second

// Run looks until ctx ends.
func (f *Floor) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		f.Observe(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Observe looks once.
func (f *Floor) Observe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := f.Consumer.Info(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.moved.IsZero() {
		f.moved = now
	}
	if f.err = err; err != nil {
		return
	}
	f.waits = info.NumPending + uint64(info.NumAckPending)
	if f.waits == 0 || info.AckFloor.Stream != f.floor {
		f.floor, f.moved = info.AckFloor.Stream, now
	}
}

func (f *Floor) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

// Age is how long nothing was settled though something waits; how much, and the last message before it.
func (f *Floor) Age() (age time.Duration, waiting, floor uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waits > 0 {
		age = f.now().Sub(f.moved)
	}
	return age, f.waits, f.floor
}

// Look is a Check's.
func (f *Floor) Look(context.Context) error {
	age, waiting, floor := f.Age()
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	switch {
	case err != nil:
		return fmt.Errorf("how far it has come is not known: %w", err)
	case age > f.StuckAfter:
		return fmt.Errorf("it is stuck: %d messages wait for consumer %s, and none was settled for %s; the last that was is number %d of the stream",
			waiting, f.Name, age.Round(time.Second), floor)
	}
	return nil
}
