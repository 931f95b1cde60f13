package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// AppendJSON appends e as one line of NDJSON, without the line break.
func AppendJSON(dst []byte, e *schema.Event) ([]byte, error) {
	w := sliceWriter{dst}
	enc := json.NewEncoder(&w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return dst, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	return bytes.TrimSuffix(w.buf, []byte{'\n'}), nil
}

type sliceWriter struct{ buf []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// EncodeNDJSON writes events to w, a line each.
func EncodeNDJSON(w io.Writer, events []schema.Event) error {
	var line []byte
	for i := range events {
		var err error
		if line, err = AppendJSON(line[:0], &events[i]); err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return fmt.Errorf("write event %d: %w", i, err)
		}
	}
	return nil
}

// DerivedID is the id of an event that came without one. It is made from where the event lies in the
// stream, so that it is the same however often its message is delivered: a UUIDv7 of the time at
// which it was recorded, its random bits replaced by the position.
func DerivedID(recordedAt time.Time, streamSeq uint64, batchIndex int) uuid.UUID {
	var id uuid.UUID
	ms := uint64(recordedAt.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = 0x70 | byte(batchIndex>>16)&0x0f
	id[7] = byte(batchIndex >> 8)
	id[8] = 0x80 | byte(streamSeq>>56)&0x3f
	for i := range 6 {
		id[9+i] = byte(streamSeq >> (40 - 8*i))
	}
	id[15] = byte(batchIndex)
	return id
}
