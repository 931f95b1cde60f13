package metrics

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
)

// reasons counts dead letters by reason. That looks through all of them, so it is done anew only when there are others,
// and not more often than recountEvery.
type reasons struct {
	mu     sync.Mutex
	msgs   uint64
	last   uint64
	at     time.Time
	causes []deadletter.Cause
}

const (
	recountEvery = 15 * time.Second
	// mostReasons bounds the label's values.
	mostReasons = 20
)

func (r *reasons) collect(ctx context.Context, js jetstream.JetStream, gauge gauger) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	stream, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	state := stream.CachedInfo().State
	if (state.Msgs != r.msgs || state.LastSeq != r.last) && (time.Since(r.at) >= recountEvery || state.Msgs == 0) {
		var causes []deadletter.Cause
		if state.Msgs > 0 {
			census, err := deadletter.Causes(ctx, js, "")
			if err != nil {
				return err
			}
			causes = census.Causes
		}
		r.msgs, r.last, r.at, r.causes = state.Msgs, state.LastSeq, time.Now(), causes
	}
	others := uint64(0)
	for i, c := range r.causes {
		if i >= mostReasons || c.Kind == deadletter.Others {
			others += c.Letters
			continue
		}
		gauge(deadReasons, float64(c.Letters), c.Kind)
	}
	if others > 0 {
		gauge(deadReasons, float64(others), deadletter.Others)
	}
	return nil
}
