package floor_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stream is one whose messages are a second apart, and whose shards acknowledge what they are told to.
type stream struct {
	last     uint64
	replicas int
	floors   []uint64
	waiting  []uint64
	settles  bool // marks are acknowledged at once
	behind   int  // questions for messages that a server answers that does not have them yet
	marks    int
}

var began = time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)

func at(seq uint64) time.Time { return began.Add(time.Duration(seq) * time.Second) }

func (s *stream) Writers(context.Context) (*jetstream.StreamInfo, []floor.Info, error) {
	var all []floor.Info
	for i, f := range s.floors {
		c := &jetstream.ConsumerInfo{NumPending: s.waiting[i], TimeStamp: at(1000)}
		c.AckFloor.Stream = f
		all = append(all, floor.Info{Shard: floor.Shard{Number: i}, ConsumerInfo: c})
	}
	info := &jetstream.StreamInfo{Config: jetstream.StreamConfig{Replicas: s.replicas}, TimeStamp: at(1000)}
	info.State.LastSeq = s.last
	return info, all, nil
}

// Mark is called for one shard at a time here: the lock is the caller's order.
func (s *stream) Mark(_ context.Context, shard floor.Shard) (uint64, error) {
	s.last++
	s.marks++
	if s.settles {
		s.floors[shard.Number] = s.last
	}
	return s.last, nil
}

func (s *stream) GetMsg(_ context.Context, seq uint64, _ ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if s.behind > 0 {
		s.behind--
		return nil, jetstream.ErrMsgNotFound
	}
	if seq > s.last {
		return nil, jetstream.ErrMsgNotFound
	}
	return &jetstream.RawStreamMsg{Sequence: seq, Time: at(seq)}, nil
}

func TestClosed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		s     *stream
		until time.Time
		seq   uint64
		marks int
	}{
		"one server, idle":            {&stream{last: 9, replicas: 1, floors: []uint64{9}, waiting: []uint64{0}}, at(1000), 9, 0},
		"one server, busy":            {&stream{last: 9, replicas: 1, floors: []uint64{6}, waiting: []uint64{3}}, at(7), 6, 0},
		"one server, removed":         {&stream{last: 6, replicas: 1, floors: []uint64{6}, waiting: []uint64{1}}, at(1000), 6, 0},
		"cluster, idle":               {&stream{last: 9, replicas: 3, floors: []uint64{9}, waiting: []uint64{0}, settles: true}, at(10), 9, 1},
		"cluster, a server is behind": {&stream{last: 9, replicas: 3, floors: []uint64{9}, waiting: []uint64{0}, settles: true, behind: 2}, at(10), 9, 1},
		// Its consumer's server says that nothing waits, and has not acknowledged what is in the stream.
		"cluster, the consumer is behind": {&stream{last: 9, replicas: 3, floors: []uint64{6}, waiting: []uint64{0}}, at(7), 6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := floor.Floor{Broker: c.s, Stream: c.s}
			until, seq, err := f.Closed(t.Context())
			if err != nil || !until.Equal(c.until) || seq != c.seq || c.s.marks != c.marks {
				t.Errorf("got %s, %d, %v with %d marks; want %s, %d with %d", until, seq, err, c.s.marks, c.until, c.seq, c.marks)
			}
		})
	}
}

// A shard in which nothing happens does not hold back the others, and does not let them pass what it has not settled.
func TestPlacesOfIdleShards(t *testing.T) {
	t.Parallel()
	s := &stream{last: 9, replicas: 1, floors: []uint64{9, 2, 8}, waiting: []uint64{0, 0, 1}, settles: true}
	f := floor.Floor{Broker: s, Stream: s}
	for i, want := range []uint64{2, 8} { // the second shard got a mark, the third has something to do
		if got, err := f.Places(t.Context()); err != nil || got[floor.Prompt] != want {
			t.Errorf("question %d: got %d, %v; want %d", i, got, err, want)
		}
	}
	if s.marks != 1 {
		t.Errorf("%d marks", s.marks)
	}
}

// Messages in the bulk lane hold back the events of their organization alone. No hour is closed before they are settled.
func TestBulkLaneHoldsBackItsOrganizationOnly(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	publish := func(subject string) {
		t.Helper()
		if _, err := c.JS.Publish(t.Context(), subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	publish(schema.EventSubject("quiet", schema.Activity))
	publish(schema.BulkSubject("loud", schema.Activity, 7))
	publish(schema.BulkSubject("loud", schema.Access, 59))
	publish(schema.SlotSubject("quiet", schema.Access, 3))
	stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	f := floor.Floor{Broker: c, Stream: stream}
	settle := func(name string, n int) {
		t.Helper()
		consumer, err := stream.Consumer(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := consumer.Fetch(n)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
			n--
		}
		if n != 0 || batch.Error() != nil {
			t.Fatalf("%s was given too little: %d are missing, %v", name, n, batch.Error())
		}
	}
	is := func(when string, quiet, loud, closed uint64, first uint64) {
		t.Helper()
		p, err := f.Places(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for organization, want := range map[string]uint64{"quiet": quiet, "loud": loud} {
			if got, err := f.Of(t.Context(), p, organization); err != nil || got != want {
				t.Errorf("%s: events of %s are there up to %d, want %d: %v", when, organization, got, want, err)
			}
		}
		until, seq, err := f.Closed(t.Context())
		if err != nil || seq != closed {
			t.Errorf("%s: closed up to %d, want %d: %v", when, seq, closed, err)
		}
		_, age, err := f.Lag(t.Context())
		if err != nil || (age > 0) != (first > 0) {
			t.Errorf("%s: lag %s, %v", when, age, err)
		}
		if first == 0 {
			return
		}
		msg, err := stream.GetMsg(t.Context(), first)
		if err != nil || !until.Equal(msg.Time) {
			t.Errorf("%s: closed until %s, want %s: %v", when, until, msg.Time, err)
		}
	}
	is("nothing is settled", 0, 0, 0, 1)
	settle(broker.ConsumerWriter, 2)
	is("the prompt lane is settled", 4, 1, 1, 2)
	settle(broker.ConsumerBulkWriter, 1)
	is("one of the bulk lane, too", 4, 2, 2, 3)
	settle(broker.ConsumerBulkWriter, 1)
	is("everything is settled", 4, 4, 4, 0)
	publish(schema.EventSubject("quiet", schema.Activity))
	is("one more", 4, 4, 4, 5)
	settle(broker.ConsumerWriter, 1)
	is("and it is settled: the bulk lane has nothing to do", 5, 5, 5, 0)
}
