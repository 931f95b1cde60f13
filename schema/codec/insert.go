package codec

import (
	"cmp"
	"encoding/binary"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// Part is the events of one message on their way into a table.
type Part struct {
	Organization string
	Trail        schema.Trail
	RecordedAt   time.Time
	StreamSeq    uint64
	RecordedBy   string // the credential that published the message
	// ExpiresAt is when the organization's retention ends for these events.
	ExpiresAt time.Time
	Block     *Block
	Index     []uint32 // as in Decoded
}

// Drop removes the events at the given rows, which are in order. The others keep their places in the message.
func (p *Part) Drop(rows []int) {
	index := make([]uint32, 0, p.Block.Rows()-len(rows))
	for _, row := range indexWithout(p.Block.Rows(), rows) {
		if p.Index != nil {
			row = p.Index[row]
		}
		index = append(index, row)
	}
	p.Block, p.Index = p.Block.Without(rows), index
}

// ID returns the id of the event at a row.
func (b *Block) ID(row int) uuid.UUID { return readUUID(b.cols[colID][16*row:]) }

// Insert joins the parts of one insert into audit_events. The zero value is ready to use.
type Insert struct {
	parts []Part
	rows  int
	bytes int
}

// Add appends a part.
func (in *Insert) Add(p Part) {
	in.parts = append(in.parts, p)
	in.rows += p.Block.Rows()
	in.bytes += p.Block.Bytes()
}

// Rows is the number of events added, and Bytes the size of their columns.
func (in *Insert) Rows() int { return in.rows }

// Bytes is the size of the columns of the events added.
func (in *Insert) Bytes() int { return in.bytes }

// Parts returns what was added. It is read-only.
func (in *Insert) Parts() []Part { return in.parts }

// Column is one column of an insert: its bytes are those of ClickHouse's Native format.
type Column struct {
	Name     string
	Type     string
	Segments [][]byte
}

// InsertColumns lists the names of an insert's columns, in order.
var InsertColumns = func() (names []string) {
	for _, c := range new(Insert).Columns() {
		names = append(names, c.Name)
	}
	return names
}()

// Columns returns the columns of the insert, its rows sorted by the table's key (organization, trail,
// recorded_at, stream_seq, batch_index): ClickHouse stores a sorted block much faster. The segments
// share the blocks' memory.
func (in *Insert) Columns() []Column {
	slices.SortStableFunc(in.parts, func(a, b Part) int {
		return cmp.Or(
			cmp.Compare(a.Organization, b.Organization),
			cmp.Compare(a.Trail, b.Trail),
			a.RecordedAt.Compare(b.RecordedAt),
			cmp.Compare(a.StreamSeq, b.StreamSeq),
		)
	})
	columns := make([]Column, 0, 7+len(schema.Fields))
	columns = append(columns,
		in.repeated("organization", "String", func(dst []byte, p *Part) []byte { return appendString(dst, p.Organization) }),
		in.repeated("trail", "String", func(dst []byte, p *Part) []byte { return appendString(dst, string(p.Trail)) }),
		in.repeated("recorded_at", "DateTime64(6, 'UTC')", func(dst []byte, p *Part) []byte {
			return binary.LittleEndian.AppendUint64(dst, uint64(p.RecordedAt.UnixMicro()))
		}),
		in.repeated("stream_seq", "UInt64", func(dst []byte, p *Part) []byte {
			return binary.LittleEndian.AppendUint64(dst, p.StreamSeq)
		}),
		in.batchIndex(),
		in.repeated("recorded_by", "String", func(dst []byte, p *Part) []byte { return appendString(dst, p.RecordedBy) }),
		in.repeated("expires_at", "DateTime('UTC')", func(dst []byte, p *Part) []byte {
			return binary.LittleEndian.AppendUint32(dst, uint32(p.ExpiresAt.Unix()))
		}),
	)
	for i := range schema.Fields {
		f := &schema.Fields[i]
		c := Column{Name: f.Column, Type: nativeType(f.Kind)}
		if i == colAttributes {
			c.Segments = in.attributes()
		} else {
			c.Segments = make([][]byte, len(in.parts))
			for j := range in.parts {
				c.Segments[j] = in.parts[j].Block.cols[i]
			}
		}
		columns = append(columns, c)
	}
	return columns
}

// repeated is a column whose value is the same for all events of a part.
func (in *Insert) repeated(name, typ string, value func([]byte, *Part) []byte) Column {
	var one []byte
	size := 0
	for i := range in.parts {
		one = value(one[:0], &in.parts[i])
		size += len(one) * in.parts[i].Block.Rows()
	}
	dst := make([]byte, 0, size)
	for i := range in.parts {
		first := len(dst)
		dst = value(dst, &in.parts[i])
		for end := first + (len(dst)-first)*in.parts[i].Block.Rows(); len(dst) < end; {
			dst = append(dst, dst[first:min(len(dst), first+end-len(dst))]...) // twice as many each time
		}
	}
	return Column{Name: name, Type: typ, Segments: [][]byte{dst}}
}

func (in *Insert) batchIndex() Column {
	dst := make([]byte, 0, 4*in.rows)
	for i := range in.parts {
		for row := range in.parts[i].Block.Rows() {
			index := uint32(row)
			if in.parts[i].Index != nil {
				index = in.parts[i].Index[row]
			}
			dst = binary.LittleEndian.AppendUint32(dst, index)
		}
	}
	return Column{Name: "batch_index", Type: "UInt32", Segments: [][]byte{dst}}
}

func (in *Insert) attributes() [][]byte {
	offsets := make([]byte, 0, 8*in.rows)
	segments := make([][]byte, 1, 1+2*len(in.parts))
	base := uint64(0)
	for i := range in.parts {
		b := in.parts[i].Block
		own := b.cols[colAttributes]
		for row := range b.rows {
			offsets = binary.LittleEndian.AppendUint64(offsets, base+binary.LittleEndian.Uint64(own[8*row:]))
		}
		base += uint64(b.attrs)
		segments = append(segments, b.attrKeys)
	}
	for i := range in.parts {
		segments = append(segments, in.parts[i].Block.attrValues)
	}
	segments[0] = offsets
	return segments
}

// Native returns the whole insert in ClickHouse's Native format, without copying the events.
func (in *Insert) Native() io.Reader {
	columns := in.Columns()
	head := binary.AppendUvarint(nil, uint64(len(columns)))
	head = binary.AppendUvarint(head, uint64(in.rows))
	var segments segmentReader
	for _, c := range columns {
		head = appendString(head, c.Name)
		head = appendString(head, c.Type)
		segments = append(segments, head)
		segments = append(segments, c.Segments...)
		head = nil
	}
	return &segments
}

// segmentReader reads segments one after the other.
type segmentReader [][]byte

func (s *segmentReader) Read(p []byte) (n int, err error) {
	for len(*s) > 0 && n < len(p) {
		k := copy(p[n:], (*s)[0])
		n += k
		if (*s)[0] = (*s)[0][k:]; len((*s)[0]) == 0 {
			*s = (*s)[1:]
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}
