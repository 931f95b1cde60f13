package writer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is a small working store that fails as it is told. The real one is in the tests of package
// pipeline.
type table struct {
	mu     sync.Mutex
	rows   map[string]int       // by sequence and index
	ids    map[uuid.UUID]uint64 // the first message of each event
	events map[uuid.UUID][]writer.StoredID
	tokens map[string]bool
	// next says what becomes of the next inserts; after them all is well.
	next   []outcome
	lookUp int // times it was asked what is stored
	hung   chan struct{}
	// slow is told of an insert that takes long, until goOn; awaited, that somebody waits for that.
	slow, goOn, awaited chan struct{}
	under               sync.WaitGroup
}

type outcome int

const (
	fails     outcome = iota // nothing is stored, and an error says so
	persists                 // stored all the same: the answer was lost
	forgotten                // stored; and the token is forgotten, as ClickHouse's log may be after a crash
	takesLong                // stored when it is told to go on
	hangs                    // nothing is stored, and the call does not return before the test ends
	vanishes                 // nothing is stored, and the token is known: what an engine does that sets a part aside
)

var errLost = errors.New("connection lost")

func (f *table) Insert(_ context.Context, token string, in *codec.Insert) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := outcome(-1)
	if len(f.next) > 0 {
		o, f.next = f.next[0], f.next[1:]
	}
	if o == hangs {
		f.mu.Unlock()
		<-f.hung
		f.mu.Lock()
		return errLost
	}
	if o == takesLong {
		f.under.Add(1)
		defer f.under.Done()
		f.mu.Unlock()
		close(f.slow)
		<-f.goOn
		f.mu.Lock()
	}
	if o == fails {
		return errLost
	}
	if o == vanishes {
		f.tokens[token] = true
		return errLost
	}
	if !f.tokens[token] {
		for _, p := range in.Parts() {
			for row := range p.Block.Rows() {
				f.rows[fmt.Sprint(p.StreamSeq, "-", row)]++
				f.events[p.Block.ID(row)] = append(f.events[p.Block.ID(row)], writer.StoredID{StreamSeq: p.StreamSeq, RecordedAt: p.RecordedAt, Content: p.Contents()[row]})
				if seq, ok := f.ids[p.Block.ID(row)]; !ok || p.StreamSeq < seq {
					f.ids[p.Block.ID(row)] = p.StreamSeq
				}
			}
		}
	}
	f.tokens[token] = f.tokens[token] || o != forgotten
	if o == persists || o == forgotten {
		return errLost
	}
	return nil
}

func (f *table) AwaitInserts(context.Context) error {
	select {
	case <-f.slow:
		f.awaited <- struct{}{}
	default:
	}
	f.under.Wait()
	return nil
}

func (f *table) StoredRows(_ context.Context, parts []codec.Part) (map[uint64]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookUp++
	stored := map[uint64]int{}
	for _, p := range parts {
		for row := range p.Block.Rows() {
			if f.rows[fmt.Sprint(p.StreamSeq, "-", row)] > 0 {
				stored[p.StreamSeq]++
			}
		}
	}
	return stored, nil
}

func (f *table) StoredElsewhere(_ context.Context, parts []codec.Part, _ time.Time) (map[uint64][]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stored := map[uint64][]int{}
	for _, p := range parts {
		for row := range p.Block.Rows() {
			if seq, ok := f.ids[p.Block.ID(row)]; ok && seq < p.StreamSeq {
				stored[p.StreamSeq] = append(stored[p.StreamSeq], row)
			}
		}
	}
	return stored, nil
}

func (f *table) StoredIDs(_ context.Context, _ string, _ schema.Trail, ids []uuid.UUID, from, to time.Time) (map[uuid.UUID][]writer.StoredID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := map[uuid.UUID][]writer.StoredID{}
	for _, id := range ids {
		for _, e := range f.events[id] {
			if !e.RecordedAt.Before(from) && !e.RecordedAt.After(to) {
				found[id] = append(found[id], e)
			}
		}
	}
	return found, nil
}

func (f *table) counts() (rows, twice int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.rows {
		rows++
		if n > 1 {
			twice++
		}
	}
	return rows, twice
}

type fixture struct {
	broker *brokertest.Restartable
	client *broker.Client
	stream jetstream.Consumer
	table  *table
}

