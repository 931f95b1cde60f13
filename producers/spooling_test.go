package producers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/spool"
	"github.com/kansa-audit/kansa/schema"
)

// publishAll publishes without waiting for each.
func publishAll(t *testing.T, p *producers.Publisher, all []schema.Event) {
	t.Helper()
	for _, e := range all {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// An application whose broker is away goes on, ends, starts again, and loses and doubles nothing.
func TestSpoolOutlivesThePublisher(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	cfg := producers.Config{Spool: t.TempDir(), AckTimeout: 2 * time.Second, MaxEvents: 20}
	all := events(77, 300, true)
	first, err := producers.New(s.Connect(t).JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	publishAll(t, first, all[:100])
	if err := first.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := s.Connect(t)
	s.Stop()
	publishAll(t, first, all[100:200])
	if err := first.Flush(t.Context()); err != nil {
		t.Fatalf("with the broker away: %v", err)
	}
	if st := first.Stats(); st.Acked != 200 || st.Spooled != 100 {
		t.Errorf("counted %+v", st)
	}
	if _, err := producers.New(later.JS, cfg); !errors.Is(err, spool.ErrInUse) {
		t.Errorf("another publisher on the same spool: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := first.Close(ctx); !errors.Is(err, producers.ErrSpooled) {
		t.Errorf("Close does not tell that messages stay in the spool: %v", err)
	}

	second, err := producers.New(later.JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	publishAll(t, second, all[200:])
	if err := second.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	if err := errors.Join(second.Close(t.Context()), second.Close(t.Context())); err != nil { // waits until the spool is empty
		t.Fatal(err)
	}
	s.WantOnce(t, all)
}

// What comes while messages wait goes behind them.
func TestSpooledMessagesStayInOrder(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Spool: t.TempDir(), AckTimeout: 200 * time.Millisecond})
	s.Stop()
	all := events(79, 30, true)
	publish := func(some []schema.Event) {
		t.Helper()
		for _, e := range some {
			if err := p.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(all[:20])
	s.Start(t)
	publish(all[20:]) // while the others are published
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
	for i, k := range s.Stored(t).Order {
		if want := brokertest.Key(&all[i]); k != want {
			t.Fatalf("number %d is %s, want %s", i, k, want)
		}
	}
}

// A full spool is back-pressure again, and the rest waits for the broker as without one.
func TestFullSpoolBlocks(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Spool: t.TempDir(), SpoolBytes: 20_000, AckTimeout: 100 * time.Millisecond, MaxEvents: 10})
	s.Stop()
	all := events(78, 200, true)
	publishAll(t, p, all)
	await.True(t, patience, "something in the spool", func() bool { return p.Stats().Spooled > 0 })
	s.Start(t)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := p.Stats(); st.Acked != 200 || st.Spooled == 200 {
		t.Errorf("counted %+v", st)
	}
	s.WantOnce(t, all)
}

// With nowhere to go in its time, an event is given up with both reasons.
func TestFullSpoolIsTold(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Spool: t.TempDir(), SpoolBytes: 1, AckTimeout: 10 * time.Millisecond, RetryFor: 100 * time.Millisecond})
	s.Stop()
	err := p.Publish(t.Context(), events(80, 1, true)[0])
	if !errors.Is(err, spool.ErrFull) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// A Close whose time is over puts what is on its way into the spool.
func TestCloseIntoTheSpool(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	g := newGate(s.Connect(t).JS)
	cfg := producers.Config{Spool: t.TempDir(), MaxEvents: 5, MaxInFlight: 2}
	p, err := producers.New(g, cfg)
	if err != nil {
		t.Fatal(err)
	}
	all := events(81, 50, true)
	publishAll(t, p, all)
	await.Receive(t, patience, "a message to be on its way", g.arrived)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); !errors.Is(err, producers.ErrSpooled) {
		t.Errorf("Close: %v", err)
	}
	if st := p.Stats(); st.Spooled != 50 {
		t.Errorf("counted %+v", st)
	}
	again := s.publisher(t, cfg)
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, all)
}

// A damaged message is lost, told of, and set aside; those beside it are published.
func TestDamagedMessageHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	cfg := producers.Config{Spool: t.TempDir(), AckTimeout: 200 * time.Millisecond}
	p := s.publisher(t, cfg)
	later := s.Connect(t)
	s.Stop()
	all := events(82, 3, true)
	for _, e := range all {
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); !errors.Is(err, producers.ErrSpooled) {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.Spool, "*.msg"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%v: %d files", err, len(files))
	}
	if err := os.Truncate(files[1], 300); err != nil {
		t.Fatal(err)
	}
	again, err := producers.New(later.JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.WantOnce(t, []schema.Event{all[0], all[2]})
}
