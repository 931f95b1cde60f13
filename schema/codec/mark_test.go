package codec

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// A byte order mark, and every kind of line end, is the same at every entry point.
func TestByteOrderMarksAndLineEnds(t *testing.T) {
	t.Parallel()
	const event = `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"access","source":"s","event":"e","action":"a"}`
	now := time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		contentType, body string
		want              int
	}{
		{ContentNDJSON, "\ufeff" + event + "\r\n\r\n" + event + "\r\n", 2},
		{ContentJSON, "\ufeff\r\n[" + event + ",\r\n" + event + "]\r\n", 2},
		{ContentJSON, "\ufeff" + event, 1},
	} {
		d, err := Decode(&Message{ContentType: c.contentType, Payload: []byte(c.body), Organization: "acme", Trail: schema.Access, RecordedAt: now, StreamSeq: 1}, now)
		if err != nil || d.Block.Rows() != c.want || len(d.Rejects) != 0 {
			t.Errorf("message %q: %v", c.body, err)
		}
		taken := 0
		in := Intake{Now: now, MaxEvents: 10, Take: func(b Batch) { taken += b.Block.Rows() }}
		in.Reject = func(_ int, _ uuid.UUID, err error) { t.Errorf("%q: %v", c.body, err) }
		read := in.JSON
		if c.contentType == ContentNDJSON {
			read = in.Lines
		}
		if err := read([]byte(c.body)); err != nil {
			t.Errorf("request %q: %v", c.body, err)
		}
		in.Flush()
		if taken != c.want {
			t.Errorf("request %q: %d events, want %d", c.body, taken, c.want)
		}
	}
}
