package broker_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var settings = broker.Settings{
	Replicas: 1, AuditMaxAge: time.Hour, DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Second,
}

// start returns a client of an embedded server that is not set up yet.
func start(t *testing.T) *broker.Client {
	t.Helper()
	c := brokertest.Connect(t, brokertest.Start(t).URL())
	return c
}

func TestSetupIsRepeatableAndChangesWhatMayChange(t *testing.T) {
	t.Parallel()
	c := start(t)
	for i, age := range []time.Duration{time.Hour, time.Hour, 2 * time.Hour} {
		s := settings
		s.AuditMaxAge = age
		if err := c.Setup(t.Context(), s); err != nil {
			t.Fatalf("setup %d: %v", i, err)
		}
		st, err := c.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			t.Fatal(err)
		}
		cfg := st.CachedInfo().Config
		if cfg.MaxAge != age || cfg.Discard != jetstream.DiscardNew || cfg.Storage != jetstream.FileStorage {
			t.Errorf("setup %d: AUDIT has age %s, discard %s, storage %s", i, cfg.MaxAge, cfg.Discard, cfg.Storage)
		}
	}
	if _, err := c.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter); err != nil {
		t.Error(err)
	}
}

// Design, section 5: the hourly tick is a schedule of the broker's.
func TestTicksComeFromTheBroker(t *testing.T) {
	t.Parallel()
	c := start(t)
	if err := c.Setup(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	consumer, err := c.JS.Consumer(t.Context(), broker.StreamHours, broker.ConsumerRollup)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		msg, err := consumer.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("no tick: %v", err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A message that is published again is the same message (design, section 4).
func TestMessageIDIsKnownWithinTheWindow(t *testing.T) {
	t.Parallel()
	c := start(t)
	if err := c.Setup(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		ack, err := c.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte("x"), jetstream.WithMsgID("m1"))
		if err != nil {
			t.Fatal(err)
		}
		if ack.Duplicate != (i == 1) || ack.Sequence != 1 {
			t.Errorf("publish %d: sequence %d, duplicate %t", i, ack.Sequence, ack.Duplicate)
		}
	}
}

func TestUnsafeServersAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	monitor := func(body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	c := start(t)
	for name, tc := range map[string]struct {
		o      broker.Options
		reason string
	}{
		"not known":  {broker.Options{}, "nats.assume_sync_always: true"},
		"lazy":       {broker.Options{MonitorURL: monitor(`{"config":{"sync_interval":120000000000}}`)}, "sync_interval: always"},
		"no monitor": {broker.Options{MonitorURL: monitor("not JSON")}, "monitoring address"},
		"good":       {broker.Options{MonitorURL: monitor(`{"config":{"sync_always":true}}`)}, ""},
		"our word":   {broker.Options{AssumeSyncAlways: true}, ""},
	} {
		err := c.CheckServer(t.Context(), tc.o)
		switch {
		case tc.reason == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.reason != "" && (!errors.Is(err, broker.ErrUnsafe) || !strings.Contains(err.Error(), tc.reason)):
			t.Errorf("%s: got %v, want %q", name, err, tc.reason)
		}
	}
}

// A real server with its usual settings, asked over its real monitoring port.
func TestServerWithUsualSettingsIsRefused(t *testing.T) {
	t.Parallel()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, HTTPHost: "127.0.0.1", HTTPPort: server.RANDOM_PORT,
		JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	o := broker.Options{URL: ns.ClientURL(), MonitorURL: "http://" + ns.MonitorAddr().String()}
	c, err := broker.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	err = c.CheckServer(t.Context(), o)
	if !errors.Is(err, broker.ErrUnsafe) {
		t.Fatalf("got %v, want a refusal", err)
	}
	for _, reason := range []string{"max_payload", "sync_interval: always"} {
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("%v: does not speak of %s", err, reason)
		}
	}
}

func TestStreamsThatLieAreRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"persist_mode": func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"memory":       func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"no_ack":       func(c *jetstream.StreamConfig) { c.NoAck = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t)
			cfg := jetstream.StreamConfig{Name: broker.StreamAudit, Subjects: []string{"audit.events.*.*"}, Storage: jetstream.FileStorage}
			change(&cfg)
			if _, err := c.JS.CreateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			err := c.Setup(t.Context(), settings)
			if !errors.Is(err, broker.ErrUnsafe) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want a refusal that names %s", err, name)
			}
		})
	}
}

func TestConnectSaysWhereNobodyAnswers(t *testing.T) {
	t.Parallel()
	_, err := broker.Connect(t.Context(), broker.Options{URL: "nats://someone:secret@127.0.0.1:1"})
	if !errors.Is(err, nats.ErrNoServers) || !strings.Contains(err.Error(), "127.0.0.1:1") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}
