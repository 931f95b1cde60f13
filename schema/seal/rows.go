package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/schema"
)

// ErrText means that a text is not the CSV of its partition. The error is a *TextError.
var ErrText = errors.New("not the CSV of this partition")

// TextError says what is wrong with a CSV text, and where.
type TextError struct {
	Row     uint64 // 1 is the first row; 0 the header line
	Offset  int64  // where the row begins in the text, in bytes
	Problem string
}

func (e *TextError) Error() string {
	if e.Row == 0 {
		return fmt.Sprintf("header line: %s", e.Problem)
	}
	return fmt.Sprintf("row %d, at byte %d: %s", e.Row, e.Offset, e.Problem)
}

// Is makes errors.Is(err, ErrText) hold.
func (e *TextError) Is(target error) bool { return target == ErrText }

// maxRow bounds a line: every byte of the largest event may be a quote and so be there twice.
const maxRow = 4 * schema.MaxEventBytes

// The columns that Rows looks at; every schema version begins with them.
const (
	columnRecordedAt = iota
	columnStreamSeq
	columnBatchIndex
	columnOrganization
	columnTrail
	fixedColumns
)

// timeLayout is how times are written in a partition; of two texts of it, the earlier time is the lesser.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// Row is one row of a partition while it passes. Its slices are valid until the function that got it returns.
type Row struct {
	Index  uint64 // from 0: the leaf's index in the Merkle tree
	Text   []byte // as it stands in the text, CRLF included
	joined []byte
	ends   []int
}

// Field is the value of a column, unquoted.
func (r Row) Field(i int) []byte {
	if i == 0 {
		return r.joined[:r.ends[0]]
	}
	return r.joined[r.ends[i-1]+1 : r.ends[i]]
}

// Rows is an io.Writer through which the CSV text of a partition passes once, in pieces cut anywhere,
// and which then says what a manifest states of it. It checks on the way that the text is CSV of the
// given columns and UTF-8, that each row is of the partition, and that rows are in order, none twice.
//
// It keeps the row that is not whole and the right border of the Merkle tree, no more, and allocates
// nothing for a row.
type Rows struct {
	// Each, if set, is called with every row. If it returns true, the proof of the row is kept for Proof;
	// only one can be asked for.
	Each func(Row) bool
	// Expect is the number of rows that there will be; it has to be set for a proof.
	Expect uint64

	organization, trail, from, to string
	header                        []byte
	columns                       int

	begun  bool // the header line has passed
	part   []byte
	quoted bool // at the end of part
	offset int64
	size   int64
	joined []byte
	ends   []int
	last   position
	before []byte // recorded_at of last
	first  uint64
	most   uint64

	digest Digest
	text   hash.Hash
	crc    uint32
	leaf   hash.Hash
	sum    []byte
	tree   *tree
	proof  *Proof
	err    error
}

type position struct{ seq, index uint64 }

// NewRows returns a Rows for the text of p, whose columns are named. The first five are recorded_at,
// stream_seq, batch_index, organization and trail.
func NewRows(p schema.Partition, columns []string) *Rows {
	r := &Rows{
		organization: p.Organization, trail: string(p.Trail),
		from: p.Hour.UTC().Format(timeLayout), to: p.End().UTC().Format(timeLayout),
		columns: len(columns), ends: make([]int, len(columns)),
		text: sha256.New(), leaf: sha256.New(), tree: newTree(), before: make([]byte, 0, len(timeLayout)),
	}
	for i, c := range columns {
		if i > 0 {
			r.header = append(r.header, ',')
		}
		r.header = append(append(append(r.header, '"'), c...), '"')
	}
	r.header = append(r.header, '\r', '\n')
	return r
}

// Write takes the next piece of the text. After an error, nothing more is taken.
func (r *Rows) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	_, _ = r.text.Write(p)
	r.crc = crc32.Update(r.crc, crc32.IEEETable, p)
	r.size += int64(len(p))
	for rest := p; len(rest) > 0; {
		n, whole := r.lineEnd(rest)
		if len(r.part)+n > maxRow {
			r.err = r.fault("it is longer than %d bytes, or its quotes are not balanced", maxRow)
			return 0, r.err
		}
		line := rest[:n]
		if !whole || len(r.part) > 0 {
			r.part = append(r.part, line...)
			line = r.part
		}
		if !whole {
			break
		}
		if r.err = r.line(line); r.err != nil {
			return 0, r.err
		}
		r.offset += int64(len(line))
		r.part, rest = r.part[:0], rest[n:]
	}
	return len(p), nil
}

