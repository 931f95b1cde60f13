package producers_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to come.
const patience = time.Minute

// system is a broker with Kansa's streams, which can be stopped and started again.
type system struct{ *brokertest.Restartable }

// start starts one; limit is the bytes of AUDIT, 0 for none.
func start(t testing.TB, limit int64) *system {
	t.Helper()
	return &system{brokertest.StartRestartable(t, &broker.Settings{
		Replicas: 1, AuditMaxBytes: limit, DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour,
	})}
}

// publisher returns one that is closed at the end of the test, if the test has not done so.
func (s *system) publisher(t testing.TB, cfg producers.Config) *producers.Publisher {
	t.Helper()
	p, err := producers.New(s.Connect(t).JS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = p.Close(ctx) // what it says is for the test that closes
	})
	return p
}

// events are made up; all of one organization and trail, if asked for.
func events(seed uint64, n int, one bool) []schema.Event {
	src := sample.New(seed, nil)
	out := make([]schema.Event, n)
	for i := range out {
		out[i] = src.Next()
		if one {
			out[i].Organization, out[i].Trail = "acme", schema.Activity
		}
	}
	return out
}
