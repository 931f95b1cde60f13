package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNegative = errors.New("it is negative")

// A question is answered by one of several systems; what it is refused with is told; and that nobody is there, too.
func TestAsk(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t)
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	ask := func(q int) (int, error) {
		return control.Ask[int](t.Context(), nc, "exporter", "double", 5*time.Second, q)
	}
	if _, err := ask(1); !errors.Is(err, control.ErrNobody) {
		t.Errorf("got %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 2)
	asked := make(chan int, 100)
	double := control.On("double", time.Second, func(_ context.Context, q int) (int, error) {
		asked <- q
		if q < 0 {
			return 0, fmt.Errorf("%w: give a positive one", errNegative)
		}
		return 2 * q, nil
	})
	for range 2 {
		go func() {
			served <- control.Serve(ctx, nc, control.Kinds{errNegative}, slog.New(slog.DiscardHandler), double)
		}()
	}
	for answered := false; !answered; { // until one of them listens
		got, err := ask(21)
		if answered = err == nil; answered && got != 42 {
			t.Errorf("got %d", got)
		} else if err != nil && !errors.Is(err, control.ErrNobody) {
			t.Fatal(err)
		}
	}
	if n := len(asked); n != 1 {
		t.Errorf("%d were asked", n)
	}
	if _, err := ask(-1); !errors.Is(err, control.ErrRefused) || !errors.Is(err, errNegative) || err.Error() != "it is negative: give a positive one" {
		t.Errorf("got %v", err)
	}
	if _, err := control.Ask[int](t.Context(), nc, "exporter", "double", 5*time.Second, "nonsense"); !errors.Is(err, control.ErrRefused) {
		t.Errorf("got %v", err)
	}
	stop()
	for range 2 {
		if err := await.Receive(t, await.Limit, "the server of questions to end", served); err != nil {
			t.Error(err)
		}
	}
}

type question struct{ Organization, Do string }

func (q question) Share() string { return q.Organization }

// Row 16: one organization's slow requests hold up no other's, are bounded, and a request that panics ends nothing.
func TestSlowRequestsHoldUpTheirOwnOrganizationOnly(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t)
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	waiting, release := make(chan struct{}, 100), make(chan struct{})
	verb := control.On("do", time.Minute, func(ctx context.Context, q question) (string, error) {
		switch q.Do {
		case "wait":
			waiting <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
		case "panic":
			panic("on purpose")
		}
		return q.Do, nil
	})
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, nc, nil, slog.New(slog.DiscardHandler), verb) }()
	ask := func(organization, do string) (string, error) {
		return control.Ask[string](t.Context(), nc, "exporter", "do", time.Minute, question{organization, do})
	}
	for { // until it listens
		if _, err := ask("globex", "go"); err == nil {
			break
		} else if !errors.Is(err, control.ErrNobody) {
			t.Fatal(err)
		}
	}
	const share = 4
	slow := make(chan error, share)
	for range share {
		go func() { _, err := ask("acme", "wait"); slow <- err }()
	}
	for range share {
		await.Receive(t, await.Limit, "the questions to be under way", waiting)
	}
	if _, err := ask("acme", "go"); !errors.Is(err, control.ErrBusy) {
		t.Errorf("beyond the share: %v", err)
	}
	if got, err := ask("globex", "go"); err != nil || got != "go" {
		t.Errorf("another organization: %q, %v", got, err)
	}
	if _, err := ask("globex", "panic"); !errors.Is(err, control.ErrRefused) {
		t.Errorf("a panic: %v", err)
	}
	if got, err := ask("globex", "go"); err != nil || got != "go" {
		t.Errorf("after a panic: %q, %v", got, err)
	}
	close(release)
	for range share {
		if err := await.Receive(t, await.Limit, "the answer to a slow question", slow); err != nil {
			t.Error(err)
		}
	}
	stop()
	if err := await.Receive(t, await.Limit, "the server of questions to end", served); err != nil {
		t.Error(err)
	}
}
