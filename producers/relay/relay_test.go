package relay_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/relay"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type pubAck struct {
	Stream    string
	Seq       uint64
	Duplicate bool
	Error     *struct {
		Code        int
		Description string
	}
}

func publish(t *testing.T, nc *nats.Conn, m *nats.Msg) pubAck {
	t.Helper()
	answer, err := nc.RequestMsg(m, time.Minute)
	if err != nil {
		t.Fatalf("%s: %v", m.Subject, err)
	}
	var ack pubAck
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		t.Fatalf("%s: %q", m.Subject, answer.Data)
	}
	return ack
}

// A message reaches the stream with the headers that the relay knows, the credential, and a message id of the organization; the answer is the
// answer of the stream. Messages that cannot be events or exceed a limit are refused with the reason.
func TestRelay(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	over := errors.New("publish again in 5s")
	var counted atomic.Int64
	var bulk atomic.Bool
	r, err := relay.Start(c.NC, relay.Config{
		Credential: func(account, user string) string { return account + "/" + user },
		Limit: func(organization, _ string, bytes int) error {
			counted.Store(int64(bytes))
			if organization == "greedy" {
				return over
			}
			return nil
		},
		Bulk: func(organization string, _ int) bool { return organization == "large" && bulk.Load() },
	})
	if err != nil {
		t.Fatal(err)
	}
	message := func(subject string) *nats.Msg {
		return &nats.Msg{Subject: subject, Data: []byte("{}"), Header: nats.Header{
			schema.HeaderContentType: {codec.ContentJSON}, "traceparent": {"00-1-2-01"}, nats.MsgIdHdr: {"17"}, schema.HeaderRecordedBy: {"kansa"},
			"Nats-Request-Info": {`{"acc":"organization-acme","user":"key:app"}`}, // the server writes it; here the test does
			schema.HeaderMark:   {"1"}, "Nats-Rollup": {"all"}, "Nats-TTL": {"1s"}, "Nats-Expected-Stream": {"OTHER"}, "Mine": {"x"},
		}}
	}
	ack := publish(t, c.NC, message("audit.relay.acme.activity"))
	if ack.Error != nil || ack.Stream != broker.StreamAudit || ack.Duplicate {
		t.Fatalf("%+v", ack)
	}
	if again := publish(t, c.NC, message("audit.relay.acme.activity")); !again.Duplicate || again.Seq != ack.Seq {
		t.Errorf("the same message again: %+v", again)
	}
	if other := publish(t, c.NC, message("audit.relay.globex.access.59")); other.Duplicate || other.Error != nil {
		t.Errorf("another organization's: %+v", other)
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := stream.GetMsg(t.Context(), ack.Seq)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range stored.Header {
		if !slices.Contains([]string{"Nats-Sequence", "Nats-Stream", "Nats-Subject", "Nats-Time-Stamp"}, name) { // of the direct get
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if want := []string{"Content-Type", "Kansa-Recorded-By", "Nats-Msg-Id", "traceparent"}; !slices.Equal(names, want) {
		t.Errorf("stored with the headers %v, want %v", names, want)
	}
	if by, id := stored.Header.Get(schema.HeaderRecordedBy), stored.Header.Get(nats.MsgIdHdr); by != "organization-acme/key:app" || id != "acme/17" || string(stored.Data) != "{}" {
		t.Errorf("%s %s %s", by, id, stored.Data)
	}
	// A message that is sent again goes into the lane of that moment, and is still a duplicate.
	first := publish(t, c.NC, message("audit.relay.large.activity"))
	bulk.Store(true)
	if again := publish(t, c.NC, message("audit.relay.large.activity")); again.Error != nil || !again.Duplicate || again.Seq != first.Seq {
		t.Errorf("again in the bulk lane: %+v", again)
	}
	next := message("audit.relay.large.activity")
	next.Header.Set(nats.MsgIdHdr, "18")
	for _, m := range []*nats.Msg{next, message("audit.relay.patient.access.bulk.7")} { // a publisher may choose the lane itself
		ack := publish(t, c.NC, m)
		if ack.Error != nil || ack.Duplicate {
			t.Fatalf("%s: %+v", m.Subject, ack)
		}
		stored, err := stream.GetMsg(t.Context(), ack.Seq)
		if err != nil || !strings.Contains(stored.Subject, ".bulk.") {
			t.Errorf("%s is stored as %v: %v", m.Subject, stored, err)
		}
	}
	long := message("audit.relay.acme.activity")
	long.Header.Set(nats.MsgIdHdr, strings.Repeat("x", 1000))
	for says, m := range map[string]*nats.Msg{
		"no trail": message("audit.relay.acme.audit"), "subject": message("audit.relay.acme"), "reserved": message("audit.relay.Kansa.activity"),
		"shorten it": long, over.Error(): message("audit.relay.greedy.activity"),
	} {
		if ack := publish(t, c.NC, m); ack.Error == nil || !strings.Contains(ack.Error.Description, says) {
			t.Errorf("%s: %+v", m.Subject, ack.Error)
		}
	}
	headers := message("audit.relay.acme.activity")
	headers.Data, headers.Header["tracestate"] = nil, []string{strings.Repeat("x", 10_000)}
	if ack := publish(t, c.NC, headers); ack.Error != nil && ack.Error.Code != 0 || counted.Load() < 10_000 {
		t.Errorf("a message of headers alone counted as %d bytes: %+v", counted.Load(), ack)
	}
	if s := r.Stats(); s.Relayed != 8 || s.Refused != 4 || s.Limited != 1 {
		t.Errorf("%+v", s)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.NC.RequestMsg(message("audit.relay.acme.activity"), time.Minute); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("after it was closed: %v", err)
	}
}

// The stream's answer that it is full reaches a publisher behind the relay at once, as JetStream
// gives it; so does the relay's own refusal.
func TestFullStreamIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	r, err := relay.Start(c.NC, relay.Config{Credential: func(string, string) string { return "key:app" }})
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(c.NC)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	send := func(subject string) error {
		_, err := js.Publish(t.Context(), subject, []byte("{}"))
		return err
	}
	for _, limits := range []struct{ bytes, messages int64 }{{1, -1}, {-1, 1}} {
		cfg.MaxBytes, cfg.MaxMsgs = -1, -1
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if err := send("audit.relay.acme.activity"); err != nil {
			t.Fatal(err)
		}
		cfg.MaxBytes, cfg.MaxMsgs = limits.bytes, limits.messages
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if err := producers.StreamFull(send("audit.relay.acme.activity")); !errors.Is(err, producers.ErrStreamFull) {
			t.Errorf("%+v: %v", limits, err)
		}
	}
	var api *jetstream.APIError
	if err := send("audit.relay.acme.nonsense"); !errors.As(err, &api) || api.Code != 400 || !strings.Contains(api.Description, "nonsense") {
		t.Errorf("a refusal of the relay: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
