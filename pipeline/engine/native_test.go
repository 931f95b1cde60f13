package engine

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
)

// nativeBlock is what ch-go makes of a few columns in a revision.
func nativeBlock(t testing.TB, revision int) []byte {
	t.Helper()
	n := proto.ColUInt64{1, 2, 3}
	s := new(proto.ColStr)
	nullable := proto.NewColNullable[string](new(proto.ColStr))
	low := proto.NewLowCardinality[string](new(proto.ColStr))
	lowArray := proto.NewArray[string](proto.NewLowCardinality[string](new(proto.ColStr)))
	empty := proto.NewArray[string](proto.NewLowCardinality[string](new(proto.ColStr)))
	dict := proto.NewMap[string, uint8](new(proto.ColStr), new(proto.ColUInt8))
	for i, v := range []string{"a", strings.Repeat("long\n\n", 50), ""} {
		s.Append(v)
		nullable.Append(proto.Nullable[string]{Set: i%2 == 0, Value: v})
		low.Append(v)
		lowArray.Append([]string{"x", "y", "x"}[:i])
		empty.Append(nil)
		dict.Append(map[string]uint8{v: 1})
	}
	input := proto.Input{
		{Name: "n", Data: n},
		{Name: "s", Data: s},
		{Name: "nullable", Data: nullable},
		{Name: "low", Data: low},
		{Name: "low array", Data: lowArray},
		{Name: "empty", Data: empty},
		{Name: "dict", Data: dict},
		{Name: "id", Data: proto.ColUUID{{1}, {2}, {3}}},
	}
	block := proto.Block{Info: proto.BlockInfo{BucketNum: -1}, Columns: len(input), Rows: 3}
	var b proto.Buffer
	if err := block.EncodeBlock(&b, revision, input); err != nil {
		t.Fatal(err)
	}
	return b.Buf
}

// TestReframe compares with what ch-go encodes, however the input is cut.
func TestReframe(t *testing.T) {
	t.Parallel()
	old := nativeBlock(t, 0)
	for _, revision := range []int{54460, 54400} {
		want := bytes.Repeat(nativeBlock(t, revision), 3)
		for cut := 1; cut <= 3*len(old); cut += 1 + cut/8 {
			var got bytes.Buffer
			f := &reframer{revision: uint64(revision)}
			for data := bytes.Repeat(old, 3); len(data) > 0; {
				n := min(cut, len(data))
				if err := f.write(&got, data[:n]); err != nil {
					t.Fatal(err)
				}
				data = data[n:]
			}
			if err := f.close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("revision %d, cut at %d: got %d bytes, want %d", revision, cut, got.Len(), len(want))
			}
		}
	}
	f := &reframer{revision: 54460}
	if err := f.write(&bytes.Buffer{}, old[:len(old)-1]); err != nil {
		t.Fatal(err)
	}
	if f.close() == nil {
		t.Error("a block without its end passes")
	}
}

func TestColumnTypes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"UInt8", "Array(Tuple(a UInt8, `b c` Nullable(String)))", "Enum8('a(' = 1, 'it\\'s, x' = -2)", "LowCardinality(Nullable(FixedString(3)))",
		"Map(LowCardinality(String), Array(DateTime64(3, 'Europe/Berlin')))", "Decimal(76, 3)", "SimpleAggregateFunction(max, DateTime('UTC'))",
		"Nested(a UInt8, b Decimal(9, 2))", "Tuple(Decimal(9, 2), Enum16('x' = 1))", "Tuple()", "Nullable(Nothing)", "MultiPolygon", "IntervalDay",
	} {
		if _, err := parseColumnType(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "JSON", "Dynamic", "AggregateFunction(sum, UInt8)", "Array(", "Array()", "FixedString(x)", "Variant(String, UInt8)", strings.Repeat("Array(", 100) + "UInt8" + strings.Repeat(")", 100)} {
		if _, err := parseColumnType(name); err == nil {
			t.Errorf("%q passes", name)
		}
	}
}

func FuzzReframe(f *testing.F) {
	f.Add(nativeBlock(f, 0))
	f.Add([]byte{1, 1, 1, 'a', 5, 'U', 'I', 'n', 't', '8', 7})
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		r := &reframer{revision: 54460}
		if err := r.write(&out, data); err == nil && r.close() == nil && out.Len() < len(data) {
			t.Fatalf("%d bytes became %d", len(data), out.Len())
		}
	})
}
