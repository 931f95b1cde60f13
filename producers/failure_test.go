package producers_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// gate is a broker that holds every message until it is opened, and then answers with err or stores it.
type gate struct {
	jetstream.JetStream
	open    chan struct{}
	arrived chan struct{} // one for each message, as far as there is room
	err     error
}

func newGate(js jetstream.JetStream) *gate {
	return &gate{JetStream: js, open: make(chan struct{}), arrived: make(chan struct{}, 1024)}
}

func (g *gate) PublishMsg(ctx context.Context, m *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	select {
	case g.arrived <- struct{}{}:
	default:
	}
	select {
	case <-g.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if g.err != nil {
		return nil, g.err
	}
	return g.JetStream.PublishMsg(ctx, m, o...)
}

// gated returns a publisher whose messages wait at a gate.
func gated(t *testing.T, cfg producers.Config) (*system, *gate, *producers.Publisher) {
	t.Helper()
	s := start(t, 0)
	g := newGate(s.Connect(t).JS)
	p, err := producers.New(g, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // what is still at the gate is given up
		_ = p.Close(ctx)
	})
	return s, g, p
}

func TestFullBufferBlocksAndResumes(t *testing.T) {
	t.Parallel()
	s, g, p := gated(t, producers.Config{MaxBuffered: schema.MaxEventBytes, MaxBytes: 64 << 10})
	all := events(10, 1200, true) // about 400 KB
	ctx, cancel := context.WithCancel(t.Context())
	taken := 0
	full := make(chan error, 1)
	go func() {
		for _, e := range all {
			if _, err := p.PublishAsync(ctx, e); err != nil {
				full <- err
				return
			}
			taken++
		}
		full <- nil
	}()
	for range 4 { // the messages that fit are at the gate; the caller waits, or is about to
		await.Receive(t, patience, "messages to arrive", g.arrived)
	}
	cancel()
	if err := await.Receive(t, await.Limit, "the caller that waits for room to return", full); !errors.Is(err, context.Canceled) {
		t.Fatalf("a full buffer took all: %v", err)
	}
	if taken >= len(all) || taken < 100 {
		t.Fatalf("%d of %d events were taken", taken, len(all))
	}
	close(g.open)
	for _, e := range all[taken:] {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
}

func TestFlushTellsOfFailuresOnce(t *testing.T) {
	t.Parallel()
	s, g, p := gated(t, producers.Config{Linger: time.Hour})
	g.err = nats.ErrPermissionViolation
	close(g.open)
	e := events(11, 1, true)[0]
	ack, err := p.PublishAsync(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(t.Context()); !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("flush: %v", err)
	}
	await.Receive(t, patience, "the outcome", ack.Done())
	if err := ack.Wait(t.Context()); !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("the event's own outcome: %v", err)
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Errorf("the second flush: %v", err)
	}
	g.err = nil
	if _, err := p.PublishAsync(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	s.WantOnce(t, []schema.Event{e})
	if got := p.Stats().Acked; got != 1 {
		t.Errorf("%d acknowledged, want 1", got)
	}
}

func TestGivesUpAfterItsTime(t *testing.T) {
	t.Parallel()
	_, g, p := gated(t, producers.Config{RetryFor: 50 * time.Millisecond, AckTimeout: 10 * time.Millisecond})
	if err := p.Publish(t.Context(), events(12, 1, true)[0]); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if len(g.arrived) < 2 {
		t.Errorf("%d attempts", len(g.arrived))
	}
}

// A caller who goes away learns nothing; the event may be stored all the same.
func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	s, g, p := gated(t, producers.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	all := events(13, 1, true)
	done := make(chan error, 1)
	go func() { done <- p.Publish(ctx, all[0]) }()
	await.Receive(t, patience, "the message to be on its way", g.arrived)
	cancel()
	if err := await.Receive(t, await.Limit, "the canceled publish to return", done); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Flush(short); !errors.Is(err, context.Canceled) {
		t.Errorf("flush: %v", err)
	}
	close(g.open)
	if err := p.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	s.WantOnce(t, all)
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Linger: time.Hour})
	all := events(14, 20, false)
	for _, e := range all[:19] {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all[:19])
	if err := p.Publish(t.Context(), all[19]); !errors.Is(err, producers.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := p.PublishAsync(t.Context(), all[19]); !errors.Is(err, producers.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

// A Close whose time is over gives up what is on its way, tells its publishers, and leaves nothing running.
func TestCloseWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	_, g, p := gated(t, producers.Config{MaxInFlight: 1, MaxEvents: 1})
	all := events(15, 3, true)
	errs := make(chan error, len(all))
	var callers sync.WaitGroup
	for _, e := range all {
		callers.Go(func() { errs <- p.Publish(t.Context(), e) })
	}
	await.Receive(t, patience, "the first message to be on its way", g.arrived)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	await.Return(t, await.Limit, "all callers to return", callers.Wait)
	close(errs)
	for err := range errs {
		if err == nil {
			t.Error("an event that is on no disk was acknowledged")
		}
	}
}

// Callers and Close at once: every event is either stored or refused, and none is both.
func TestCloseWhilePublishing(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{MaxEvents: 7, Linger: time.Microsecond})
	all := events(16, 400, true)
	ok := make([]bool, len(all))
	half := make(chan struct{})
	var callers sync.WaitGroup
	for first := 0; first < len(all); first += 40 {
		callers.Go(func() {
			for i := first; i < first+40; i++ {
				if i == 20 {
					close(half)
				}
				switch err := p.Publish(t.Context(), all[i]); {
				case err == nil:
					ok[i] = true
				case !errors.Is(err, producers.ErrClosed):
					t.Error(err)
				}
			}
		})
	}
	await.Receive(t, patience, "publishing to be under way", half)
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	await.Return(t, await.Limit, "all callers to return", callers.Wait)
	var want []schema.Event
	for i := range all {
		if ok[i] {
			want = append(want, all[i])
		}
	}
	s.WantOnce(t, want)
}

func TestSettingsAreChecked(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]producers.Config{
		"MaxEvents":   {MaxEvents: schema.MaxMessageEvents + 1},
		"MaxBytes":    {MaxBytes: schema.MaxMessageBytes},
		"MaxInFlight": {MaxInFlight: -1},
		"MaxBuffered": {MaxBuffered: schema.MaxEventBytes - 1},
	} {
		if p, err := producers.New(nil, cfg); err == nil || p != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := producers.New(nil, producers.Config{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Error(err)
	}
}