func newFixture(t *testing.T, ackWait time.Duration) *fixture {
	t.Helper()
	b := brokertest.StartRestartable(t, nil)
	c := brokertest.Connect(t, b.URL())
	if err := c.Setup(t.Context(), broker.Settings{DuplicateWindow: time.Minute, AckWait: ackWait, Hour: time.Hour}); err != nil {
		t.Fatal(err)
	}
	consumer, err := c.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{broker: b, client: c, stream: consumer, table: &table{
		rows: map[string]int{}, ids: map[uuid.UUID]uint64{}, events: map[uuid.UUID][]writer.StoredID{}, tokens: map[string]bool{}, hung: make(chan struct{}),
		slow: make(chan struct{}), goOn: make(chan struct{}), awaited: make(chan struct{}, 100),
	}}
}

// publish puts messages of three events each on the stream.
func (f *fixture) publish(t *testing.T, messages int) {
	t.Helper()
	event := `{"occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}`
	for range messages {
		msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
		msg.Header.Set(schema.HeaderContentType, codec.ContentNDJSON)
		msg.Data = []byte(strings.Repeat(event+"\n", 3))
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
}

// run starts a writer and returns what stops it and waits for it.
func (f *fixture) run(t *testing.T, cfg writer.Config) (w *writer.Writer, stop func()) {
	t.Helper()
	return f.runOn(t, f.table, cfg)
}

func (f *fixture) runOn(t *testing.T, on writer.Table, cfg writer.Config) (w *writer.Writer, stop func()) {
	t.Helper()
	cfg.Linger, cfg.Logger = 5*time.Millisecond, slog.New(slog.DiscardHandler)
	w, err := writer.New([]writer.Stream{f.stream}, f.client.NC, on, tally.Ledger{JS: f.client.JS}, consumers.DeadLetters{JS: f.client.JS}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return w, sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// settled waits until nothing is unacknowledged.
func (f *fixture) settled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		info, err := f.stream.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if info.NumPending == 0 && info.NumAckPending == 0 {
			return
		}
	}
}

// Requirement Q5: whatever an insert's error means, it is counted and tried again, and each event is stored once.
func TestInsertsThatFail(t *testing.T) {
	t.Parallel()
	for name, next := range map[string][]outcome{
		"nothing stored": {fails, fails}, "answer lost": {persists, fails, persists}, "token forgotten": {forgotten, forgotten},
		"rows vanished": {vanishes, vanishes, fails, vanishes, persists},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, time.Minute)
			f.table.next = next
			f.publish(t, 20)
			w, stop := f.run(t, writer.Config{})
			defer stop()
			w.Suspect(w.Server(), 0) // so that only failures make it look up
			f.settled(t)
			stop()
			if rows, twice := f.table.counts(); rows != 60 || twice != 0 {
				t.Errorf("%d events are stored, %d of them twice; want 60 once", rows, twice)
			}
			if s := w.Stats(); s.Failures == 0 || s.Stored+s.Skipped != 60 {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// A writer that stored and died before it acknowledged: the next one finds the rows and leaves them out,
// though the broker has forgotten that it ever delivered the messages.
func TestNextWriterLooksUpWhatItMayHaveBefore(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Minute)
	f.publish(t, 10)
	_, stop := f.run(t, writer.Config{})
	f.settled(t)
	stop()
	// Another consumer of the same stream begins at the start: every message comes as if for the first time.
	stream, err := f.client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	f.stream, err = stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "again", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	f.table.tokens = map[string]bool{}
	w, stop := f.run(t, writer.Config{})
	defer stop()
	f.settled(t)
	stop()
	if rows, twice := f.table.counts(); rows != 30 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 30 once", rows, twice)
	}
	if s := w.Stats(); s.Skipped != 30 || s.Stored != 0 {
		t.Errorf("counted %+v", s)
	}
}

// forgets has the broker end as by a crash that it did not write down its deliveries before, and start again.
func (f *fixture) forgets(t *testing.T) {
	t.Helper()
	before := f.client.NC.ConnectedServerId()
	f.broker.Stop()
	states, err := filepath.Glob(filepath.Join(f.broker.Dir, "jetstream", "*", "streams", broker.StreamAudit, "obs", broker.ConsumerWriter, "o.dat"))
	if err != nil || len(states) != 1 {
		t.Fatal(states, err)
	}
	if err := os.Remove(states[0]); err != nil {
		t.Fatal(err)
	}
	f.broker.Start(t)
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // what is asked before that is lost
		now := f.client.NC.ConnectedServerId()
		return now != before && now != "", "the client has not come back to the broker"
	})
}

