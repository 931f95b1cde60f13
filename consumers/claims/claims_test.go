package claims_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers/claims"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a log of claims as another process has it.
func process(t *testing.T, c *broker.Client, hold time.Duration) *claims.Log {
	t.Helper()
	l := claims.New(c.JS, hold, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()
	t.Cleanup(func() { stop(); await.Receive(t, await.Limit, "the log of claims ends", ended) })
	return l
}

func take(t *testing.T, l *claims.Log, messages ...claims.Message) (release func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	release, err := l.Take(ctx, messages)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// taking takes claims in the background; it returns when they were published, and what is closed when they are had.
func taking(t *testing.T, c *broker.Client, l *claims.Log, messages ...claims.Message) <-chan struct{} {
	t.Helper()
	last := func() uint64 {
		st, err := c.JS.Stream(t.Context(), claims.Stream)
		if err != nil {
			t.Fatal(err)
		}
		return st.CachedInfo().State.LastSeq
	}
	before, had := last(), make(chan struct{})
	go func() {
		defer close(had)
		take(t, l, messages...)
	}()
	await.True(t, await.Limit, "the claim is published", func() bool { return last() > before })
	return had
}

func waits(t *testing.T, had <-chan struct{}) {
	t.Helper()
	select {
	case <-had:
		t.Fatal("claimed ids were given to another")
	default:
	}
}

// An insert waits for earlier ones of any process that have some of its ids in hand, and for no others.
func TestClaims(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	one, other := process(t, c, time.Hour), process(t, c, time.Hour)
	a, b := uuid.New(), uuid.New()
	releaseA := take(t, one, claims.Message{StreamSeq: 1, IDs: []uuid.UUID{a}})
	releaseB := take(t, other, claims.Message{StreamSeq: 2, IDs: []uuid.UUID{b}})
	had := taking(t, c, other, claims.Message{StreamSeq: 3, IDs: []uuid.UUID{uuid.New(), b, a}})
	releaseB()
	// A process that starts now knows that b was released, and waits for the third message.
	late := process(t, c, time.Hour)
	take(t, late, claims.Message{StreamSeq: 4, IDs: []uuid.UUID{uuid.New()}})()
	waits(t, had)
	lateHad := taking(t, c, late, claims.Message{StreamSeq: 5, IDs: []uuid.UUID{b}})
	waits(t, lateHad)
	releaseA()
	await.Receive(t, await.Limit, "ids that are released", had)
	waits(t, lateHad)
	// The broker gives the third message to another writer, which claims it: the earlier claim is over.
	take(t, one, claims.Message{StreamSeq: 3, IDs: []uuid.UUID{uuid.New()}})
	await.Receive(t, await.Limit, "ids that are released", lateHad)
}

// The claims of a killed process are over after some time.
func TestClaimsThatNobodyReleases(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	const hold = 300 * time.Millisecond
	killed, next := process(t, c, hold), process(t, c, hold)
	a := uuid.New()
	take(t, killed, claims.Message{StreamSeq: 1, IDs: []uuid.UUID{a}})
	began := time.Now()
	take(t, next, claims.Message{StreamSeq: 2, IDs: []uuid.UUID{a}})
	if d := time.Since(began); d < hold/2 {
		t.Errorf("it waited for %s", d)
	}
}

// More ids than a message has room for are all ids.
func TestClaimOfManyIDs(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	l := process(t, c, time.Hour)
	release := take(t, l, claims.Message{StreamSeq: 1, IDs: make([]uuid.UUID, 600_000)})
	had := taking(t, c, l, claims.Message{StreamSeq: 2, IDs: []uuid.UUID{uuid.New()}})
	waits(t, had)
	release()
	await.Receive(t, await.Limit, "ids that are released", had)
}

// A stream that is deleted and made again is read from its new beginning, and until then nothing is claimed.
func TestClaimsWhoseStreamIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	l := process(t, c, time.Hour)
	for seq := range uint64(5) {
		take(t, l, claims.Message{StreamSeq: seq + 1, IDs: []uuid.UUID{uuid.New()}})()
	}
	if err := c.JS.DeleteStream(t.Context(), claims.Stream); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Take(ctx, []claims.Message{{StreamSeq: 6, IDs: []uuid.UUID{uuid.New()}}}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a stream: %v", err)
	}
	if _, err := c.ResetStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	take(t, l, claims.Message{StreamSeq: 7, IDs: []uuid.UUID{uuid.New()}})()
}
