package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// ErrMalformed is what bytes that are no message of their content type answer to with errors.Is.
var ErrMalformed = errors.New("malformed message")

// Block holds the events of one organization and trail by column, each column being the bytes that
// ClickHouse's Native format has for it. Blocks are therefore joined by joining bytes, and no event
// becomes a Go object on its way from a producer into ClickHouse.
//
// A Block is not safe for concurrent use.
type Block struct {
	rows  int
	bytes int
	// cols is parallel to schema.Fields. The attributes' entry holds the end offsets (UInt64, one a
	// row, cumulative); their keys and values are beside it.
	cols       [][]byte
	attrKeys   []byte
	attrValues []byte
	attrs      int // entries in attrKeys
	// given tells that producers gave some of the events their ids, so that the same event may come again.
	given bool
	// spans is parallel to cols, for a block that was parsed and not appended to; nil otherwise.
	spans []span
}

// span is what walking over a column of strings finds out about it.
type span struct {
	longest int
	empty   bool // some value is
}

// Positions of the columns that have their own treatment.
var (
	colID         = columnOf("id")
	colOccurredAt = columnOf("occurred_at")
	colOutcome    = columnOf("outcome")
	colSource     = columnOf("source")
	colAttributes = columnOf("attributes")
)

func columnOf(name string) int {
	return slices.IndexFunc(schema.Fields, func(f schema.Field) bool { return f.Column == name })
}

// nativeType is the ClickHouse type of a kind of field, as a block's header spells it.
func nativeType(k schema.Kind) string {
	switch k {
	case schema.KindID:
		return "UUID"
	case schema.KindTime:
		return "DateTime64(6, 'UTC')"
	case schema.KindMap:
		return "Map(String, String)"
	default:
		return "String"
	}
}

// NewBlock returns an empty block to append events to.
func NewBlock() *Block { return &Block{cols: make([][]byte, len(schema.Fields))} }

// Rows is the number of events in b.
func (b *Block) Rows() int { return b.rows }

// Bytes is the size of b's columns, which is that of its encoding but for a header of about 600 bytes.
func (b *Block) Bytes() int { return b.bytes }

// Reset empties b and keeps its memory.
func (b *Block) Reset() {
	for i := range b.cols {
		b.cols[i] = b.cols[i][:0]
	}
	b.attrKeys, b.attrValues = b.attrKeys[:0], b.attrValues[:0]
	b.rows, b.bytes, b.attrs, b.spans, b.given = 0, 0, 0, nil, false
}

// Append adds e, which is valid and complete: see schema.Event's Validate and Complete. Its
// organization and trail are not kept: a message's subject says both.
func (b *Block) Append(e *schema.Event) {
	b.spans = nil
	for i := range schema.Fields {
		before := len(b.cols[i])
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			b.cols[i] = appendUUID(b.cols[i], e.ID)
		case schema.KindTime:
			b.cols[i] = binary.LittleEndian.AppendUint64(b.cols[i], uint64(e.OccurredAt.UnixMicro()))
		case schema.KindText, schema.KindJSON:
			b.cols[i] = appendString(b.cols[i], f.Text(e))
		case schema.KindMap:
			before -= b.appendAttributes(e.Attributes)
		}
		b.bytes += len(b.cols[i]) - before
	}
	b.rows++
}

// MarkGiven notes that a producer gave some event of b its id. Events with ids that Kansa made need no lookup before they are stored.
func (b *Block) MarkGiven() { b.given = true }

// Given tells whether a producer gave some event of b its id.
func (b *Block) Given() bool { return b.given }

// Raw returns the event at a row as it is shown to a person: as JSON, or as a block where JSON cannot say what is in it.
func (b *Block) Raw(row int) (data []byte, contentType string) {
	one := b.row(row)
	return rawEvent(one, 0, &one.Events()[0])
}

