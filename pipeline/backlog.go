package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// backlogEvery is how often the writer's lag is looked at.
	backlogEvery = 250 * time.Millisecond
	// backlogRemembers is for how many seconds it is known who published how much.
	backlogRemembers = 60
	// backlogStuck is how long the writer may store nothing before publishing is not bounded: no event arrives sooner then, and the
	// stream is there to take them.
	backlogStuck = 10 * time.Second
	// backlogAgain is when to publish again.
	backlogAgain = time.Second
)

// backlog knows how far the writer is behind, and by whom. Events of all organizations go through one stream in order, so that one
// organization that publishes more than the writer stores delays the events of all others. While that is so, organizations that have
// published more than their equal share of what waits are refused. It is safe for concurrent use.
type backlog struct {
	limit time.Duration // of the lag; 0 turns the bound off
	now   func() time.Time

	mu     sync.Mutex
	lag    time.Duration
	floor  uint64
	moved  time.Time // when the writer was last seen to store something
	bytes  [backlogRemembers]map[string]int64
	second int64 // of the newest of bytes
}

func newBacklog(limit time.Duration, now func() time.Time) *backlog {
	return &backlog{limit: limit, now: now, moved: now()}
}

// count notes what an organization has published.
func (b *backlog) count(organization string, bytes int) {
	if b.limit <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	at := &b.bytes[b.second%backlogRemembers]
	if *at == nil {
		*at = map[string]int64{}
	}
	(*at)[organization] += int64(bytes)
}

// forget drops the seconds that are too long ago. The caller holds mu.
func (b *backlog) forget() {
	now := b.now().Unix()
	for s := max(b.second+1, now-backlogRemembers+1); s <= now; s++ {
		b.bytes[s%backlogRemembers] = nil
	}
	b.second = max(b.second, now)
}

// observe notes how old the oldest message is that waits, and the last message before it.
func (b *backlog) observe(lag time.Duration, floor uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.now(); floor != b.floor || lag == 0 {
		b.floor, b.moved = floor, now
	}
	b.lag = lag
}

// refuses tells whether an organization has more than its share of what waits.
func (b *backlog) refuses(organization string) bool {
	if b.limit <= 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lag <= b.limit || b.now().Sub(b.moved) > backlogStuck {
		return false
	}
	b.forget()
	var own, all int64
	active := map[string]bool{}
	for age := range int64(backlogRemembers) {
		waits := age <= int64(b.lag/time.Second)+1
		for name, n := range b.bytes[(b.second-age+backlogRemembers)%backlogRemembers] {
			active[name] = true
			if !waits {
				continue
			}
			all += n
			if name == organization {
				own += n
			}
		}
	}
	return len(active) > 1 && own*int64(len(active)) > all
}

// follow looks until ctx ends.
func (b *backlog) follow(ctx context.Context, look func(context.Context) ([]*jetstream.ConsumerInfo, time.Duration, error), log *slog.Logger) {
	tick := time.NewTicker(backlogEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		shards, lag, err := look(ctx)
		if err != nil {
			if ctx.Err() == nil {
				log.Debug("the writer's lag is not known: publishing is not bounded by it", slog.Any("error", err))
			}
			b.observe(0, 0)
			continue
		}
		var floor uint64
		for _, s := range shards {
			floor += s.AckFloor.Stream
		}
		b.observe(lag, floor)
	}
}
