package codec

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// ErrCSV means that a text is not the CSV of a partition, as AppendCSVHeader and AppendCSV write it.
var ErrCSV = errors.New("not the CSV of a partition")

const (
	readBuffer = 256 << 10
	// longestRow bounds a line: every byte of the largest event may be a quote, and so be there twice.
	longestRow = 4*schema.MaxEventBytes + 4096
	longForm   = len("2006-01-02T15:04:05.000000Z")
)

// A CSVReader reads the events of a partition's CSV, one after another. It takes that form and no other: the header
// line of CSVColumns, CRLF, quotes around all values but numbers. It allocates nothing for an event without
// attributes.
type CSVReader struct {
	in       io.Reader
	buf      []byte
	at, have int // buf[at:have] is read and not given yet
	ended    bool
	failed   error
	begun    bool
	rows     uint64
	values   []string
	scratch  []byte // values that had quotes
	attrs    parser
	times    [2]secondCache
	owner    string // an organization that was checked
}

// NewCSVReader returns a reader of in, which it reads in large pieces.
func NewCSVReader(in io.Reader) *CSVReader {
	return &CSVReader{in: in, buf: make([]byte, readBuffer), values: make([]string, len(CSVColumns))}
}

// Reset makes r read in from its beginning.
func (r *CSVReader) Reset(in io.Reader) {
	*r = CSVReader{in: in, buf: r.buf, values: r.values, scratch: r.scratch, attrs: r.attrs}
}

// Rows is how many events were read.
func (r *CSVReader) Rows() uint64 { return r.rows }

// Next reads the next event into e, which is overwritten, or returns io.EOF behind the last. The texts of e, and its
// attributes, are good until the next call. Any other error answers to ErrCSV or is one of reading, and stays.
func (r *CSVReader) Next(e *Stored) error {
	if r.failed == nil {
		if !r.begun {
			r.failed = r.header()
		}
		if r.failed == nil {
			r.failed = r.next(e)
		}
	}
	return r.failed
}

var csvHeader = AppendCSVHeader(nil)

func (r *CSVReader) header() error {
	for r.have < len(csvHeader) && !r.ended {
		if err := r.fill(); err != nil {
			return err
		}
	}
	if r.have == 0 {
		return io.EOF // no text at all is that of an hour without events
	}
	if !bytes.HasPrefix(r.buf[:r.have], csvHeader) {
		return fmt.Errorf("%w: the header line is %.200q", ErrCSV, r.buf[:r.have])
	}
	r.at, r.begun = len(csvHeader), true
	return nil
}

func (r *CSVReader) fault(format string, v ...any) error {
	return fmt.Errorf("%w: row %d: %s", ErrCSV, r.rows+1, fmt.Sprintf(format, v...))
}

