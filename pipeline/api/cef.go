package api

import (
	"errors"
	"fmt"
	"io"

	"github.com/kansa-audit/kansa/schema/codec"
)

// encoded is the text of events in another format, made while it is read, from their CSV: however many there are, one
// is in memory at a time.
type encoded struct {
	csv     io.ReadCloser
	events  *codec.CSVReader
	encoder *codec.Encoder
	event   codec.Stored
	text    []byte // that was not read yet is from at
	at      int
	err     error
}

// newCEF reads CSV as CEF. A value that is too long for its key has its SHA-256 in its place; the whole one is in the
// event, whose id is there as externalId.
func newCEF(csv io.ReadCloser) (io.ReadCloser, error) {
	encoder, err := codec.NewEncoder(codec.Options{Format: codec.FormatCEF, Overflow: func(codec.Overflow) {}})
	if err != nil {
		return nil, err
	}
	return &encoded{csv: csv, events: codec.NewCSVReader(csv), encoder: encoder}, nil
}

// encodedAtOnce is how much text is made at once, about.
const encodedAtOnce = 64 << 10

func (e *encoded) Read(p []byte) (int, error) {
	for e.at == len(e.text) && e.err == nil {
		e.text, e.at = e.text[:0], 0
		for e.err == nil && len(e.text) < encodedAtOnce {
			if e.err = e.events.Next(&e.event); e.err == nil {
				e.text = e.encoder.Append(e.text, &e.event)
			}
		}
		if e.err != nil && !errors.Is(e.err, io.EOF) {
			e.err = fmt.Errorf("read events as CSV: %w", e.err)
		}
	}
	n := copy(p, e.text[e.at:])
	if e.at += n; n == 0 && len(p) > 0 {
		return 0, e.err
	}
	return n, nil
}

func (e *encoded) Close() error { return e.csv.Close() }
