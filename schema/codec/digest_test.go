package codec

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// The sum over a part is that over the rows of its CSV.
func TestSumIsThatOfTheCSV(t *testing.T) {
	t.Parallel()
	block, index := NewBlock(), []uint32(nil)
	at := time.Date(1969, 12, 31, 23, 59, 59, 999999000, time.UTC)
	want := uint64(0)
	events := sample.New(3, nil)
	for i := range 300 {
		e := events.Next()
		e.Organization, e.Trail = "acme", schema.Activity
		switch i % 7 {
		case 0:
			e.OccurredAt = at.Add(time.Duration(i) * 1234567 * time.Microsecond)
		case 1:
			e.Attributes = map[string]string{"q\"uote": "line\nbreak\x01", "b": "\u2028", "a": ""}
			e.Description = "NUL \x00 and \"quotes\" ,\r\n " + strings.Repeat("long ", 100)
		}
		block.Append(&e)
		index = append(index, uint32(3*i))
		line := AppendCSV(nil, &Stored{Event: e, RecordedAt: at, StreamSeq: 77, BatchIndex: uint32(3 * i)})
		fields, err := csv.NewReader(bytes.NewReader(bytes.ReplaceAll(line, []byte("\r\n"), []byte("\n")))).Read()
		if err != nil {
			t.Fatal(err)
		}
		if i%7 == 1 { // the reader takes \r\n within quotes for \n, which we undid before it could
			for j := range fields {
				fields[j] = strings.ReplaceAll(fields[j], " ,\n ", " ,\r\n ")
			}
		}
		want += xxh3.HashString(strings.Join(fields, "\xff"))
	}
	p := Part{Organization: "acme", Trail: schema.Activity, RecordedAt: at, StreamSeq: 77, Block: block, Index: index}
	if got := p.Sum(); got != want {
		t.Errorf("sum %016x, the CSV's is %016x", got, want)
	}
	p.Index = nil
	if p.Sum() == want {
		t.Error("another index, the same sum")
	}
}

func BenchmarkSum(b *testing.B) {
	block := NewBlock()
	for _, e := range benchEvents() {
		block.Append(&e)
	}
	p := Part{Organization: "acme", Trail: schema.Activity, RecordedAt: benchNow, StreamSeq: 77, Block: block}
	for b.Loop() {
		p.Sum()
	}
	perEvent(b, block.Rows(), block.Bytes())
}
