package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What a handler returns decides what becomes of its task, on a real stream.
func TestWorkOutcomes(t *testing.T) {
	t.Parallel()
	c := brokertest.Connect(t, brokertest.Start(t).URL())
	stream, err := c.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "T", Subjects: []string{"t.>"}, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		t.Fatal(err)
	}
	queue, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "w", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	tasks := []string{"done", "later", "corrected", "again", "never", "panics"}
	for _, task := range tasks {
		if _, err := c.JS.Publish(t.Context(), "t."+task, nil); err != nil {
			t.Fatal(err)
		}
	}
	tries := map[string]uint64{}
	settled := make(chan string, 100)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	w := consumers.Work{
		Queue: queue, AckWait: time.Minute, Logger: slog.New(slog.DiscardHandler),
		Backoff: func(tried uint64) time.Duration { return time.Duration(tried) * 10 * time.Millisecond },
		Handle: func(_ context.Context, msg jetstream.Msg) error {
			task := msg.Subject()[2:]
			tries[task]++
			switch {
			case task == "later" && tries[task] < 3:
				return consumers.Later(errors.New("too early"), 10*time.Millisecond)
			case task == "corrected" && tries[task] < 3: // what is permanent does not end what is to come again
				return consumers.Later(consumers.Permanent(errors.New("wrong password")), 10*time.Millisecond)
			case task == "again" && tries[task] < 4:
				return errors.New("it did not work")
			}
			settled <- task
			switch task {
			case "never":
				return consumers.Permanent(errors.New("it can't work"))
			case "panics":
				panic("a bug")
			}
			return nil
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for range tasks {
		select {
		case <-settled:
		case <-time.After(time.Minute):
			t.Fatalf("tasks stay unsettled: %v", tries)
		}
	}
	for left := uint64(1); left > 0; {
		info, err := stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		left = info.State.Msgs
	}
	stop()
	if err := await.Receive(t, await.Limit, "the work to end", ended); err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(tries), "map[again:4 corrected:3 done:1 later:3 never:1 panics:1]"; got != want {
		t.Errorf("tried %s, want %s", got, want)
	}
}

func TestBackoffDoublesUpToItsLimit(t *testing.T) {
	t.Parallel()
	for tried, want := range map[uint64]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 1 << 40: 5 * time.Minute} {
		if got := consumers.Backoff(tried); got != want {
			t.Errorf("after %d: %s, want %s", tried, got, want)
		}
	}
}