// AppendBlock adds the events of other, of the same organization and trail, by joining bytes. It copies them.
func (b *Block) AppendBlock(other *Block) {
	b.spans = nil
	for i := range b.cols {
		if i != colAttributes {
			b.cols[i] = append(b.cols[i], other.cols[i]...)
			continue
		}
		for row := range other.rows { // ends count from the first row
			end := binary.LittleEndian.Uint64(other.cols[i][8*row:])
			b.cols[i] = binary.LittleEndian.AppendUint64(b.cols[i], uint64(b.attrs)+end)
		}
	}
	b.attrKeys = append(b.attrKeys, other.attrKeys...)
	b.attrValues = append(b.attrValues, other.attrValues...)
	b.attrs += other.attrs
	b.given = b.given || other.given
	b.rows += other.rows
	b.bytes += other.bytes
}

// blocks are used again: a block has a slice for each of its columns, and they have grown to their size.
var blocks = sync.Pool{New: func() any { return NewBlock() }}

// TakeBlock returns an empty block, perhaps with the memory of one that was given back.
func TakeBlock() *Block { return blocks.Get().(*Block) }

// GiveBack lets b be used again. It has to be one of TakeBlock, and is not to be touched afterwards.
func (b *Block) GiveBack() {
	b.Reset()
	blocks.Put(b)
}

// grow makes room for times as many events like those in b, so that its columns need not be moved again
// and again.
func (b *Block) grow(times int) {
	for i := range b.cols {
		b.cols[i] = slices.Grow(b.cols[i], times*len(b.cols[i]))
	}
	b.attrKeys = slices.Grow(b.attrKeys, times*len(b.attrKeys))
	b.attrValues = slices.Grow(b.attrValues, times*len(b.attrValues))
}

func (b *Block) size() int {
	n := len(b.attrKeys) + len(b.attrValues)
	for _, c := range b.cols {
		n += len(c)
	}
	return n
}

// appendAttributes returns by how much keys and values have grown; they are not among the columns.
func (b *Block) appendAttributes(m map[string]string) (grown int) {
	if len(m) > 0 {
		// Sorted, so that equal events have equal bytes.
		var few [16]string // seldom more
		keys := few[:0]
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		before := len(b.attrKeys) + len(b.attrValues)
		for _, k := range keys {
			b.attrKeys = appendString(b.attrKeys, k)
			b.attrValues = appendString(b.attrValues, m[k])
		}
		grown = len(b.attrKeys) + len(b.attrValues) - before
		b.attrs += len(m)
	}
	b.cols[colAttributes] = binary.LittleEndian.AppendUint64(b.cols[colAttributes], uint64(b.attrs))
	return grown
}

// ClickHouse keeps a UUID as two little-endian 64-bit halves, the more significant first.
func appendUUID(dst []byte, id uuid.UUID) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, binary.BigEndian.Uint64(id[:8]))
	return binary.LittleEndian.AppendUint64(dst, binary.BigEndian.Uint64(id[8:]))
}

func readUUID(src []byte) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], binary.LittleEndian.Uint64(src))
	binary.BigEndian.PutUint64(id[8:], binary.LittleEndian.Uint64(src[8:]))
	return id
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// AppendNative appends b in ClickHouse's Native format to dst: the payload of a columnar message.
func (b *Block) AppendNative(dst []byte) []byte {
	dst = slices.Grow(dst, b.bytes+1024)
	dst = binary.AppendUvarint(dst, uint64(len(b.cols)))
	dst = binary.AppendUvarint(dst, uint64(b.rows))
	for i, col := range b.cols {
		f := &schema.Fields[i]
		dst = appendString(dst, f.Column)
		dst = appendString(dst, nativeType(f.Kind))
		dst = append(dst, col...)
		if i == colAttributes {
			dst = append(dst, b.attrKeys...)
			dst = append(dst, b.attrValues...)
		}
	}
	return dst
}

