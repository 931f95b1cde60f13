package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/control"
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
		go func() { served <- control.Serve(ctx, nc, control.Kinds{errNegative}, double) }()
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
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
