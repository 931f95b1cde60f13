package producers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// limit changes the bounds of AUDIT.
func (s *system) limit(t *testing.T, bytes, messages int64) {
	t.Helper()
	js := s.Connect(t).JS
	st, err := js.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.MaxBytes, cfg.MaxMsgs = bytes, messages
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// Every call that waits for a full stream names it, and publishing goes on when there is room.
func TestFullStreamIsNamed(t *testing.T) {
	t.Parallel()
	for bound, limits := range map[string][2]int64{"maximum bytes": {100_000, -1}, "maximum messages": {-1, 1}} {
		t.Run(bound, func(t *testing.T) {
			t.Parallel()
			s := start(t, 0)
			all := events(91, 80, true)
			p := s.publisher(t, producers.Config{})
			if err := p.Publish(t.Context(), all[0]); err != nil {
				t.Fatal(err)
			}
			s.limit(t, limits[0], limits[1])
			named := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, producers.ErrStreamFull) || !strings.Contains(err.Error(), bound+" exceeded") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", what, err)
				}
			}
			short := s.publisher(t, producers.Config{Compression: producers.NoCompression, RetryFor: 3 * time.Second})
			big := large(all[1])
			named("after RetryFor", short.Publish(t.Context(), big))

			retried := make(chan struct{}, 1000)
			patient := s.publisher(t, producers.Config{Compression: producers.NoCompression, MaxBuffered: schema.MaxEventBytes, Retrying: func(reason error) {
				named("Retrying", reason)
				retried <- struct{}{}
			}})
			ack, err := patient.PublishAsync(t.Context(), big)
			if err != nil {
				t.Fatal(err)
			}
			await.Receive(t, patience, "the first answer of the full stream", retried)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			for what, err := range map[string]error{"Flush": patient.Flush(ended), "Wait": ack.Wait(ended)} {
				named(what, err)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", what, err)
				}
			}
			_, err = patient.PublishAsync(ended, large(all[3]))
			named("a full buffer", err)

			at := s.publisher(t, producers.Config{Compression: producers.NoCompression, FailWhenFull: true, Retrying: func(error) { t.Error("tried again though FailWhenFull is set") }})
			named("FailWhenFull", at.Publish(t.Context(), big))

			s.limit(t, -1, -1)
			if err := patient.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.WantOnce(t, []schema.Event{all[0], big})
		})
	}
}

// large makes an event that exceeds what is left of the test's stream.
func large(e schema.Event) schema.Event {
	e.Description = strings.Repeat("x", 200_000)
	return e
}

// With a spool, events of a full stream are spooled; Close names the reason that they stay.
func TestFullStreamIsNamedBySpool(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	s.limit(t, -1, 1)
	all := events(92, 3, true)
	cfg := producers.Config{Spool: t.TempDir()}
	p := s.publisher(t, cfg)
	for _, e := range all {
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if st := p.Stats(); st.Spooled != 2 {
		t.Errorf("counted %+v, want two events spooled", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); !errors.Is(err, producers.ErrSpooled) || !errors.Is(err, producers.ErrStreamFull) {
		t.Errorf("Close: %v", err)
	}
	s.limit(t, -1, -1)
	if err := s.publisher(t, cfg).Close(t.Context()); err != nil {
		t.Error(err)
	}
	s.WantOnce(t, all)
}

func TestOtherAnswersAreNotAFullStream(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		nil, context.DeadlineExceeded, &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "message too large"},
		&jetstream.APIError{Code: 429, ErrorCode: 60000, Description: "publish again in 5s"},
	} {
		if got := producers.StreamFull(err); errors.Is(got, producers.ErrStreamFull) {
			t.Errorf("%v counts as a full stream", err)
		}
	}
}