// ParseNative reads what AppendNative wrote. The block shares data's memory. Only the structure is
// checked here, for which every length is followed to its end; [Block.Check] applies the rules of
// events. The error is [ErrMalformed] and says at which column.
func ParseNative(data []byte) (*Block, error) {
	r := reader{data: data}
	ncols, nrows := r.uvarint(), r.uvarint()
	switch {
	case r.bad:
		return nil, fmt.Errorf("%w: it ends within the header", ErrMalformed)
	case ncols != uint64(len(schema.Fields)):
		return nil, fmt.Errorf("%w: %d columns, want %d", ErrMalformed, ncols, len(schema.Fields))
	case nrows == 0 || nrows > schema.MaxMessageEvents:
		return nil, fmt.Errorf("%w: %d events, want 1 to %d", ErrMalformed, nrows, schema.MaxMessageEvents)
	}
	b := NewBlock()
	b.rows, b.spans = int(nrows), make([]span, len(schema.Fields))
	for i := range schema.Fields {
		f := &schema.Fields[i]
		name, typ := r.bytes(), r.bytes()
		if r.bad || string(name) != f.Column || string(typ) != nativeType(f.Kind) {
			return nil, fmt.Errorf("%w: column %d is %.64q of type %.64q, want %q of type %q",
				ErrMalformed, i, name, typ, f.Column, nativeType(f.Kind))
		}
		switch f.Kind {
		case schema.KindID:
			b.cols[i] = r.take(16 * b.rows)
		case schema.KindTime:
			b.cols[i] = r.take(8 * b.rows)
		case schema.KindText, schema.KindJSON:
			b.cols[i], b.spans[i] = r.strings(b.rows)
		case schema.KindMap:
			if err := b.parseAttributes(&r); err != nil {
				return nil, err
			}
		}
		if r.bad {
			return nil, fmt.Errorf("%w: it ends within column %q", ErrMalformed, f.Column)
		}
	}
	if len(r.data) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last column", ErrMalformed, len(r.data))
	}
	b.bytes = b.size()
	return b, nil
}

func (b *Block) parseAttributes(r *reader) error {
	b.cols[colAttributes] = r.take(8 * b.rows)
	if r.bad {
		return nil // the caller says where
	}
	last := uint64(0)
	for i := range b.rows {
		end := binary.LittleEndian.Uint64(b.cols[colAttributes][8*i:])
		// Every entry takes two bytes at least, so a lying count is found before anything is walked.
		if end < last || end > uint64(len(r.data)) {
			return fmt.Errorf("%w: attributes of event %d end at %d, after %d", ErrMalformed, i, end, last)
		}
		last = end
	}
	b.attrs = int(last)
	b.attrKeys, _ = r.strings(b.attrs)
	b.attrValues, _ = r.strings(b.attrs)
	return nil
}

func (b *Block) occurredAt(row int) time.Time {
	return time.UnixMicro(int64(binary.LittleEndian.Uint64(b.cols[colOccurredAt][8*row:]))).UTC()
}

func (b *Block) attrRange(row int) (first, end int) {
	offsets := b.cols[colAttributes]
	if row > 0 {
		first = int(binary.LittleEndian.Uint64(offsets[8*(row-1):]))
	}
	return first, int(binary.LittleEndian.Uint64(offsets[8*row:]))
}

func (b *Block) eachAttribute(visit func(row int, key, value string)) {
	if b.attrs == 0 {
		return
	}
	keys, values := reader{data: b.attrKeys}, reader{data: b.attrValues}
	for row := range b.rows {
		for first, end := b.attrRange(row); first < end; first++ {
			visit(row, keys.string(), values.string())
		}
	}
}

// Complete fills in what a producer that is not the SDK may leave out: id makes the id of the event
// at a row, and must give the same one each time the message is delivered; the outcome becomes
// success. The filled columns are new memory.
func (b *Block) Complete(id func(row int) uuid.UUID) {
	var zero [16]byte
	for row := range b.rows {
		at := b.cols[colID][16*row : 16*row+16]
		if bytes.Equal(at, zero[:]) {
			ids := slices.Clone(b.cols[colID])
			for ; row < b.rows; row++ {
				if bytes.Equal(ids[16*row:16*row+16], zero[:]) {
					appendUUID(ids[16*row:16*row], id(row))
				}
			}
			b.cols[colID] = ids
			break
		}
	}
	r := reader{data: b.cols[colOutcome]}
	missing := false
	for range b.rows {
		missing = r.string() == "" || missing
	}
	if missing {
		filled := make([]byte, 0, 8*b.rows)
		r = reader{data: b.cols[colOutcome]}
		for range b.rows {
			if v := r.string(); v != "" {
				filled = appendString(filled, v)
			} else {
				filled = appendString(filled, string(schema.Success))
			}
		}
		b.bytes += len(filled) - len(b.cols[colOutcome])
		b.cols[colOutcome], b.spans = filled, nil
	}
}