// heldUp is nobody's switch, and holds up who asks first.
type heldUp struct {
	asked         atomic.Bool
	reached, goOn chan struct{}
}

func (h *heldUp) Now(context.Context) (recording.State, error) {
	if !h.asked.Swap(true) {
		close(h.reached)
		<-h.goOn
	}
	return recording.State{}, nil
}

// A broker that crashed gives at once to another writer what one has already; whatever that one is at, each event is
// stored once.
func TestBrokerThatForgetsWhomItGaveWhat(t *testing.T) {
	t.Parallel()
	// What was asked of the broker as it came back, and counts as given before, comes again after the ack wait.
	const ackWait, insertTimeout = 20 * time.Second, 8 * time.Second
	t.Run("before the insert", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, ackWait)
		held := &heldUp{reached: make(chan struct{}), goOn: make(chan struct{})}
		goOn := sync.OnceFunc(func() { close(held.goOn) })
		cfg := writer.Config{Server: f.client.NC.ConnectedServerId, AckWait: ackWait, InsertTimeout: insertTimeout}
		heldCfg := cfg
		heldCfg.Recording = held
		first, stopFirst := f.run(t, heldCfg)
		defer stopFirst()
		defer goOn()
		first.Suspect(first.Server(), 0)
		f.publish(t, 2)
		await.Receive(t, await.Limit, "an insert that is held up", held.reached)
		f.forgets(t)
		f.publish(t, 1) // so that the other's insert is not the same
		_, stopSecond := f.run(t, cfg)
		defer stopSecond()
		f.settled(t)
		goOn()
		stopFirst()
		if rows, twice := f.table.counts(); rows != 9 || twice != 0 {
			t.Errorf("%d events are stored, %d of them twice; want 9 once", rows, twice)
		}
	})
	t.Run("amid the insert", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, ackWait)
		f.table.next = []outcome{takesLong}
		goOn := sync.OnceFunc(func() { close(f.table.goOn) })
		cfg := writer.Config{Server: f.client.NC.ConnectedServerId, AckWait: ackWait, InsertTimeout: insertTimeout}
		first, stopFirst := f.run(t, cfg)
		defer stopFirst()
		defer goOn()
		first.Suspect(first.Server(), 0)
		f.publish(t, 2)
		await.Receive(t, await.Limit, "an insert that takes long", f.table.slow)
		f.forgets(t)
		f.publish(t, 1)
		_, stopSecond := f.run(t, cfg)
		defer stopSecond()
		await.Receive(t, await.Limit, "a writer that waits for it", f.table.awaited) // either: both may be given the messages
		goOn()
		f.settled(t)
		stopFirst()
		stopSecond()
		if rows, twice := f.table.counts(); rows != 9 || twice != 0 {
			t.Errorf("%d events are stored, %d of them twice; want 9 once", rows, twice)
		}
	})
}

// What is held longer than the lease allows is not inserted: the broker may have given it to someone else.
func TestLeaseThatEndsIsNotUsed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5*time.Second)
	f.publish(t, 5)
	var mu sync.Mutex
	stalled := true
	now := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		if stalled {
			return time.Now()
		}
		return time.Now().Add(time.Hour) // the process was stopped, and goes on
	}
	w, stop := f.run(t, writer.Config{AckWait: 5 * time.Second, InsertTimeout: time.Second, Now: func() time.Time {
		at := now()
		mu.Lock()
		stalled = false
		mu.Unlock()
		return at
	}})
	defer stop()
	// The first fetch's lease was counted before the stall, and is over when its messages are to be stored.
	f.settled(t)
	stop()
	if rows, twice := f.table.counts(); rows != 15 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 15 once", rows, twice)
	}
	if s := w.Stats(); s.Stored != 15 {
		t.Errorf("counted %+v", s)
	}
}

