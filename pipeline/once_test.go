package pipeline_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// An event whose producer gave it its id is stored once, by whatever ways, in whatever messages and at whatever times it is
// published again, the writer's restart included. Another event under its id is dead-lettered.
func TestEventsWithIDsAreStoredOnce(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := begin(t, c)
	source := sample.New(1, nil)
	events := make([]schema.Event, 60)
	for i := range events {
		events[i] = source.Next()
		events[i].Organization, events[i].Trail = "acme", schema.Activity
	}
	// All at once, in messages of several sizes, beginning at several events.
	var ways sync.WaitGroup
	for _, perMessage := range []int{1, 3, 7, 50} {
		ways.Go(func() {
			p, err := producers.New(s.Client.JS, producers.Config{MaxEvents: perMessage})
			if err != nil {
				t.Error(err)
				return
			}
			for i := range events {
				if _, err := p.PublishAsync(t.Context(), events[(i+perMessage)%len(events)]); err != nil {
					t.Error(err)
				}
			}
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	await.Return(t, await.Limit, "all publishers to end", ways.Wait)
	rows := func() (rows, ids uint64) {
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count(), uniqExact(id) FROM audit_events WHERE organization = 'acme' AND source != 'kansa'").Scan(&rows, &ids)
		if err != nil {
			t.Fatal(err)
		}
		return rows, ids
	}
	settled := func(seen uint64) {
		t.Helper()
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			st := s.Writer.Stats()
			return st.Stored+st.Duplicates+st.Rejected+st.Skipped >= seen, st
		})
	}
	settled(240)
	if n, ids := rows(); n != 60 || ids != 60 {
		t.Fatalf("%d rows of %d events, of 60", n, ids)
	}
	if st := s.Writer.Stats(); st.Duplicates != 180 || st.Rejected != 0 {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Another process, and other ways.
	s = pipelinetest.Start(t, c)
	var body []byte
	for i := range events {
		line, err := codec.AppendJSON(nil, &events[i])
		if err != nil {
			t.Fatal(err)
		}
		body = append(append(body, line...), '\n')
		if i%20 == 0 {
			msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
			msg.Data = line
			msg.Header.Set(schema.HeaderContentType, codec.ContentJSON)
			if _, err := s.Client.JS.PublishMsg(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
		}
	}
	publisher := newClient(t, s, "app", "acme", access.Publisher)
	if a, text := publisher.do(t, http.MethodPost, gateway.Path, string(body), "Content-Type", codec.ContentNDJSON); a.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", a.StatusCode, text)
	}
	settled(63)
	if n, ids := rows(); n != 60 || ids != 60 {
		t.Fatalf("%d rows of %d events, of 60", n, ids)
	}

	// Another event under an id that is known, and two in one message.
	other, twice := events[3], source.Next()
	other.Description = "something else happened"
	twice.Organization, twice.Trail = "acme", schema.Activity
	again := twice
	again.Description = "and something else"
	fresh := twice
	fresh.ID = uuid.New()
	publishAll(t, s, other, twice, again, fresh)
	settled(67)
	if n, ids := rows(); n != 62 || ids != 62 {
		t.Errorf("%d rows of %d events, of 62", n, ids)
	}
	stream, err := s.Client.JS.Stream(t.Context(), broker.StreamDeadLetter)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
	letter, err := stream.GetLastMsgForSubject(t.Context(), "audit.deadletter.acme")
	if err != nil {
		t.Fatal(err)
	}
	var e schema.Event
	if reason := letter.Header.Get(schema.HeaderReason); !strings.Contains(reason, "is that of another event") {
		t.Errorf("the reason is %q", reason)
	}
	if err := json.Unmarshal(letter.Data, &e); err != nil || !strings.Contains(e.Description, "something else") {
		t.Errorf("the letter is %s: %v", letter.Data, err)
	}
	// Everything is sealed all the same: the ledger has what was left out.
	sealedUpToNow(t, s)
	progress, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	if blocked, err := (rollup.Progress{JS: s.Client.JS, KV: progress}).Blocked(t.Context(), c.Rollup.Hour); err != nil || len(blocked) > 0 {
		t.Errorf("blocked: %v %v", blocked, err)
	}
}