// Events returns the events of b as Go values, for the few places that want them so: dead letters,
// the live tail, tests. Organization and trail are left for the caller to set.
func (b *Block) Events() []schema.Event {
	events := make([]schema.Event, b.rows)
	for i := range schema.Fields {
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			for row := range events {
				events[row].ID = readUUID(b.cols[i][16*row:])
			}
		case schema.KindTime:
			for row := range events {
				events[row].OccurredAt = b.occurredAt(row)
			}
		case schema.KindText, schema.KindJSON:
			r := reader{data: b.cols[i]}
			for row := range events {
				f.SetText(&events[row], string(r.bytes()))
			}
		case schema.KindMap:
			b.eachAttribute(func(row int, k, v string) {
				if events[row].Attributes == nil {
					events[row].Attributes = map[string]string{}
				}
				events[row].Attributes[string([]byte(k))] = string([]byte(v))
			})
		}
	}
	return events
}

// Without returns a block of the events of b that are not at the given rows, which are in order.
func (b *Block) Without(rows []int) *Block {
	out := NewBlock()
	out.given = b.given
	for i, e := range b.Events() {
		if len(rows) > 0 && rows[0] == i {
			rows = rows[1:]
			continue
		}
		out.Append(&e)
	}
	return out
}

// row returns a block of the one event at a row, byte for byte. It walks all columns: it is for the rare
// event that can't be told otherwise.
func (b *Block) row(row int) *Block {
	out := &Block{rows: 1, cols: make([][]byte, len(b.cols))}
	for i := range schema.Fields {
		switch schema.Fields[i].Kind {
		case schema.KindID:
			out.cols[i] = b.cols[i][16*row : 16*row+16]
		case schema.KindTime:
			out.cols[i] = b.cols[i][8*row : 8*row+8]
		case schema.KindText, schema.KindJSON:
			r := reader{data: b.cols[i]}
			r.strings(row)
			out.cols[i], _ = r.strings(1)
		case schema.KindMap:
			first, end := b.attrRange(row)
			keys, values := reader{data: b.attrKeys}, reader{data: b.attrValues}
			keys.strings(first)
			values.strings(first)
			out.attrs = end - first
			out.attrKeys, _ = keys.strings(out.attrs)
			out.attrValues, _ = values.strings(out.attrs)
			out.cols[i] = binary.LittleEndian.AppendUint64(nil, uint64(out.attrs))
		}
	}
	out.bytes = out.size()
	return out
}

// reader takes Native values off the front of data. Once something is missing, bad is set and every
// further value is empty.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) uvarint() uint64 {
	// One byte is the rule: most strings are short.
	if len(r.data) > 0 && r.data[0] < 0x80 {
		v := r.data[0]
		r.data = r.data[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad, r.data = true, nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.data) {
		r.bad, r.data = true, nil
		return nil
	}
	v := r.data[:n:n]
	r.data = r.data[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.data)) {
		r.bad, r.data = true, nil
		return nil
	}
	return r.take(int(n))
}

// string is bytes without a copy: it lives as long as the block.
func (r *reader) string() string {
	v := r.bytes()
	return unsafe.String(unsafe.SliceData(v), len(v))
}

// strings walks over n strings and returns their bytes. It is the one walk that every column of every
// message gets, so it does by hand what bytes does.
func (r *reader) strings(n int) (all []byte, s span) {
	data, pos := r.data, 0
	for range n {
		if pos >= len(data) {
			r.bad, r.data = true, nil
			return nil, span{}
		}
		size := int(data[pos])
		pos++
		if size >= 0x80 {
			v, k := binary.Uvarint(data[pos-1:])
			if k <= 0 || v > uint64(len(data)) {
				r.bad, r.data = true, nil
				return nil, span{}
			}
			size = int(v)
			pos += k - 1
		}
		if size > len(data)-pos {
			r.bad, r.data = true, nil
			return nil, span{}
		}
		pos += size
		s.longest = max(s.longest, size)
		s.empty = s.empty || size == 0
	}
	r.data = data[pos:]
	return data[:pos:pos], s
}