// lineEnd returns how much of p belongs to the line it goes on with, and whether that ends there. A line
// break within quotes is none; escaped quotes come in pairs, so that every quote may be counted.
func (r *Rows) lineEnd(p []byte) (n int, whole bool) {
	for from := 0; ; {
		i := bytes.IndexByte(p[from:], '\n')
		seg := p[from:]
		if i >= 0 {
			seg = seg[:i]
		}
		if bytes.Count(seg, quote)%2 == 1 {
			r.quoted = !r.quoted
		}
		if i < 0 {
			return len(p), false
		}
		if from += i + 1; !r.quoted {
			return from, true
		}
	}
}

var (
	quote      = []byte{'"'}
	leafPrefix = []byte{0}
)

func (r *Rows) fault(format string, v ...any) error {
	e := &TextError{Offset: r.offset, Problem: fmt.Sprintf(format, v...)}
	if r.begun {
		e.Row = r.digest.Rows + 1
	}
	return e
}

// line takes a whole line, which ends in a line feed.
func (r *Rows) line(line []byte) error {
	if !r.begun {
		if !bytes.Equal(line, r.header) {
			return r.fault("it is %.200q, not %q", line, r.header)
		}
		r.begun = true
		return nil
	}
	if err := r.split(line); err != nil {
		return err
	}
	if !utf8.Valid(line) {
		return r.fault("it is not UTF-8")
	}
	row := Row{Index: r.digest.Rows, Text: line, joined: r.joined, ends: r.ends}
	if err := r.check(row); err != nil {
		return err
	}
	if r.Each != nil && r.Each(row) {
		if err := r.follow(row); err != nil {
			return err
		}
	}
	r.digest.Add(RowHash(r.joined))
	r.leaf.Reset()
	_, _ = r.leaf.Write(leafPrefix)
	_, _ = r.leaf.Write(line)
	r.sum = r.leaf.Sum(r.sum[:0])
	if err := r.tree.add(r.sum); err != nil {
		return r.fault("%v", err)
	}
	return nil
}

func (r *Rows) follow(row Row) error {
	if r.proof != nil {
		return fmt.Errorf("prove row %d: only one row can be proved at a time", row.Index+1)
	}
	if err := r.tree.follow(r.Expect); err != nil {
		return r.fault("there are more than the %d rows expected", r.Expect)
	}
	r.proof = &Proof{Version: 1, Index: row.Index, Row: string(row.Text)}
	return nil
}

// split takes a line apart, leaving its values in joined and where they end in ends.
func (r *Rows) split(line []byte) error {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return r.fault("it does not end in CRLF")
	}
	if need := len(line) + 8; cap(r.joined) < need { // what is copied is never longer, but in steps of eight bytes
		r.joined = make([]byte, 2*need)
	}
	joined := r.joined[:cap(r.joined)]
	i, j := 0, 0
	for column := 0; ; column++ {
		if column == r.columns {
			return r.fault("it has more than %d columns", r.columns)
		}
		if line[i] == '"' {
			for i++; ; {
				n := copyToQuote(joined[j:], line[i:])
				if i, j = i+n, j+n; i == len(line) {
					return r.fault("the quotes of column %d are not balanced", column+1)
				}
				if i++; line[i] != '"' { // there is a byte: the line ends in a line feed
					break
				}
				joined[j] = '"'
				i, j = i+1, j+1
			}
		} else {
			for ; line[i] != ',' && line[i] != '\r'; i, j = i+1, j+1 {
				if line[i] == '"' || line[i] == '\n' {
					return r.fault("column %d has a quote or a line feed that is not in quotes", column+1)
				}
				joined[j] = line[i]
			}
		}
		r.ends[column] = j
		switch {
		case line[i] == ',':
			joined[j] = Separator
			i, j = i+1, j+1
		case line[i] != '\r' || i != len(line)-2:
			return r.fault("column %d goes on after its end", column+1)
		case column != r.columns-1:
			return r.fault("it has %d columns, not %d", column+1, r.columns)
		default:
			r.joined = joined[:j]
			return nil
		}
	}
}

