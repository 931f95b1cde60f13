package producers_test

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to come.
const patience = time.Minute

// system is a broker with Kansa's streams, which can be stopped and started again on its port.
type system struct {
	dir    string
	port   int
	limit  int64 // bytes of AUDIT; 0 for none
	server *broker.Server
}

func start(t testing.TB, limit int64) *system {
	t.Helper()
	s := &system{dir: t.TempDir(), port: freePort(t), limit: limit}
	t.Cleanup(s.stop)
	s.start(t)
	return s
}

// freePort is needed, rather than a port of the server's choice, to start it again in the same place.
func freePort(t testing.TB) int {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *system) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := broker.StartServer(ctx, broker.ServerOptions{Dir: s.dir, Port: s.port})
	if err != nil {
		t.Fatal(err)
	}
	s.server = server
	c := s.connect(t)
	err = c.Setup(ctx, broker.Settings{
		Replicas: 1, AuditMaxBytes: s.limit, DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *system) stop() {
	if s.server != nil {
		s.server.Close()
		s.server = nil
	}
}

// connect returns a connection that outlives the server's restarts.
func (s *system) connect(t testing.TB) *broker.Client {
	t.Helper()
	c, err := broker.Connect(context.Background(), broker.Options{URL: "nats://127.0.0.1:" + strconv.Itoa(s.port), Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.NC.Close() }) // and not Close, which waits for a server that may be gone
	return c
}

// publisher returns one that is closed at the end of the test, if the test has not done so.
func (s *system) publisher(t testing.TB, cfg producers.Config) *producers.Publisher {
	t.Helper()
	p, err := producers.New(s.connect(t).JS, cfg)
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

// stored is what lies in AUDIT: how often each event, by id, and in how many messages.
type stored struct {
	times    map[string]int
	order    []string // ids as they lie in the stream
	messages int
	bytes    uint64
	next     uint64 // stream sequence of the message after the last
}

func (s *system) stored(t testing.TB) stored {
	t.Helper()
	c := s.connect(t)
	defer c.NC.Close()
	return read(t, c)
}

func read(t testing.TB, c *broker.Client) stored {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := c.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	state := st.CachedInfo().State
	out := stored{times: map[string]int{}, bytes: state.Bytes, next: state.LastSeq + 1}
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		msg, err := st.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		out.messages++
		m := codec.Message{
			ContentType: msg.Header.Get(schema.HeaderContentType), ContentEncoding: msg.Header.Get(schema.HeaderContentEncoding),
			Payload: msg.Data, StreamSeq: seq, RecordedAt: msg.Time,
		}
		if m.Organization, m.Trail, err = schema.ParseEventSubject(msg.Subject); err != nil {
			t.Fatal(err)
		}
		d, err := codec.Decode(&m, time.Now())
		if err != nil || len(d.Rejects) > 0 {
			t.Fatalf("message %d: %v, %+v", seq, err, d)
		}
		for _, e := range d.Block.Events() {
			out.times[m.Organization+"/"+string(m.Trail)+"/"+e.ID.String()]++
			out.order = append(out.order, e.ID.String())
		}
	}
	return out
}

func key(e *schema.Event) string {
	return e.Organization + "/" + string(e.Trail) + "/" + e.ID.String()
}

// wantOnce fails unless these events are stored, each once, and none other.
func (s *system) wantOnce(t testing.TB, events []schema.Event) {
	t.Helper()
	got := s.stored(t)
	for i := range events {
		if n := got.times[key(&events[i])]; n != 1 {
			t.Errorf("event %d, %s, is stored %d times", i, key(&events[i]), n)
		}
	}
	if len(got.times) != len(events) {
		t.Errorf("%d events are stored, want %d", len(got.times), len(events))
	}
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

// eventually waits until a condition holds; it polls, because the broker has no signal for what is awaited.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}