func TestConfigThatWouldBreakAGuarantee(t *testing.T) {
	t.Parallel()
	for says, cfg := range map[string]writer.Config{
		"half of the consumer's ack wait": {AckWait: 10 * time.Second, InsertTimeout: 6 * time.Second},
		"leaves no time to insert in":     {AckWait: 2 * time.Second, InsertTimeout: time.Second},
		"too little for two messages":     {Memory: 1 << 20},
	} {
		if _, err := writer.New(nil, nil, nil, nil, nil, cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

// Any number of writers share one consumer: each message is stored by one of them.
func TestSeveralWriters(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Minute)
	var writers []*writer.Writer
	for range 3 {
		w, stop := f.run(t, writer.Config{MaxRows: 30}) // so that no one insert takes all
		defer stop()
		writers = append(writers, w)
	}
	for range 20 { // a few at a time, as they come in life; one pull may take all there is
		f.publish(t, 30)
	}
	f.settled(t)
	if rows, twice := f.table.counts(); rows != 1800 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 1800 once", rows, twice)
	}
	busy := 0
	for _, w := range writers {
		if w.Stats().Stored > 0 {
			busy++
		}
	}
	if busy < 2 {
		t.Errorf("%d of 3 writers stored anything", busy)
	}
}

// A message that its producer kept was there before, and is still under way to the table: it waits until that is
// settled, and is left out then.
func TestKeptMessageWaitsForItsFirstCopy(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Minute)
	f.table.next = []outcome{fails, fails} // so that the first copy takes a while
	first := time.Now()
	for _, kept := range []bool{false, true, true} {
		msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
		msg.Header.Set(schema.HeaderContentType, codec.ContentNDJSON)
		for i := range 3 {
			msg.Data = fmt.Appendf(msg.Data, `{"id":"018f3a5e-0000-7000-8000-%012d","occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}`+"\n", i)
		}
		if kept {
			msg.Header.Set(schema.HeaderFirstAttempt, schema.FormatAttempt(first))
		}
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := f.client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	floor := floor.Floor{Broker: f.client, Stream: stream}
	w, stop := f.run(t, writer.Config{
		Window: 2 * time.Nanosecond, // each copy is older than the broker's memory of the one before
		Settled: func(ctx context.Context) (time.Time, error) {
			until, _, err := floor.Closed(ctx)
			return until, err
		},
	})
	defer stop()
	f.settled(t)
	stop()
	if rows, twice := f.table.counts(); rows != 3 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 3 once", rows, twice)
	}
	if s := w.Stats(); s.Stored != 3 || s.Skipped != 6 {
		t.Errorf("counted %+v", s)
	}
	tallies, _, err := tally.Ledger{JS: f.client.JS}.Between(t.Context(), first.Add(-time.Minute), first.Add(time.Hour))
	if err != nil || len(tallies) != 3 || tallies[0].Rows != 3 || tallies[1].Rows != 0 || tallies[2].Rows != 0 {
		t.Errorf("the account is %+v, %v", tallies, err)
	}
}

// An insert that does not keep its time limit is left behind; its messages come again and are stored.
func TestStuckInsertIsLeftBehind(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5*time.Second)
	f.table.next = []outcome{hangs, hangs} // as many as run at once
	f.publish(t, 5)
	w, stop := f.run(t, writer.Config{AckWait: 5 * time.Second, InsertTimeout: time.Second})
	defer stop()
	f.settled(t)
	stop()
	close(f.table.hung)
	if rows, twice := f.table.counts(); rows != 15 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 15 once", rows, twice)
	}
	if s := w.Stats(); s.Stuck == 0 || s.Stored != 15 {
		t.Errorf("counted %+v", s)
	}
}

// Requirement Z2: what the broker stored while the trail was off is left out, by whichever of two writers has it, bad
// events included, and is accounted for; what was recorded before stays, and after it is on again all is recorded.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5*time.Second)
	bad := func() {
		msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
		msg.Header.Set(schema.HeaderContentType, codec.ContentNDJSON)
		msg.Data = []byte("{}\n" + `{"occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}` + "\n")
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		msg.Data = []byte("no JSON")
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	f.publish(t, 10)
	off := recordingtest.Turn(t, f.client.JS, "acme", schema.Activity, false)
	f.publish(t, 10) // and what is in flight when the writers hear of it
	bad()
	var writers []*writer.Writer
	var stops []func()
	for range 2 {
		w, stop := f.run(t, writer.Config{Recording: recording.New(f.client.JS), MaxRows: 9, AckWait: 5 * time.Second, InsertTimeout: time.Second})
		defer stop()
		writers, stops = append(writers, w), append(stops, stop)
	}
	f.publish(t, 10)
	f.settled(t)
	on := recordingtest.Turn(t, f.client.JS, "acme", schema.Activity, true)
	f.publish(t, 5)
	f.settled(t)
	stream, err := f.client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	for info, err := stream.Info(t.Context()); !info.TimeStamp.After(on.Add(schema.RecordingDelay)); info, err = stream.Info(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	f.table.mu.Lock()
	f.table.next = []outcome{persists, fails} // looking up changes nothing
	f.table.mu.Unlock()
	f.publish(t, 10)
	f.settled(t)
	for _, stop := range stops {
		stop()
	}
	if rows, twice := f.table.counts(); rows != 60 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 60 once: 30 before %s and 30 after %s", rows, twice, off, on)
	}
	var unrecorded, rejected uint64
	for _, w := range writers {
		unrecorded, rejected = unrecorded+w.Stats().Unrecorded, rejected+w.Stats().Rejected
	}
	if unrecorded != 60+15+2 || rejected != 0 {
		t.Errorf("%d events were left out, %d rejected", unrecorded, rejected)
	}
	tallies, _, err := tally.Ledger{JS: f.client.JS}.Between(t.Context(), began.Add(-time.Minute), time.Now().Add(time.Hour))
	if err != nil || len(tallies) != 47 {
		t.Fatalf("%d messages are accounted for, want 47: %v", len(tallies), err)
	}
	for _, m := range tallies {
		out := !m.RecordedAt.Before(off) && m.RecordedAt.Before(on.Add(schema.RecordingDelay))
		if out != (m.Rows == 0) {
			t.Errorf("message %d of %s has %d events", m.StreamSeq, m.RecordedAt, m.Rows)
		}
	}
}

