package deadletter

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline/broker"
)

// Writers reports how far the writers have come, as broker.Client does.
type Writers interface {
	Writers(ctx context.Context) (*jetstream.StreamInfo, []floor.Info, error)
}

// Outcome is what became of letters that were replayed.
type Outcome struct {
	Replayed int `json:"replayed"`
	// CameBack are those that could not be stored and are dead letters again, and Causes why.
	CameBack int     `json:"came_back"`
	Causes   []Cause `json:"causes" nullable:"false"`
	// Unsettled says that the writer did not come to all of them in time, so that more may come
	// back.
	Unsettled bool `json:"unsettled,omitempty"`
}

// Last returns the number of the newest letter. Those that come back from a later replay have
// higher ones.
func Last(ctx context.Context, js jetstream.JetStream) (uint64, error) {
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	return s.CachedInfo().State.LastSeq, nil
}

// settleLookAgain is how often the writers are asked.
const settleLookAgain = 50 * time.Millisecond

// OutcomeOf waits until the writer has settled what was replayed, for as long as patience, and
// returns what came back since last, which was [Last] before the replay.
func OutcomeOf(ctx context.Context, js jetstream.JetStream, writers Writers, replayed []Replayed, last uint64, patience time.Duration) (*Outcome, error) {
	o := &Outcome{Replayed: len(replayed), Causes: []Cause{}}
	if len(replayed) == 0 {
		return o, nil
	}
	seqs := make(map[uint64]bool, len(replayed))
	high := uint64(0)
	for i := range replayed {
		seqs[replayed[i].Seq] = true
		high = max(high, replayed[i].Seq)
	}
	for wait := time.Now().Add(patience); ; {
		_, shards, err := writers.Writers(ctx)
		if err != nil {
			return nil, fmt.Errorf("wait for the writer: %w", err)
		}
		o.Unsettled = false
		for _, s := range shards {
			if s.AckFloor.Stream < high && (s.NumPending > 0 || s.NumAckPending > 0) {
				o.Unsettled = true
			}
		}
		if !o.Unsettled || time.Now().After(wait) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the writer: %w", ctx.Err())
		case <-time.After(settleLookAgain):
		}
	}
	back := map[uint64]bool{}
	var causes tally
	err := Heads(ctx, js, "", last+1, func(l Letter) bool {
		if seqs[l.StreamSeq] {
			back[l.StreamSeq] = true
			causes.add(&l)
		}
		return true
	})
	o.CameBack, o.Causes = len(back), causes.sorted()
	return o, err
}
