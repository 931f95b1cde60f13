package pipeline_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// The stream is shared out anew while events are published and stored: the writer ends and is started again, and
// nothing is lost or stored twice. Hours are sealed over all shards.
func TestShardsAreChangedUnderLoad(t *testing.T) {
	t.Parallel()
	server := brokertest.Start(t)
	c := pipelinetest.Config(t)
	c.NATS.URL, c.NATS.AssumeSyncAlways = server.URL(), true
	c.Writer.AckWait, c.Writer.InsertTimeout = 5*time.Second, time.Second
	operator := brokertest.Connect(t, server.URL())
	begin := func() *pipeline.System {
		t.Helper()
		s, err := pipeline.Start(t.Context(), pipeline.Options{Config: c, Roles: pipeline.Roles, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := begin()
	defer func() { _ = s.Close() }()
	source, n := sample.New(44, nil), uint64(0)
	for _, shards := range []int{4, 2, 1} {
		publishing, stop := context.WithCancel(t.Context())
		published := make(chan uint64, 1)
		go func() {
			p, err := producers.New(operator.JS, producers.Config{MaxEvents: 50, Spread: true})
			if err != nil {
				t.Error(err)
			}
			sent := uint64(0)
			for publishing.Err() == nil {
				for range 200 {
					if _, err := p.PublishAsync(t.Context(), source.Next()); err != nil {
						t.Error(err)
					}
					sent++
				}
				select {
				case <-publishing.Done():
				case <-time.After(20 * time.Millisecond): // the pace
				}
			}
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
			published <- sent
		}()
		changed := make(chan error, 1)
		go func() { changed <- operator.SetShards(t.Context(), shards) }()
		select {
		case <-s.Failed():
		case <-time.After(2 * time.Minute):
			t.Fatalf("%d shards: the writer goes on", shards)
		}
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "the writer ends, to be started again: ") {
			t.Errorf("%d shards: it ended with %v", shards, err)
		}
		s = begin()
		if err := await.Receive(t, await.Limit, "the change of the number of shards to return", changed); err != nil {
			t.Errorf("%d shards: %v", shards, err)
		}
		stop()
		n += await.Receive(t, await.Limit, "the publisher to end", published)
		pipelinetest.UntilStored(t, s.Store, n, 2*time.Minute)
		stream, all, err := operator.Writers(t.Context())
		if want := shards * int(floor.Lanes); err != nil || len(all) != want || stream.State.Consumers != want {
			t.Errorf("%d shards: there are %d, and %d consumers, %v", shards, len(all), stream.State.Consumers, err)
		}
		for _, w := range all {
			if w.Lane == floor.Prompt && w.Delivered.Consumer == 0 {
				t.Errorf("%d shards: %s was given nothing", shards, w.Name)
			}
		}
	}
	untilSealed(t, s)
	if err := operator.SetShards(t.Context(), broker.MaxShards+1); err == nil {
		t.Error("more shards than there are slots")
	}
}
