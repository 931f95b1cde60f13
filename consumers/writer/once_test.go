package writer_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/claims"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// meeting is a table of which two lookups of ids come together, if they can: as late as the other one, or as a while allows.
type meeting struct {
	*table
	mu   sync.Mutex
	came int
	both chan struct{}
}

func (m *meeting) StoredIDs(ctx context.Context, organization string, trail schema.Trail, ids []uuid.UUID, from, to time.Time) (map[uuid.UUID][]writer.StoredID, error) {
	found, err := m.table.StoredIDs(ctx, organization, trail, ids, from, to)
	m.mu.Lock()
	if m.came++; m.came == 2 {
		close(m.both)
	}
	m.mu.Unlock()
	select {
	case <-m.both:
	case <-time.After(200 * time.Millisecond): // with claims the other one comes later
	}
	return found, err
}

// Two inserts, of one process or of two, have a copy each of an event at once: it is stored once.
func TestCopiesAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Minute)
	m := &meeting{table: f.table, both: make(chan struct{})}
	for range 2 {
		msg := nats.NewMsg(schema.EventSubject("acme", schema.Activity))
		msg.Header.Set(schema.HeaderContentType, codec.ContentNDJSON)
		msg.Data = []byte(`{"id":"0192f8a0-0000-7000-8000-000000000001","occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}`)
		if _, err := f.client.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // processes
		log := claims.New(f.client.JS, time.Minute, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); log.Run(ctx) }()
		t.Cleanup(func() { stop(); await.Receive(t, await.Limit, "the log of claims ends", ended) })
		_, end := f.runOn(t, m, writer.Config{Claims: log, IDWindow: time.Hour, Inserts: 2, MaxRows: 1})
		t.Cleanup(end)
	}
	f.settled(t)
	if rows, _ := f.table.counts(); rows != 1 {
		t.Errorf("%d events are stored, want 1", rows)
	}
}
