package codec

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/schema"
)

// readInsert reads an insert as ClickHouse does.
func readInsert(t *testing.T, r io.Reader) []Stored {
	t.Helper()
	texts := map[string]*proto.ColStr{"organization": {}, "trail": {}, "recorded_by": {}}
	results := proto.Results{}
	for _, name := range []string{"organization", "trail"} {
		results = append(results, proto.ResultColumn{Name: name, Data: texts[name]})
	}
	recorded := new(proto.ColDateTime64).WithPrecision(proto.PrecisionMicro).WithLocation(time.UTC)
	occurred := new(proto.ColDateTime64).WithPrecision(proto.PrecisionMicro).WithLocation(time.UTC)
	expires := &proto.ColDateTime{Location: time.UTC}
	var seq proto.ColUInt64
	var index proto.ColUInt32
	var id proto.ColUUID
	attributes := proto.NewMap[string, string](new(proto.ColStr), new(proto.ColStr))
	results = append(results,
		proto.ResultColumn{Name: "recorded_at", Data: recorded}, proto.ResultColumn{Name: "stream_seq", Data: &seq},
		proto.ResultColumn{Name: "batch_index", Data: &index}, proto.ResultColumn{Name: "recorded_by", Data: texts["recorded_by"]}, proto.ResultColumn{Name: "expires_at", Data: expires})
	for i := range schema.Fields {
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			results = append(results, proto.ResultColumn{Name: f.Column, Data: &id})
		case schema.KindTime:
			results = append(results, proto.ResultColumn{Name: f.Column, Data: occurred})
		case schema.KindText, schema.KindJSON:
			texts[f.Column] = new(proto.ColStr)
			results = append(results, proto.ResultColumn{Name: f.Column, Data: texts[f.Column]})
		case schema.KindMap:
			results = append(results, proto.ResultColumn{Name: f.Column, Data: attributes})
		}
	}
	reader := proto.NewReader(r)
	var block proto.Block
	if err := block.DecodeRawBlock(reader, 0, results); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the block: %v, want its end", err)
	}
	out := make([]Stored, block.Rows)
	for row := range out {
		s := &out[row]
		s.Organization, s.Trail = texts["organization"].Row(row), schema.Trail(texts["trail"].Row(row))
		s.RecordedBy = texts["recorded_by"].Row(row)
		s.RecordedAt, s.StreamSeq, s.BatchIndex = recorded.Row(row).UTC(), seq.Row(row), index.Row(row)
		s.ID, s.OccurredAt = id.Row(row), occurred.Row(row).UTC()
		for i := range schema.Fields {
			if f := &schema.Fields[i]; texts[f.Column] != nil {
				f.SetText(&s.Event, texts[f.Column].Row(row))
			}
		}
		if m := attributes.Row(row); len(m) > 0 {
			s.Attributes = m
		}
		if want := expiry(s.Organization); !expires.Row(row).Equal(want) {
			t.Errorf("row %d of %s expires at %v, want %v", row, s.Organization, expires.Row(row), want)
		}
	}
	return out
}

func expiry(org string) time.Time { return testNow.AddDate(len(org), 0, 0) }

func TestInsertIsReadByClickHousesLibrary(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	events := randomEvents(300)
	var in Insert
	var want []Stored
	for i := 0; len(events) > 0; i++ {
		n := min(1+r.IntN(40), len(events))
		part := events[:n]
		events = events[n:]
		org, trail := fmt.Sprintf("org-%0*d", 1+i%3, i%4), schema.Trails[i%2]
		p := Part{
			Organization: org, Trail: trail, RecordedAt: testNow.Add(time.Duration(r.IntN(5)) * time.Microsecond), StreamSeq: uint64(1000 - i),
			RecordedBy: fmt.Sprintf("key:%d", i%5), ExpiresAt: expiry(org), Block: blockOf(part),
		}
		if i%3 == 0 { // some of it was rejected
			for j := range part {
				p.Index = append(p.Index, uint32(j*2+1))
			}
		}
		in.Add(p)
		for j, e := range part {
			e.Organization, e.Trail = org, trail
			s := Stored{Event: e, RecordedAt: p.RecordedAt, StreamSeq: p.StreamSeq, BatchIndex: uint32(j), RecordedBy: p.RecordedBy}
			if p.Index != nil {
				s.BatchIndex = p.Index[j]
			}
			want = append(want, s)
		}
	}
	slices.SortFunc(want, byKey)
	got := readInsert(t, in.Native())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows in the order of the table's key (-added +read):\n%.3000s", diff)
	}
	if in.Rows() != len(want) || in.Bytes() == 0 {
		t.Errorf("%d rows, %d bytes", in.Rows(), in.Bytes())
	}
	var names []string
	for _, c := range in.Columns() {
		names = append(names, c.Name)
	}
	if diff := cmp.Diff(InsertColumns, names); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

func byKey(a, b Stored) int {
	for _, c := range []int{
		slices.Compare([]string{a.Organization, string(a.Trail)}, []string{b.Organization, string(b.Trail)}),
		a.RecordedAt.Compare(b.RecordedAt),
		slices.Compare([]uint64{a.StreamSeq, uint64(a.BatchIndex)}, []uint64{b.StreamSeq, uint64(b.BatchIndex)}),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}

// However little is asked for at a time, the same bytes come.
func TestInsertInSmallReads(t *testing.T) {
	t.Parallel()
	var in Insert
	in.Add(Part{Organization: "acme", Trail: schema.Access, RecordedAt: testNow, StreamSeq: 1, ExpiresAt: testNow, Block: blockOf(randomEvents(3))})
	whole, err := io.ReadAll(in.Native())
	if err != nil {
		t.Fatal(err)
	}
	r := in.Native()
	for i := range whole {
		var one [1]byte
		if n, err := r.Read(one[:]); n != 1 || err != nil || one[0] != whole[i] {
			t.Fatalf("byte %d: %x, %d, %v, want %x", i, one, n, err, whole[i])
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}
