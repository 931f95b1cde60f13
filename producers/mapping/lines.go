package mapping

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// maxLine bounds a line of input. A record may be larger than the event made of it.
const maxLine = 8 << 20

// Line is one line of input: an event, or why it is none.
type Line struct {
	Number int
	Offset int64  // of its first byte, in the input without compression
	Size   int64  // with its end
	Raw    []byte // without spaces around it; valid until the next line
	Event  schema.Event
	Err    error
}

// Options of Lines.
type Options struct {
	// Mapping is nil for lines that are events already.
	Mapping *Mapping
	// Organization and Trail, if set, replace those of every event.
	Organization string
	Trail        schema.Trail
	Now          func() time.Time // default time.Now
	// From is the number of the first line to yield; lines before it are read, and skipped. Default
	// 1.
	From int
}

// Lines reads events from NDJSON, gzip or not, a line at a time. Events without an id get one made of
// their bytes and their place, so that reading the same input again gives the same events. Every event it
// yields is valid. The last pair has an error if the input can't be read further.
func Lines(input io.Reader, o Options) iter.Seq2[Line, error] {
	if o.Now == nil {
		o.Now = time.Now
	}
	return func(yield func(Line, error) bool) {
		r := bufio.NewReaderSize(input, 1<<20)
		if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
			gz, err := gzip.NewReader(r)
			if err != nil {
				yield(Line{}, fmt.Errorf("open gzip: %w", err))
				return
			}
			r = bufio.NewReaderSize(gz, 1<<20)
		}
		next := int64(0)
		for n := 1; ; n++ {
			raw, size, long, err := readLine(r)
			offset := next
			next += size
			last := errors.Is(err, io.EOF)
			if err != nil && !last {
				yield(Line{}, fmt.Errorf("read line %d: %w", n, err))
				return
			}
			if n == 1 {
				raw = bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf")) // what Windows puts first
			}
			if text := bytes.TrimSpace(raw); len(text) > 0 && n >= o.From {
				line := Line{Number: n, Offset: offset, Size: size, Raw: text}
				if long {
					line.Err = &schema.Fault{Problem: fmt.Sprintf("the line is longer than %d bytes", maxLine), Remedy: "put one record in a line"}
				} else {
					line.Event, line.Err = o.parse(text, n)
				}
				if !yield(line, nil) {
					return
				}
			}
			if last {
				return
			}
		}
	}
}

// readLine returns the next line and its size; of one that is too long it keeps the beginning and
// drops the rest.
func readLine(r *bufio.Reader) (line []byte, size int64, long bool, err error) {
	for {
		chunk, err := r.ReadSlice('\n')
		size += int64(len(chunk))
		switch {
		case !long && len(line)+len(chunk) <= maxLine:
			line = append(line, chunk...)
		default:
			long = true
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, size, long, err
		}
	}
}

func (o *Options) parse(text []byte, n int) (e schema.Event, err error) {
	if o.Mapping != nil {
		e, err = o.Mapping.Apply(text)
	} else {
		e, err = codec.ParseEvent(text)
	}
	if err != nil {
		return e, err
	}
	if o.Organization != "" {
		e.Organization = o.Organization
	}
	if o.Trail != "" {
		e.Trail = o.Trail
	}
	if e.ID == uuid.Nil {
		e.ID = contentID(text, n)
	}
	now := o.Now()
	e.Complete(now)
	return e, e.Validate(now)
}

// contentID is a UUIDv8 (RFC 9562) of a line and its number: equal lines of one input are different events.
func contentID(text []byte, n int) (id uuid.UUID) {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	h.Write(text)
	copy(id[:], h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
