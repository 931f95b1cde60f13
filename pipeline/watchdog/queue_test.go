package watchdog_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/watchdog"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) (*broker.Client, jetstream.Consumer) {
	t.Helper()
	c := brokertest.SetUp(t)
	consumer, err := c.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	return c, consumer
}

func publish(t *testing.T, c *broker.Client, n int) {
	t.Helper()
	for range n {
		if _, err := c.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
}

// take fetches and acknowledges until it has n messages, and returns their places in the stream.
func take(t *testing.T, q consumers.Queue, n int) (seqs []uint64, errs []error) {
	t.Helper()
	for len(seqs) < n && t.Context().Err() == nil {
		b, err := q.Fetch(n-len(seqs), jetstream.FetchMaxWait(consumers.FetchWait))
		if err != nil {
			t.Fatal(err)
		}
		for msg := range b.Messages() {
			meta, err := msg.Metadata()
			if err == nil {
				err = msg.DoubleAck(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			seqs = append(seqs, meta.Sequence.Stream)
		}
		if err := b.Error(); err != nil {
			errs = append(errs, err)
		}
	}
	return seqs, errs
}

// hanging is a consumer whose next pulls do not end before release is closed: on their way, or with a batch that
// stays open.
type hanging struct {
	jetstream.Consumer
	left    atomic.Int64
	open    bool
	release chan struct{}
}

type openBatch struct{ msgs chan jetstream.Msg }

func (b openBatch) Messages() <-chan jetstream.Msg { return b.msgs }
func (openBatch) Error() error                     { return nil }

func (h *hanging) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	if h.left.Add(-1) < 0 {
		return h.Consumer.Fetch(n, opts...)
	}
	if h.open {
		return openBatch{make(chan jetstream.Msg)}, nil
	}
	<-h.release
	return nil, nats.ErrConnectionClosed // a pull begun now would outlive the test
}

func TestStuckPullIsLeftBehind(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]bool{"on its way": false, "open batch": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, consumer := start(t)
			h := &hanging{Consumer: consumer, open: open, release: make(chan struct{})}
			h.left.Store(2)
			defer close(h.release)
			q := watchdog.Watch(t.Context(), h, watchdog.Config{Role: "writer", Patience: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
			publish(t, c, 3)
			seqs, errs := take(t, q, 3)
			if len(seqs) != 3 || len(errs) != 2 || !errors.Is(errs[0], watchdog.ErrStuck) || q.Restarts() != 2 {
				t.Errorf("got messages %v, errors %v, %d restarts", seqs, errs, q.Restarts())
			}
		})
	}
}

// A consumer that somebody deleted is made again, where the old one had come to, and not before its messages are in
// nobody's hands.
func TestDeletedConsumerIsRestored(t *testing.T) {
	t.Parallel()
	c, consumer := start(t)
	stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	const lease = 300 * time.Millisecond
	var floor broker.Floor
	q := watchdog.Watch(t.Context(), consumer, watchdog.Config{
		Role: "writer", Lease: lease, Logger: slog.New(slog.DiscardHandler),
		Restore: func(ctx context.Context) error {
			return c.RestoreConsumer(ctx, broker.StreamAudit, broker.ConsumerWriter, floor)
		},
	})
	publish(t, c, 10)
	for round, want := range []struct {
		floor broker.Floor
		first uint64
	}{
		{broker.Floor{}, 1}, // nothing is known
		{broker.Floor{Seq: 4, Created: stream.CachedInfo().Created}, 5},
		{broker.Floor{Seq: 4, Created: time.Now()}, 1},                   // of another stream
		{broker.Floor{Seq: 99, Created: stream.CachedInfo().Created}, 1}, // of one that was purged and numbered anew
	} {
		floor = want.floor
		if err := stream.DeleteConsumer(t.Context(), broker.ConsumerWriter); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		seqs, errs := take(t, q, 10-int(want.first)+1)
		if seqs[0] != want.first || seqs[len(seqs)-1] != 10 || len(errs) == 0 || q.Restarts() != uint64(round+1) {
			t.Errorf("round %d: got messages %v, errors %v, %d restarts", round, seqs, errs, q.Restarts())
		}
		if took := time.Since(begin); took < lease {
			t.Errorf("round %d: it was there after %s", round, took)
		}
		// What sets it up at the next start leaves it as it is.
		if err := c.Setup(t.Context(), broker.Settings{DuplicateWindow: time.Minute, AckWait: time.Minute, Hour: time.Hour}); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
}
