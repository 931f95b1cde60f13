package brokertest

import (
	"context"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Stored is what lies in AUDIT.
type Stored struct {
	Times    map[string]int          // how often each event does, by [Key]
	Events   map[string]schema.Event // the last of each
	Order    []string                // keys as they lie in the stream
	Messages int
	Bytes    uint64
	Next     uint64 // stream sequence of the message after the last
}

// Key tells events apart.
func Key(e *schema.Event) string {
	return e.Organization + "/" + string(e.Trail) + "/" + e.ID.String()
}

// Read reads all that lies in AUDIT. A message that can't be decoded, or only in part, fails the test.
func Read(t testing.TB, c *broker.Client) Stored {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := c.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	state := st.CachedInfo().State
	out := Stored{Times: map[string]int{}, Events: map[string]schema.Event{}, Bytes: state.Bytes, Next: state.LastSeq + 1}
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		msg, err := st.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		out.Messages++
		m := codec.Message{
			ContentType: msg.Header.Get(schema.HeaderContentType), ContentEncoding: msg.Header.Get(schema.HeaderContentEncoding),
			Payload: msg.Data, StreamSeq: seq, RecordedAt: msg.Time, RecordedBy: schema.RecordedBySystem, // any publisher passes
		}
		if m.Organization, m.Trail, err = schema.ParseEventSubject(msg.Subject); err != nil {
			t.Fatal(err)
		}
		d, err := codec.Decode(&m, time.Now())
		if err != nil || len(d.Rejects) > 0 {
			t.Fatalf("message %d: %v, %+v", seq, err, d)
		}
		for _, e := range d.Block.Events() {
			e.Organization, e.Trail = m.Organization, m.Trail
			k := Key(&e)
			out.Times[k]++
			out.Events[k] = e
			out.Order = append(out.Order, k)
		}
	}
	return out
}

// Stored reads all that lies in AUDIT.
func (b *Restartable) Stored(t testing.TB) Stored {
	t.Helper()
	c := b.Connect(t)
	defer c.NC.Close()
	return Read(t, c)
}

// WantOnce fails the test unless these events are stored, each once, and none other.
func (b *Restartable) WantOnce(t testing.TB, events []schema.Event) {
	t.Helper()
	got := b.Stored(t)
	for i := range events {
		k := Key(&events[i])
		if n := got.Times[k]; n != 1 {
			t.Errorf("event %d, %s, is stored %d times", i, k, n)
		}
	}
	if len(got.Times) != len(events) {
		t.Errorf("%d events are stored, want %d", len(got.Times), len(events))
	}
}