// While nobody can say what is switched off, nothing is stored and nothing is left out. What the table has stays,
// whatever the switches say.
func TestSwitchesThatCanNotBeRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5*time.Second)
	f.publish(t, 3)
	w, stop := f.run(t, writer.Config{})
	f.settled(t)
	stop()
	if s := w.Stats(); s.Stored != 9 {
		t.Fatalf("counted %+v", s)
	}
	stream, err := f.client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	f.stream, err = stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "again", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	switches := &offFromTheStart{fails: 3, of: recording.New(f.client.JS)}
	doc := []byte(`{"version":1,"turns":{"activity":[{"on":false,"at":"2020-01-01T00:00:00Z","by":"ann","reason":"clocks"}]}}`)
	kv, err := f.client.JS.KeyValue(t.Context(), broker.BucketRecording)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "acme", doc); err != nil {
		t.Fatal(err)
	}
	f.publish(t, 2)
	w, stop = f.run(t, writer.Config{Recording: switches, AckWait: 5 * time.Second, InsertTimeout: time.Second})
	defer stop()
	f.settled(t)
	stop()
	if rows, twice := f.table.counts(); rows != 9 || twice != 0 {
		t.Errorf("%d events are stored, %d of them twice; want 9 once", rows, twice)
	}
	if s := w.Stats(); s.Skipped != 9 || s.Unrecorded != 6 || s.Failures == 0 {
		t.Errorf("counted %+v", s)
	}
}

// offFromTheStart fails some times.
type offFromTheStart struct {
	mu    sync.Mutex
	fails int
	of    *recording.Reader
}

func (o *offFromTheStart) Now(ctx context.Context) (recording.State, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fails--; o.fails >= 0 {
		return recording.State{}, recording.ErrUnknown
	}
	return o.of.Now(ctx)
}

// held is where dead letters go whose broker's disk does not come to an end with them.
type held struct {
	goOn    chan struct{}
	letters atomic.Int64
}

func (h *held) Put(ctx context.Context, letters []consumers.DeadLetter) error {
	h.letters.Add(int64(len(letters)))
	select {
	case <-h.goOn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Messages that cannot be stored wait for the disk of the dead letters together, and hold up no other message.
func TestBadMessagesHoldUpNoOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Minute)
	const bad = 100
	for range bad {
		msg := nats.NewMsg(schema.EventSubject("loud", schema.Activity))
		msg.Header.Set(schema.HeaderContentType, codec.ContentNDJSON)
		msg.Data = []byte("no event")
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	f.publish(t, 1)
	dead := &held{goOn: make(chan struct{})}
	w, err := writer.New([]writer.Stream{f.stream}, f.client.NC, f.table, tally.Ledger{JS: f.client.JS}, dead, writer.Config{Linger: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		rows, _ := f.table.counts()
		return rows == 3, fmt.Sprintf("%d of 3 good events are stored", rows)
	})
	close(dead.goOn)
	f.settled(t)
	if n := dead.letters.Load(); n != bad || w.Stats().Rejected != bad {
		t.Errorf("%d dead letters, %d counted, want %d", n, w.Stats().Rejected, bad)
	}
	cancel()
	if err := await.Receive(t, await.Limit, "the writer to end", ended); err != nil {
		t.Error(err)
	}
}
