package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
)

// put makes letters of an organization, as the writer does.
func put(t *testing.T, c *broker.Client, organization, reason string, from, n int, data []byte) {
	t.Helper()
	letters := make([]consumers.DeadLetter, n)
	for i := range letters {
		letters[i] = consumers.DeadLetter{
			Reason: errors.New(reason), Subject: "audit.events." + organization + ".activity", StreamSeq: uint64(from + i), BatchIndex: -1, Data: data,
		}
	}
	if err := (consumers.DeadLetters{JS: c.JS}).Put(t.Context(), letters); err != nil {
		t.Fatal(err)
	}
}

func wantKinds(t *testing.T, x *deadletter.Index, want map[string]uint64) {
	t.Helper()
	if err := x.Update(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, c := range x.Kinds() {
		got[c.Kind] = c.Letters
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// Counts follow what is added, replayed, removed and purged, and each letter is read once.
func TestIndexReadsEachLetterOnce(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	now := time.Now()
	x := &deadletter.Index{JS: c.JS, Now: func() time.Time { return now }}
	wantKinds(t, x, map[string]uint64{})
	put(t, c, "acme", "bad action", 1, 300, []byte("x"))
	put(t, c, "globex", "bad time", 1000, 20, []byte("x"))
	wantKinds(t, x, map[string]uint64{"bad action": 300, "bad time": 20})
	for range 5 {
		wantKinds(t, x, map[string]uint64{"bad action": 300, "bad time": 20})
	}
	put(t, c, "acme", "bad time", 2000, 5, []byte("x"))
	wantKinds(t, x, map[string]uint64{"bad action": 300, "bad time": 25})
	if n := x.Read(); n != 325 {
		t.Errorf("%d letters were read, want each of 325 once", n)
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamDeadLetter)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(301); seq <= 303; seq++ { // of globex, as by a replay
		if err := stream.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(time.Hour)
	wantKinds(t, x, map[string]uint64{"bad action": 300, "bad time": 22})
	if n := x.Read(); n != 325+17 {
		t.Errorf("%d letters were read, want those of one organization again: 17", n-325)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(101)); err != nil {
		t.Fatal(err)
	}
	wantKinds(t, x, map[string]uint64{"bad action": 200, "bad time": 22})
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantKinds(t, x, map[string]uint64{})
}

// An organization whose bad events exceed a bound loses its oldest letters, and no other
// organization does. Dropped letters are counted and logged.
func TestLettersAreBoundedByOrganization(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	now := time.Now()
	x := &deadletter.Index{JS: c.JS, Now: func() time.Time { return now }}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	put(t, c, "quiet", "bad time", 1, 10, []byte("x"))
	put(t, c, "loud", "bad action", 1000, 400, bytes.Repeat([]byte("x"), 10_000))
	put(t, c, "late", "bad time", 5000, 10, []byte("x"))
	bounds := deadletter.Bounds{MaxBytes: 2 << 20, MaxAge: time.Hour}
	count := func(organization string) (n, bytes int, first uint64) {
		if err := deadletter.Heads(t.Context(), c.JS, organization, 0, func(l deadletter.Letter) bool {
			if n == 0 {
				first = l.StreamSeq
			}
			n++
			bytes += l.Bytes
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return n, bytes, first
	}
	for range 2 { // the second time nothing is to be dropped
		if err := x.Bound(t.Context(), bounds, log); err != nil {
			t.Fatal(err)
		}
	}
	loud, bytes, first := count("loud")
	if loud == 0 || bytes > 2<<20 || bytes < 1<<20 || first != uint64(1400-loud) {
		t.Errorf("%d letters of %d bytes are left, the first of %d; want the newest within 2 MiB", loud, bytes, first)
	}
	for _, organization := range []string{"quiet", "late"} {
		if n, _, _ := count(organization); n != 10 {
			t.Errorf("%s has %d letters, want 10", organization, n)
		}
	}
	if d := x.Dropped(); d[deadletter.BoundSize] != uint64(400-loud) || d[deadletter.BoundAge] != 0 {
		t.Errorf("counted %v, want %d by size", d, 400-loud)
	}
	if text := out.String(); strings.Count(text, "dead letters dropped") != 1 || !strings.Contains(text, fmt.Sprintf("organization=loud bound=size letters=%d", 400-loud)) {
		t.Errorf("logged:\n%s", text)
	}
	wantKinds(t, x, map[string]uint64{"bad action": uint64(loud), "bad time": 20})
	now = now.Add(2 * time.Hour)
	if err := x.Bound(t.Context(), bounds, log); err != nil {
		t.Fatal(err)
	}
	if d := x.Dropped(); d[deadletter.BoundAge] != uint64(20+loud) {
		t.Errorf("counted %v, want %d by age", d, 20+loud)
	}
	wantKinds(t, x, map[string]uint64{})
}

// Two processes that keep the same bounds count each letter once.
func TestDroppedLettersAreCountedOnce(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	put(t, c, "acme", "bad", 1, 50, []byte("x"))
	later := func() time.Time { return time.Now().Add(2 * time.Hour) }
	one, other := &deadletter.Index{JS: c.JS, Now: later}, &deadletter.Index{JS: c.JS, Now: later}
	if err := other.Update(t.Context()); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	for _, x := range []*deadletter.Index{one, other} {
		if err := x.Bound(context.WithoutCancel(t.Context()), deadletter.Bounds{MaxAge: time.Hour}, log); err != nil {
			t.Fatal(err)
		}
	}
	if n := one.Dropped()[deadletter.BoundAge] + other.Dropped()[deadletter.BoundAge]; n != 50 {
		t.Errorf("counted %d, want 50", n)
	}
}
