package pipeline_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// A message that a producer kept may have reached the broker long before, under an id that the broker has
// forgotten: its events are told by their own ids, and stored once.
func TestSpooledMessageThatWasThereAlready(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	source := sample.New(9, nil)
	events := make([]schema.Event, 30)
	for i := range events {
		events[i] = source.Next()
		events[i].Organization, events[i].Trail = "acme", schema.Activity
	}
	publish := func(id string, events []schema.Event, first time.Time) {
		t.Helper()
		block := codec.NewBlock()
		for i := range events {
			block.Append(&events[i])
		}
		msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
		msg.Data = block.AppendNative(nil)
		msg.Header.Set(nats.MsgIdHdr, id)
		msg.Header.Set(schema.HeaderContentType, codec.ContentBlock)
		if !first.IsZero() {
			msg.Header.Set(schema.HeaderFirstAttempt, strconv.FormatInt(first.UnixMicro(), 10))
		}
		if _, err := s.Client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	first := time.Now()
	publish("one", events[:20], time.Time{})
	pipelinetest.UntilStored(t, s.Store, 20, time.Minute)
	publish("another", events[:20], first) // all of it was there
	publish("a third", events[10:], first) // half of it
	pipelinetest.UntilStored(t, s.Store, 30, time.Minute)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		st := s.Writer.Stats()
		return st.Skipped == 30 && st.Stored == 30, st
	})
	// And the accounts of the hours agree.
	stored := time.Now()
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	progress := rollup.Progress{KV: kv}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		next, err := progress.Next(t.Context())
		return next.After(stored), []any{next, err}
	})
	if n := s.Rollup.Stats().Alarms; n != 0 {
		t.Errorf("%d alarms", n)
	}
}
