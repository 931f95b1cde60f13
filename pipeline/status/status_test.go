package status_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/status"
)

// connect returns connections to a broker, which end with the test.
func connect(t *testing.T) func() *nats.Conn {
	t.Helper()
	server := brokertest.Start(t)
	return func() *nats.Conn {
		nc, err := nats.Connect(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
}

// Every process answers, not one instead of the others; one that hangs is seen all the same.
func TestAsk(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	asking := conn()
	if seen, err := status.Ask(t.Context(), asking, status.Question{}, 30*time.Second); err != nil || len(seen) != 0 {
		t.Errorf("with nobody: %v, %v", seen, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	defer await.Return(t, await.Limit, "the processes to stop answering", serving.Wait)
	defer stop()
	serve := func(roles []string, look func(context.Context, status.Question) *status.Status) {
		nc, me := conn(), status.This("1.2", roles)
		serving.Go(func() {
			if err := status.Serve(ctx, nc, me, look); err != nil {
				t.Error(err)
			}
		})
	}
	well := func(_ context.Context, q status.Question) *status.Status {
		return &status.Status{Health: health.Report{Ready: q.Checks}, Figures: map[string]float64{"f": 1}}
	}
	serve([]string{"writer"}, well)
	serve([]string{"rollup", "api"}, well)
	for { // until both listen
		seen, err := status.Ask(t.Context(), asking, status.Question{Checks: true}, 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) < 2 {
			continue
		}
		if len(seen) != 2 || seen[0].Roles[0] != "rollup" || seen[1].Roles[0] != "writer" || seen[0].Version != "1.2" || seen[0].ID == seen[1].ID {
			t.Errorf("%+v", seen)
		}
		for _, s := range seen {
			if s.Status == nil || !s.Status.Health.Ready || s.Status.Figures["f"] != 1 || s.PID == 0 || s.Since.IsZero() || s.Ahead.Abs() > s.Give+time.Second {
				t.Errorf("%+v", s)
			}
		}
		break
	}
	serve([]string{"exporter"}, func(ctx context.Context, _ status.Question) *status.Status {
		<-ctx.Done()
		return nil
	})
	for {
		seen, err := status.Ask(t.Context(), asking, status.Question{}, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) == 3 {
			if seen[0].Roles[0] != "exporter" || seen[0].Status != nil {
				t.Errorf("one that hangs: %+v", seen[0])
			}
			break
		}
	}
}
