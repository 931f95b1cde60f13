// Package tally is the writer's own account of what it took from the stream: for each message, how many
// events of it went into the table, and the sum of their rows' hashes. The rollup holds it against what the
// table has (requirement: nothing is signed unless stream, table and file agree).
//
// An account is kept per message, not per hour, so that it can be written any number of times: whoever gets a
// message again writes the same. It owns the stream TALLIES and never looks at events.
package tally

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Tally is the account of one message of AUDIT.
type Tally struct {
	StreamSeq    uint64
	RecordedAt   time.Time // microseconds, UTC
	Organization string    // empty if the subject names none that is valid; Rows is then 0
	Trail        schema.Trail
	Rows         uint64 // without those that were rejected
	Sum          uint64 // of the rows' hashes, modulo 2^64: codec.Part.Sum
}

// ErrMalformed means that bytes are no tallies.
var ErrMalformed = errors.New("malformed tallies")

const version = 1

// Encode returns tallies as the payload of a message: about 15 bytes each if their lanes and numbers are close.
func Encode(tallies []Tally) []byte {
	dst := []byte{version}
	dst = binary.AppendUvarint(dst, uint64(len(tallies)))
	var last Tally
	lastMicros := int64(0)
	for i := range tallies {
		t := &tallies[i]
		if i > 0 && t.Organization == last.Organization && t.Trail == last.Trail {
			dst = append(dst, 0)
		} else {
			dst = append(dst, 1)
			dst = appendText(appendText(dst, t.Organization), string(t.Trail))
		}
		micros := t.RecordedAt.UnixMicro()
		dst = binary.AppendVarint(dst, int64(t.StreamSeq-last.StreamSeq))
		dst = binary.AppendVarint(dst, micros-lastMicros)
		dst = binary.AppendUvarint(dst, t.Rows)
		dst = binary.LittleEndian.AppendUint64(dst, t.Sum)
		last, lastMicros = *t, micros
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// Decode reads what Encode wrote.
func Decode(data []byte) ([]Tally, error) {
	if len(data) == 0 || data[0] != version {
		return nil, fmt.Errorf("%w: they begin with %.1x, want %02x", ErrMalformed, data, version)
	}
	r := reader{data: data[1:]}
	n := r.uvarint()
	if r.bad || n > uint64(len(r.data)) { // each takes more than a byte: a lie is found before anything is allocated
		return nil, fmt.Errorf("%w: %d in %d bytes", ErrMalformed, n, len(data))
	}
	tallies := make([]Tally, 0, n)
	var last Tally
	micros := int64(0)
	for i := range n {
		t := Tally{Organization: last.Organization, Trail: last.Trail}
		switch flag := r.bytes(1); {
		case r.bad:
		case flag[0] == 1:
			t.Organization = string(r.bytes(r.uvarint()))
			t.Trail = schema.Trail(r.bytes(r.uvarint()))
		case flag[0] != 0 || i == 0:
			r.bad = true
		}
		t.StreamSeq = last.StreamSeq + uint64(r.varint())
		micros += r.varint()
		t.RecordedAt = time.UnixMicro(micros).UTC()
		t.Rows = r.uvarint()
		if sum := r.bytes(8); !r.bad {
			t.Sum = binary.LittleEndian.Uint64(sum)
		}
		if r.bad {
			return nil, fmt.Errorf("%w: cut off or wrong at number %d of %d", ErrMalformed, i+1, n)
		}
		tallies, last = append(tallies, t), t
	}
	if len(r.data) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last", ErrMalformed, len(r.data))
	}
	return tallies, nil
}

// reader takes values off the front of data. Once something is missing, bad is set.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.data)
	r.skip(n)
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.data)
	r.skip(n)
	return v
}

func (r *reader) skip(n int) {
	if n <= 0 {
		r.bad, r.data = true, nil
		return
	}
	r.data = r.data[n:]
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.data)) {
		r.bad, r.data = true, nil
		return nil
	}
	v := r.data[:n]
	r.data = r.data[n:]
	return v
}
