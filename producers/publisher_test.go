package producers_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// When Publish returns, the event is on disk: it is there after the server is gone and has come again.
func TestPublishIsOnDisk(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{})
	all := events(1, 6, false)
	for i := range all {
		if err := p.Publish(t.Context(), all[i]); err != nil {
			t.Fatal(err)
		}
		s.WantOnce(t, all[:i+1])
	}
	s.Stop()
	s.Start(t)
	s.WantOnce(t, all)
	if got := p.Stats(); got.Acked != 6 || got.Rejected != 0 {
		t.Errorf("stats %+v", got)
	}
}

func TestManyCallersShareFewMessages(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Linger: 20 * time.Millisecond})
	all := events(2, 2000, true)
	var callers sync.WaitGroup
	for i := range all {
		callers.Go(func() {
			if err := p.Publish(t.Context(), all[i]); err != nil {
				t.Error(err)
			}
		})
	}
	await.Return(t, await.Limit, "all callers to return", callers.Wait)
	s.WantOnce(t, all)
	if got := s.Stored(t).Messages; got > len(all)/10 {
		t.Errorf("%d events took %d messages", len(all), got)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{MaxEvents: 10, Linger: time.Hour})
	all := events(3, 95, true)
	for _, e := range all {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
	if got := s.Stored(t).Messages; got != 10 {
		t.Errorf("95 events, at most 10 a message: %d messages", got)
	}
}

func TestLargestEventsFitIntoMessages(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{MaxBytes: 3 << 20, Compression: producers.NoCompression, Linger: time.Hour})
	all := events(4, 30, true)
	for i := range all {
		all[i].Data = json.RawMessage(`"` + filler(schema.MaxEventBytes-4096) + `"`)
		if _, err := p.PublishAsync(t.Context(), all[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
}

func filler(n int) string { return strings.Repeat("abcdefgh", n/8) }

func TestInvalidEventsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{})
	bad := schema.Event{Organization: "a.b", Action: "Read", Data: json.RawMessage("x")}
	for _, publish := range []func() error{
		func() error { return p.Publish(t.Context(), bad) },
		func() error { _, err := p.PublishAsync(t.Context(), bad); return err },
	} {
		err := publish()
		var invalid *schema.ValidationError
		if !errors.Is(err, schema.ErrInvalid) || !errors.As(err, &invalid) || len(invalid.Faults) != 7 {
			t.Errorf("got %v", err) // organization, trail, time, source, event, action, data
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Errorf("a refused event has failed, too: %v", err)
	}
	if got := p.Stats(); got.Rejected != 2 || got.Acked != 0 {
		t.Errorf("stats %+v", got)
	}
	s.WantOnce(t, nil)
}

// The same events from two publishers are one message to the broker.
func TestSameEventsAreStoredOnce(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	all := events(5, 50, true)
	for range 2 {
		p := s.publisher(t, producers.Config{Linger: time.Hour})
		for _, e := range all {
			if _, err := p.PublishAsync(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.WantOnce(t, all)
	if got := s.Stored(t).Messages; got != 1 {
		t.Errorf("%d messages, want 1", got)
	}
}

// A server that goes away and comes again costs time and nothing else: what was acknowledged is stored, once.
func TestServerRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{MaxEvents: 20, Linger: time.Microsecond, AckTimeout: 500 * time.Millisecond})
	all := events(6, 600, true)
	var acked atomic.Int64
	var callers sync.WaitGroup
	for first := 0; first < len(all); first += 60 {
		callers.Go(func() {
			for i := first; i < first+60; i++ {
				if err := p.Publish(t.Context(), all[i]); err != nil {
					t.Error(err)
				}
				acked.Add(1)
			}
		})
	}
	for round := range int64(2) {
		await.True(t, patience, "a part of the events to be stored", func() bool { return acked.Load() >= 100*(round+1) })
		s.Stop()
		s.Start(t)
	}
	await.Return(t, await.Limit, "all callers to return", callers.Wait)
	s.WantOnce(t, all)
	if got := p.Stats().Acked; got != uint64(len(all)) {
		t.Errorf("%d acknowledged", got)
	}
}

// lossy loses the acknowledgement of the first attempts of every message, which are stored nevertheless.
type lossy struct {
	jetstream.JetStream
	lose int32

	mu  sync.Mutex
	ids map[string]int // attempts by message id
}

func (l *lossy) PublishMsg(ctx context.Context, m *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := l.JetStream.PublishMsg(ctx, m, o...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids[m.Header.Get(nats.MsgIdHdr)]++
	if err == nil && l.ids[m.Header.Get(nats.MsgIdHdr)] <= int(l.lose) {
		return nil, context.DeadlineExceeded
	}
	return ack, err
}

func TestLostAcknowledgements(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	js := &lossy{JetStream: s.Connect(t).JS, lose: 2, ids: map[string]int{}}
	p, err := producers.New(js, producers.Config{MaxEvents: 10, Linger: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	all := events(7, 40, true)
	for _, e := range all {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
	if len(js.ids) != 4 {
		t.Errorf("attempts by message id: %v, want 4 ids", js.ids)
	}
	for id, n := range js.ids {
		if n != 3 {
			t.Errorf("message %s was sent %d times, want 3", id, n)
		}
	}
}

// told is a log that says when it is told something for the first time.
type told struct {
	slog.Handler
	once sync.Once
	ch   chan struct{}
}

func newTold() *told { return &told{Handler: slog.DiscardHandler, ch: make(chan struct{})} }

func (l *told) Enabled(context.Context, slog.Level) bool { return true }

func (l *told) Handle(context.Context, slog.Record) error {
	l.once.Do(func() { close(l.ch) })
	return nil
}

// A full stream pushes back: publishing waits, goes on when there is room, and nothing is lost or twice.
func TestFullStreamPushesBack(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	s := start(t, limit)
	refused := newTold()
	p := s.publisher(t, producers.Config{
		Compression: producers.NoCompression, MaxBytes: 16 << 10, MaxBuffered: schema.MaxEventBytes, Logger: slog.New(refused),
	})
	c := s.Connect(t)
	all := events(8, 2000, true) // about 600 KB: more than stream and buffer hold
	var taken atomic.Int64
	done := make(chan error, 1)
	go func() {
		for _, e := range all {
			if _, err := p.PublishAsync(t.Context(), e); err != nil {
				done <- err
				return
			}
			taken.Add(1)
		}
		done <- p.Flush(t.Context())
	}()
	await.Receive(t, patience, "the stream to be full", refused.ch)
	seen := map[string]int{}
	for finished := false; !finished; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished = true // what is in the stream is read once more
		default:
		}
		got := brokertest.Read(t, c)
		if got.Bytes > limit {
			t.Fatalf("%d bytes in a stream of %d", got.Bytes, limit)
		}
		if len(seen) == 0 && taken.Load() == int64(len(all)) {
			t.Fatal("all was taken, though there was room for half")
		}
		for k, n := range got.Times {
			seen[k] += n
		}
		st, err := c.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Purge(t.Context(), jetstream.WithPurgeSequence(got.Next)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range all {
		if n := seen[brokertest.Key(&all[i])]; n != 1 {
			t.Errorf("event %d is stored %d times", i, n)
		}
	}
}