// fill reads until the buffer is full or the text ends. What was not given yet moves to the front.
func (r *CSVReader) fill() error {
	if r.at > 0 {
		r.have = copy(r.buf, r.buf[r.at:r.have])
		r.at = 0
	}
	if r.have == len(r.buf) {
		r.buf = append(r.buf, make([]byte, len(r.buf))...)
	}
	for r.have < len(r.buf) {
		n, err := r.in.Read(r.buf[r.have:])
		r.have += n
		if errors.Is(err, io.EOF) {
			r.ended = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *CSVReader) next(e *Stored) error {
	for {
		n, whole, err := r.split(r.buf[r.at:r.have])
		if err != nil {
			return err
		}
		if whole {
			line := r.buf[r.at : r.at+n]
			if !utf8.Valid(line) {
				return r.fault("it is not UTF-8")
			}
			r.at += n
			if err := r.event(e); err != nil {
				return err
			}
			r.rows++
			return nil
		}
		switch {
		case r.ended && r.at == r.have:
			return io.EOF
		case r.have-r.at > longestRow:
			return r.fault("it is longer than %d bytes, or its quotes are not balanced", longestRow)
		case r.ended:
			return r.fault("the text ends within it")
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// text is b as a string, good as long as b is.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// split takes the line apart with which b begins, and returns its length; whole is false if b ends before it does.
func (r *CSVReader) split(b []byte) (n int, whole bool, _ error) {
	r.scratch = r.scratch[:0]
	i, last := 0, len(r.values)-1
	for c := range r.values {
		if c == columnStreamSeq || c == columnBatchIndex {
			first := i
			for i < len(b) && '0' <= b[i] && b[i] <= '9' {
				i++
			}
			r.values[c] = text(b[first:i])
		} else {
			if i >= len(b) {
				return 0, false, nil
			}
			if b[i] != '"' {
				return 0, false, r.fault("column %s is not in quotes", CSVColumns[c])
			}
			value, end := r.quoted(b, i+1)
			if end < 0 {
				return 0, false, nil
			}
			r.values[c], i = text(value), end
		}
		if i >= len(b) || c == last && i+1 >= len(b) {
			return 0, false, nil
		}
		switch {
		case c < last && b[i] != ',':
			return 0, false, r.fault("there is %q behind column %s", b[i], CSVColumns[c])
		case c == last && (b[i] != '\r' || b[i+1] != '\n'):
			return 0, false, r.fault("it does not end in CRLF behind column %s", CSVColumns[c])
		}
		i++
	}
	return i + 1, true, nil
}

// The columns that are numbers.
const (
	columnStreamSeq  = 1
	columnBatchIndex = 2
	columnRecordedBy = 5
	ownColumns       = 6 // before those of schema.Fields
)

// quoted returns the value whose opening quote is before i, and the index behind its closing one; -1 if b ends first.
func (r *CSVReader) quoted(b []byte, i int) ([]byte, int) {
	first := i
	mark := len(r.scratch)
	for {
		k := bytes.IndexByte(b[i:], '"')
		if k < 0 || i+k+1 >= len(b) {
			return nil, -1
		}
		i += k
		if b[i+1] != '"' {
			if len(r.scratch) == mark {
				return b[first:i], i + 1
			}
			r.scratch = append(r.scratch, b[first:i]...)
			return r.scratch[mark:], i + 1
		}
		r.scratch = append(r.scratch, b[first:i+1]...)
		i += 2
		first = i
	}
}

// event makes the event of the values.
func (r *CSVReader) event(e *Stored) error {
	*e = Stored{}
	v := r.values
	var ok bool
	if e.RecordedAt, ok = r.times[0].parse(v[0]); !ok {
		return r.fault("recorded_at is %.64q, not of the form 2026-11-22T04:05:06.789012Z", v[0])
	}
	if e.StreamSeq, ok = decimal(v[columnStreamSeq], 64); !ok {
		return r.fault("stream_seq is %.64q, which is no number", v[columnStreamSeq])
	}
	index, ok := decimal(v[columnBatchIndex], 32)
	if !ok {
		return r.fault("batch_index is %.64q, which is no number", v[columnBatchIndex])
	}
	e.BatchIndex = uint32(index)
	if v[3] != r.owner {
		if f := schema.CheckOrganization(v[3]); f != nil {
			return r.fault("%v", f)
		}
		r.owner = string([]byte(v[3]))
	}
	e.Organization, e.Trail = r.owner, schema.Trail(v[4])
	if !e.Trail.Valid() {
		return r.fault("trail is %.64q", v[4])
	}
	e.RecordedBy = v[columnRecordedBy]
	for i := range schema.Fields {
		value := v[ownColumns+i]
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			if e.ID, ok = parseUUID(value); !ok {
				return r.fault("id is %.64q, which is no UUID in lower case", value)
			}
		case schema.KindTime:
			if e.OccurredAt, ok = r.times[1].parse(value); !ok {
				return r.fault("%s is %.64q, not of the form 2026-11-22T04:05:06.789012Z", f.Column, value)
			}
		case schema.KindText:
			f.ShareText(&e.Event, value)
		case schema.KindJSON:
			if value == "" {
				continue
			}
			if !schema.ValidJSON(value) {
				return r.fault("%s is not JSON: %.64q", f.Column, value)
			}
			f.ShareText(&e.Event, value)
		case schema.KindMap:
			if value == "{}" {
				continue
			}
			r.attrs.s, r.attrs.i, r.attrs.scratch = value, 0, r.attrs.scratch[:0]
			if fault := r.attrs.attributes(&e.Event); fault != nil || r.attrs.i != len(value) || e.Attributes == nil {
				return r.fault("attributes is %.64q, not a JSON object of strings", value)
			}
		}
	}
	return nil
}

// decimal reads a number without sign or leading zeros.
func decimal(s string, bits int) (uint64, bool) {
	if s == "" || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, bits)
	return n, err == nil
}

func parseUUID(s string) (id uuid.UUID, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, false
	}
	var digits [32]byte
	n := copy(digits[:], s[:8])
	n += copy(digits[n:], s[9:13])
	n += copy(digits[n:], s[14:18])
	n += copy(digits[n:], s[19:23])
	copy(digits[n:], s[24:])
	for _, c := range digits {
		if 'A' <= c && c <= 'F' {
			return id, false
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	return id, err == nil
}

// secondCache reads times in TimeLayout, and remembers the second, which is mostly that of the time before.
type secondCache struct {
	text   [len("2006-01-02T15:04:05.")]byte
	second int64
}

func (c *secondCache) parse(s string) (time.Time, bool) {
	if len(s) != longForm || s[longForm-1] != 'Z' {
		return time.Time{}, false
	}
	if s[:len(c.text)] != string(c.text[:]) {
		at, err := time.Parse(TimeLayout, s)
		if err != nil || s[19] != '.' {
			return time.Time{}, false
		}
		copy(c.text[:], s)
		c.second = at.Unix()
		return at, true
	}
	micros := int64(0)
	for _, d := range []byte(s[len(c.text) : longForm-1]) {
		if d < '0' || d > '9' {
			return time.Time{}, false
		}
		micros = micros*10 + int64(d-'0')
	}
	return time.Unix(c.second, micros*1000).UTC(), true
}
