package producers_test

import (
	"context"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/producers"
)

// Issue: an application whose broker is away goes on, ends, starts again, and loses and doubles nothing.
func TestSpoolOutlivesTheApplication(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	dir := t.TempDir()
	cfg := producers.Config{Spool: dir, AckTimeout: 200 * time.Millisecond, MaxEvents: 20}
	all := events(77, 300, true)
	first, err := producers.New(s.connect(t).JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all[:100] {
		if _, err := first.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	for _, e := range all[100:200] {
		if _, err := first.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Flush(t.Context()); err != nil {
		t.Fatalf("with the broker away: %v", err)
	}
	if st := first.Stats(); st.Acked != 200 || st.Spooled != 100 {
		t.Errorf("counted %+v", st)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := first.Close(ctx); err == nil {
		t.Error("Close does not tell that messages stay in the spool")
	}

	second, err := producers.New(s.connect(t).JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all[200:] {
		if _, err := second.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := second.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	if err := second.Close(t.Context()); err != nil { // waits until the spool is empty
		t.Fatal(err)
	}
	got := s.stored(t)
	if len(got.times) != len(all) {
		t.Errorf("%d of %d events are stored", len(got.times), len(all))
	}
	for id, n := range got.times {
		if n != 1 {
			t.Errorf("%s is stored %d times", id, n)
		}
	}
}

// A full spool is back-pressure again, and the rest waits for the broker as without one.
func TestFullSpoolBlocks(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Spool: t.TempDir(), SpoolBytes: 4000, AckTimeout: 100 * time.Millisecond, MaxEvents: 10, RetryFor: time.Minute})
	s.stop()
	all := events(78, 200, true)
	for _, e := range all {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "something in the spool", func() bool { return p.Stats().Spooled > 0 })
	if st := p.Stats(); st.Spooled == uint64(len(all)) {
		t.Errorf("the spool took all: %+v", st)
	}
	s.start(t)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.stored(t); len(got.times) != len(all) {
		t.Errorf("%d of %d events are stored", len(got.times), len(all))
	}
}
