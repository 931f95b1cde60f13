package codec

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/kansa-audit/kansa/schema"
)

// Sum adds up, modulo 2^64, the hashes of the part's rows as an exported CSV will have them: see
// seal.RowHash, whose sum over the same rows of the table, or of the CSV, is the same. It makes no Go
// object of any event.
func (p *Part) Sum() (sum uint64) {
	p.eachText(func(text []byte, _ int) { sum += xxh3.Hash(text) })
	return sum
}

// Contents returns a hash of each row's event alone, without where, when and by whom it was recorded: events that were published
// twice have the same one.
func (p *Part) Contents() []uint64 {
	all := make([]uint64, 0, p.Block.rows)
	p.eachText(func(text []byte, event int) { all = append(all, xxh3.Hash(text[event:])) })
	return all
}

// eachText visits the text of each row of which seal.RowHash is taken, and tells where that of the event itself begins.
func (p *Part) eachText(visit func(text []byte, event int)) {
	b := p.Block
	var (
		readers    = make([]reader, len(b.cols))
		keys       = reader{data: b.attrKeys}
		values     = reader{data: b.attrValues}
		attributes = 0
		times      timeText
		row        = make([]byte, 0, 1024)
	)
	for i := range b.cols {
		readers[i].data = b.cols[i]
	}
	row = times.append(row, p.RecordedAt.UnixMicro())
	row = strconv.AppendUint(append(row, separator), p.StreamSeq, 10)
	row = append(row, separator)
	prefix := len(row)
	suffix := append([]byte{separator}, p.Organization...)
	suffix = append(append(suffix, separator), p.Trail...)
	suffix = append(append(suffix, separator), p.RecordedBy...)
	for n := range b.rows {
		index := uint64(n)
		if p.Index != nil {
			index = uint64(p.Index[n])
		}
		row = strconv.AppendUint(row[:prefix], index, 10)
		row = append(row, suffix...)
		event := len(row) + 1
		for i, kind := range kinds {
			row = append(row, separator)
			switch kind {
			case schema.KindID:
				row = appendUUIDText(row, b.cols[i][16*n:])
			case schema.KindTime:
				row = times.append(row, int64(binary.LittleEndian.Uint64(b.cols[i][8*n:])))
			case schema.KindText, schema.KindJSON:
				// By hand what bytes does, for the short values that most are.
				if d := readers[i].data; len(d) > 0 && d[0] < 0x80 && int(d[0]) < len(d) {
					end := 1 + int(d[0])
					row = append(row, d[1:end]...)
					readers[i].data = d[end:]
				} else {
					row = append(row, readers[i].bytes()...)
				}
			case schema.KindMap:
				end := int(binary.LittleEndian.Uint64(b.cols[i][8*n:]))
				row = append(row, '{')
				for first := true; attributes < end; attributes++ {
					if !first {
						row = append(row, ',')
					}
					first = false
					row = append(appendJSONString(row, keys.string()), ':')
					row = appendJSONString(row, values.string())
				}
				row = append(row, '}')
			}
		}
		visit(row, event)
	}
}

// kinds are those of schema.Fields, close together.
var kinds = func() (kinds []schema.Kind) {
	for i := range schema.Fields {
		kinds = append(kinds, schema.Fields[i].Kind)
	}
	return kinds
}()

// separator is seal.Separator.
const separator = 0xFF

// appendUUIDText appends the UUID that lies at src as ClickHouse keeps it.
func appendUUIDText(dst, src []byte) []byte {
	id := readUUID(src)
	var text [36]byte
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return append(dst, text[:]...)
}

// timeText writes times in TimeLayout, and remembers the second, which is mostly that of the time before.
type timeText struct {
	second int64
	text   []byte // up to the point
}

func (t *timeText) append(dst []byte, micros int64) []byte {
	second := micros / 1e6
	fraction := micros % 1e6
	if fraction < 0 {
		second, fraction = second-1, fraction+1e6
	}
	if t.text == nil || second != t.second {
		t.second, t.text = second, time.Unix(second, 0).UTC().AppendFormat(t.text[:0], TimeLayout[:len("2006-01-02T15:04:05.")])
	}
	dst = append(dst, t.text...)
	var digits [7]byte
	for i := 5; i >= 0; i-- {
		digits[i] = byte('0' + fraction%10)
		fraction /= 10
	}
	digits[6] = 'Z'
	return append(dst, digits[:]...)
}
