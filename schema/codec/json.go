package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// ParseEvent reads one event from JSON. It refuses what it does not know, so that nothing an
// application says is dropped without a word: a field of another name belongs in data or attributes.
// It does not validate the values. The error answers to schema.ErrInvalid.
func ParseEvent(line []byte) (schema.Event, error) {
	var e schema.Event
	if f := schema.CheckSize(len(line)); f != nil {
		return e, f
	}
	if !utf8.Valid(line) {
		return e, &schema.Fault{Problem: "the event is not valid UTF-8", Remedy: "encode it as UTF-8"}
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return schema.Event{}, jsonFault(line, err)
	}
	if rest := bytes.TrimSpace(line[d.InputOffset():]); len(rest) > 0 {
		return schema.Event{}, &schema.Fault{Value: string(rest), Problem: "follows the event", Remedy: "put one event in a line"}
	}
	return e, nil
}

// jsonFault words an error of encoding/json as a fault of an event.
func jsonFault(line []byte, err error) *schema.Fault {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	var when *time.ParseError
	switch {
	case errors.As(err, &typ) && typ.Field == "":
		return &schema.Fault{Problem: "the event is a JSON " + typ.Value, Remedy: "give a JSON object"}
	case errors.As(err, &typ):
		return &schema.Fault{Field: typ.Field, Problem: "is a JSON " + typ.Value, Remedy: "give " + goKind(typ.Type.String())}
	case errors.As(err, &when):
		return &schema.Fault{
			Field: "occurred_at", Value: strings.Trim(when.Value, `"`), Problem: "is no time",
			Remedy: "use RFC 3339: 2026-11-22T04:05:06.789Z",
		}
	case errors.As(err, &syntax):
		return &schema.Fault{Problem: fmt.Sprintf("the event is not JSON at byte %d: %s", syntax.Offset, syntax), Remedy: "give a JSON object"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &schema.Fault{Problem: fmt.Sprintf("the event is cut off after %d bytes", len(line)), Remedy: "give a whole JSON object"}
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		name := strings.Trim(strings.TrimPrefix(err.Error(), "json: unknown field "), `"`)
		return &schema.Fault{Field: name, Problem: "is no field of an event", Remedy: "put it in data or attributes"}
	case strings.Contains(err.Error(), "UUID"):
		return &schema.Fault{Field: "id", Problem: "is no UUID", Remedy: "use a UUID, or leave it out"}
	}
	return &schema.Fault{Problem: err.Error()}
}

func goKind(t string) string {
	switch {
	case strings.HasPrefix(t, "map"), strings.HasPrefix(t, "schema.A"), strings.HasPrefix(t, "schema.C"):
		return "a JSON object"
	default:
		return "a JSON string"
	}
}

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
