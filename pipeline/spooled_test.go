package pipeline_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
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
			msg.Header.Set(schema.HeaderFirstAttempt, schema.FormatAttempt(first))
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
	untilSealed(t, s) // the accounts of the hours agree
}

// An application is killed twice, first while the broker hears it and is not heard, then while there is none, and
// the broker forgets message ids at once: every event that it was told is safe is stored, each once.
func TestKillTheApplication(t *testing.T) {
	t.Parallel()
	server := brokertest.StartRestartable(t, nil)
	c := pipelinetest.Config(t)
	c.NATS.URL, c.NATS.AssumeSyncAlways = server.URL(), true
	c.Streams.DuplicateWindow, c.Rollup.Grace = 100*time.Millisecond, 20*time.Millisecond
	c.Rollup.Hour = 5 * time.Second // the rollup waits for the kept messages, and has fewer hours to make up for
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: c, Roles: []pipeline.Role{pipeline.RoleWriter, pipeline.RoleRollup}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})

	spool := t.TempDir()
	way := newOneWay(t, strings.TrimPrefix(server.URL(), "nats://"))
	first := startApp(t, way.url, spool, 31, 1<<30)
	accepted := first.accepted(100)
	way.mute.Store(true)
	accepted = append(accepted, first.accepted(300)...)
	accepted = append(accepted, first.kill(t)...)

	server.Stop()
	second := startApp(t, server.URL(), spool, 32, 1<<30)
	accepted = append(accepted, second.accepted(100)...)
	accepted = append(accepted, second.kill(t)...)

	server.Start(t)
	third := startApp(t, server.URL(), spool, 33, 100)
	accepted = append(accepted, third.accepted(100)...)
	if err := third.cmd.Wait(); err != nil { // when its spool is empty
		t.Fatal(err)
	}
	consumer, err := s.Client.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		info, err := consumer.Info(t.Context())
		return err == nil && info.NumPending == 0 && info.NumAckPending == 0, []any{info, err}
	})
	rows, distinct, err := pipelinetest.Stored(t, s.Store)
	if err != nil || rows != distinct {
		t.Errorf("%d rows are %d different events, %v", rows, distinct, err)
	}
	stored := ids(t, s)
	for _, id := range accepted {
		if !stored[id] {
			t.Errorf("%s was accepted and is not stored", id)
		}
	}
	t.Logf("%d accepted, %d stored, %d left out", len(accepted), rows, s.Writer.Stats().Skipped)
	if s.Writer.Stats().Skipped == 0 {
		t.Error("nothing was published twice: the test shows nothing")
	}
	untilSealed(t, s)
}

// ids are those of the events in the table.
func ids(t *testing.T, s *pipeline.System) map[string]bool {
	t.Helper()
	rows, err := s.Store.Conn().Query(t.Context(), "SELECT toString(id) FROM audit_events")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		all[id] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// untilSealed waits until all that is stored now is sealed, without an alarm.
func untilSealed(t *testing.T, s *pipeline.System) {
	t.Helper()
	now := time.Now()
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	progress := rollup.Progress{JS: s.Client.JS, KV: kv}
	pipelinetest.Until(t, 3*time.Minute, func() (bool, any) {
		next, err := progress.Next(t.Context())
		return next.After(now), []any{next, err}
	})
	if n := s.Rollup.Stats().Alarms; n != 0 {
		t.Errorf("%d alarms", n)
	}
}