// copyToQuote copies src up to its first quote and returns how much that is. dst has eight bytes more than
// src. Fields are short, so that a call of bytes.IndexByte and one of copy would cost more than they do.
func copyToQuote(dst, src []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(src); i += 8 {
		v := binary.LittleEndian.Uint64(src[i:])
		binary.LittleEndian.PutUint64(dst[i:], v)
		x := v ^ ones*'"' // a quote is a zero byte now, and the first zero byte is found so
		if found := (x - ones) &^ x & highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(src) && src[i] != '"'; i++ {
		dst[i] = src[i]
	}
	return i
}

// check holds a row against the partition and the row before it.
func (r *Rows) check(row Row) error {
	at, org, trail := row.Field(columnRecordedAt), row.Field(columnOrganization), row.Field(columnTrail)
	switch {
	case string(org) != r.organization || string(trail) != r.trail:
		return r.fault("it is of %q/%q, not of %s/%s", org, trail, r.organization, r.trail)
	case !isTime(at):
		return r.fault("recorded_at is %q, not of the form 2026-11-22T04:05:06.789012Z", at)
	case string(at) < r.from || string(at) >= r.to:
		return r.fault("recorded_at %s is not within the hour from %s to %s", at, r.from, r.to)
	}
	seq, okSeq := number(row.Field(columnStreamSeq))
	index, okIndex := number(row.Field(columnBatchIndex))
	if !okSeq || !okIndex {
		return r.fault("stream_seq is %q and batch_index %q: they have to be numbers", row.Field(columnStreamSeq), row.Field(columnBatchIndex))
	}
	if row.Index > 0 && compare(r.before, at, r.last, position{seq, index}) >= 0 {
		return r.fault("event %d.%d of %s does not come after event %d.%d of %s", seq, index, at, r.last.seq, r.last.index, r.before)
	}
	if row.Index == 0 || seq < r.first {
		r.first = seq
	}
	r.most = max(r.most, seq)
	r.before, r.last = append(r.before[:0], at...), position{seq, index}
	return nil
}

func compare(at, bt []byte, a, b position) int {
	switch {
	case !bytes.Equal(at, bt):
		return bytes.Compare(at, bt)
	case a.seq != b.seq:
		if a.seq < b.seq {
			return -1
		}
		return 1
	case a.index < b.index:
		return -1
	case a.index > b.index:
		return 1
	}
	return 0
}

// isTime tells whether b has the form of timeLayout. Which digits are a date is not its matter: the
// text lies between two that are.
func isTime(b []byte) bool {
	const form = "0000-00-00T00:00:00.000000Z"
	if len(b) != len(form) {
		return false
	}
	for i := range b {
		if form[i] == '0' {
			if b[i] < '0' || b[i] > '9' {
				return false
			}
		} else if b[i] != form[i] {
			return false
		}
	}
	return true
}

// number reads a decimal number without sign or leading zeros.
func number(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 20 || b[0] == '0' && len(b) > 1 || b[0] == '+' {
		return 0, false
	}
	if len(b) < 19 {
		var n uint64
		for _, c := range b {
			if c < '0' || c > '9' {
				return 0, false
			}
			n = n*10 + uint64(c-'0')
		}
		return n, true
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	return n, err == nil
}

// Content is what a manifest states of a partition's text.
type Content struct {
	Rows              uint64
	FirstSeq, LastSeq uint64
	Digest            Digest
	Bytes             int64
	SHA256            Hash
	CRC32             uint32
	Root              Hash
}

// Close ends the text and returns what is in it. A text without any bytes has no rows; any other has a
// header line, and ends with a whole line.
func (r *Rows) Close() (Content, error) {
	if r.err == nil && len(r.part) > 0 {
		if r.quoted {
			r.err = r.fault("its quotes are not balanced")
		} else {
			r.err = r.fault("the text ends within it: the last line has to end in CRLF")
		}
	}
	if r.err != nil {
		return Content{}, r.err
	}
	c := Content{
		Rows: r.digest.Rows, FirstSeq: r.first, LastSeq: r.most, Digest: r.digest, Bytes: r.size, CRC32: r.crc,
	}
	r.text.Sum(c.SHA256[:0])
	var err error
	c.Root, err = r.tree.root()
	return c, err
}

// Proof returns the proof of the row that Each chose, after Close; its manifest is the caller's to set.
// It returns nil if no row was chosen.
func (r *Rows) Proof() (*Proof, error) {
	if r.proof == nil {
		return nil, nil
	}
	if r.digest.Rows != r.Expect {
		return nil, fmt.Errorf("prove a row: there are %d rows, %d were expected", r.digest.Rows, r.Expect)
	}
	hashes, err := r.tree.path.hashes()
	if err != nil {
		return nil, fmt.Errorf("prove a row: %w", err)
	}
	p := *r.proof
	p.Path = make([]string, len(hashes))
	for i := range hashes {
		p.Path[i] = hex.EncodeToString(hashes[i][:])
	}
	return &p, nil
}
