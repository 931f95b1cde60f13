package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Revisions of the native protocol from which a block looks different. libchdb writes revision 0.
const (
	revisionBlockInfo           = 1
	revisionCustomSerialization = 54454
)

// blockInfo says "no overflow rows, bucket -1", as every plain result block does.
var blockInfo = []byte{1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0}

var errShortBlock = errors.New("block is not complete")

// reframer turns Native blocks of revision 0 into blocks of the revision that a client asked for. The
// columns' bytes are the same in both, so they are not decoded, only measured, and pass through uncopied.
type reframer struct {
	revision uint64
	types    map[string]*columnType
	pending  []byte // the beginning of a block whose end has not come yet
}

// write passes on all whole blocks in data, which it does not keep.
func (f *reframer) write(w io.Writer, data []byte) error {
	if len(f.pending) > 0 {
		f.pending = append(f.pending, data...)
		data = f.pending
	}
	for len(data) > 0 {
		n, err := f.block(w, data)
		if errors.Is(err, errShortBlock) {
			break
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	f.pending = append(f.pending[:0:0], data...)
	return nil
}

// close reports a block that never ended.
func (f *reframer) close() error {
	if len(f.pending) > 0 {
		return exceptionf(codeUnknownException, "The engine's last block is not complete (UNKNOWN_EXCEPTION)")
	}
	return nil
}

// block writes one block and returns its length in revision 0. It measures before it writes, so that a
// block that must wait for its end leaves no trace.
func (f *reframer) block(w io.Writer, data []byte) (int, error) {
	r := byteReader{data: data}
	columns := r.varint()
	rows := r.varint()
	prefix := r.at
	type span struct{ header, end int } // of a column: name and type up to header, then values
	spans := make([]span, 0, min(columns, 4096))
	for range columns {
		r.skip(r.varint())
		name := r.string()
		if r.short {
			return 0, errShortBlock
		}
		t, err := f.columnType(name)
		if err != nil {
			return 0, err
		}
		header := r.at
		if rows > 0 {
			t.prefix(&r)
			t.values(&r, rows)
		}
		if r.err != nil {
			return 0, fmt.Errorf("measure a column of type %s: %w", name, r.err)
		}
		if r.short {
			return 0, errShortBlock
		}
		spans = append(spans, span{header, r.at})
	}
	if r.short {
		return 0, errShortBlock
	}
	var err error
	put := func(p []byte) {
		if err == nil {
			_, err = w.Write(p)
		}
	}
	if f.revision >= revisionBlockInfo {
		put(blockInfo)
	}
	put(data[:prefix])
	start := prefix
	for _, s := range spans {
		put(data[start:s.header])
		if f.revision >= revisionCustomSerialization {
			put([]byte{0})
		}
		put(data[s.header:s.end])
		start = s.end
	}
	return r.at, err
}

func (f *reframer) columnType(name string) (*columnType, error) {
	if t := f.types[name]; t != nil {
		return t, nil
	}
	t, err := parseColumnType(name)
	if err != nil {
		return nil, err
	}
	if f.types == nil {
		f.types = make(map[string]*columnType)
	}
	f.types[name] = t
	return t, nil
}

// columnType knows how many bytes a column of it takes.
type columnType struct {
	kind  columnKind
	width int // of a fixed value
	args  []*columnType
}

type columnKind int

const (
	columnFixed columnKind = iota
	columnString
	columnArray
	columnNullable
	columnLowCardinality
	columnTuple
)

var fixedWidths = map[string]int{
	"UInt8": 1, "Int8": 1, "Bool": 1, "Enum8": 1, "Nothing": 1,
	"UInt16": 2, "Int16": 2, "Enum16": 2, "Date": 2, "BFloat16": 2,
	"UInt32": 4, "Int32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4, "Time": 4,
	"UInt64": 8, "Int64": 8, "Float64": 8, "DateTime64": 8, "Time64": 8, "Decimal64": 8, "Decimal32": 4,
	"UInt128": 16, "Int128": 16, "UUID": 16, "IPv6": 16, "Decimal128": 16,
	"UInt256": 32, "Int256": 32, "Decimal256": 32, "Point": 16,
	"IntervalNanosecond": 8, "IntervalMicrosecond": 8, "IntervalMillisecond": 8, "IntervalSecond": 8,
	"IntervalMinute": 8, "IntervalHour": 8, "IntervalDay": 8, "IntervalWeek": 8, "IntervalMonth": 8,
	"IntervalQuarter": 8, "IntervalYear": 8,
}

// parseColumnType reads the name of a type. Types whose length cannot be told without decoding them
// (JSON, Dynamic, states of aggregate functions) are refused with advice.
func parseColumnType(name string) (*columnType, error) {
	return parseType(name, 0)
}

func parseType(name string, depth int) (*columnType, error) {
	if depth > 64 {
		return nil, exceptionf(codeNotImplemented, "Type %s is nested too deeply (NOT_IMPLEMENTED)", name)
	}
	name = strings.TrimSpace(name)
	base, rest, parameters := strings.Cut(name, "(")
	var args []string
	if parameters {
		if !strings.HasSuffix(rest, ")") {
			return nil, exceptionf(codeNotImplemented, "Cannot read the type %s (NOT_IMPLEMENTED)", name)
		}
		args = splitArguments(rest[:len(rest)-1])
	}
	nested := func(kind columnKind, names ...string) (*columnType, error) {
		t := &columnType{kind: kind}
		for _, name := range names {
			arg, err := parseType(name, depth+1)
			if err != nil {
				return nil, err
			}
			t.args = append(t.args, arg)
		}
		return t, nil
	}
	array := func(t *columnType, err error) (*columnType, error) {
		return &columnType{kind: columnArray, args: []*columnType{t}}, err
	}
	switch {
	case base == "String":
		return &columnType{kind: columnString}, nil
	case base == "FixedString" && len(args) == 1:
		n, err := strconv.Atoi(args[0])
		if err != nil || n <= 0 {
			return nil, exceptionf(codeNotImplemented, "Cannot read the type %s (NOT_IMPLEMENTED)", name)
		}
		return &columnType{width: n}, nil
	case base == "Decimal" && len(args) == 2:
		precision, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, exceptionf(codeNotImplemented, "Cannot read the type %s (NOT_IMPLEMENTED)", name)
		}
		width := 4
		for _, limit := range []int{9, 18, 38} {
			if precision > limit {
				width *= 2
			}
		}
		return &columnType{width: width}, nil
	case base == "Nullable" && len(args) == 1:
		return nested(columnNullable, args[0])
	case base == "Array" && len(args) == 1:
		return nested(columnArray, args[0])
	case base == "LowCardinality" && len(args) == 1:
		// The dictionary holds plain values; NULL is its first one.
		if inner, ok := strings.CutPrefix(args[0], "Nullable("); ok {
			args[0] = strings.TrimSuffix(inner, ")")
		}
		return nested(columnLowCardinality, args[0])
	case base == "Map" && len(args) == 2:
		return array(nested(columnTuple, args...))
	case base == "Tuple":
		return nested(columnTuple, elementTypes(args)...)
	case base == "Nested" && len(args) > 0:
		return array(nested(columnTuple, elementTypes(args)...))
	case base == "Ring" || base == "LineString":
		return parseType("Array(Point)", depth+1)
	case base == "Polygon" || base == "MultiLineString":
		return parseType("Array(Array(Point))", depth+1)
	case base == "MultiPolygon":
		return parseType("Array(Array(Array(Point)))", depth+1)
	case base == "SimpleAggregateFunction" && len(args) == 2:
		return parseType(args[1], depth+1)
	}
	if width, ok := fixedWidths[base]; ok {
		return &columnType{width: width}, nil
	}
	return nil, exceptionf(codeNotImplemented,
		"The embedded engine cannot send a column of type %s in Native format; select it as a string, with toString or finalizeAggregation (NOT_IMPLEMENTED)", name)
}

// elementTypes takes the names off a tuple's elements: "a UInt8" is UInt8, "Decimal(9, 2)" is itself.
func elementTypes(args []string) []string {
	types := make([]string, len(args))
	for i, arg := range args {
		types[i] = arg
		s := scanner{text: arg}
		first, second := s.next(), s.next()
		if (first.kind == tokenWord || first.kind == tokenQuoted) && second.kind == tokenWord {
			types[i] = arg[second.start:]
		}
	}
	return types
}

// splitArguments parts a list at its outer commas; quotes hide commas and brackets.
func splitArguments(list string) []string {
	var args []string
	s := scanner{text: list}
	depth, start := 0, 0
	for {
		t := s.next()
		switch {
		case t.kind == tokenEnd:
			if last := strings.TrimSpace(list[start:]); last != "" {
				args = append(args, last)
			}
			return args
		case t.text == "(" && t.kind == tokenSign:
			depth++
		case t.text == ")" && t.kind == tokenSign:
			depth--
		case t.text == "," && t.kind == tokenSign && depth == 0:
			args = append(args, strings.TrimSpace(list[start:t.start]))
			start = t.end
		}
	}
}

// prefix passes over what a column of the type writes once, before its values.
func (t *columnType) prefix(r *byteReader) {
	if t.kind == columnLowCardinality {
		if version := r.uint64(); !r.short && version != 1 {
			r.err = fmt.Errorf("low cardinality version %d is unknown", version)
		}
		return
	}
	for _, arg := range t.args {
		arg.prefix(r)
	}
}

// values passes over n values.
func (t *columnType) values(r *byteReader, n uint64) {
	if n == 0 || r.short || r.err != nil {
		return
	}
	switch t.kind {
	case columnFixed:
		r.skipMany(n, uint64(t.width))
	case columnString:
		for i := uint64(0); i < n && !r.short; i++ {
			r.skip(r.varint())
		}
	case columnNullable:
		r.skip(n)
		t.args[0].values(r, n)
	case columnTuple:
		if len(t.args) == 0 {
			r.skip(n)
		}
		for _, arg := range t.args {
			arg.values(r, n)
		}
	case columnArray:
		r.skipMany(n-1, 8)
		total := r.uint64() // the last offset
		if !r.short {
			t.args[0].values(r, total)
		}
	case columnLowCardinality:
		t.lowCardinality(r, n)
	}
}

// lowCardinality passes over parts of a dictionary and the rows that use it.
func (t *columnType) lowCardinality(r *byteReader, n uint64) {
	const hasAdditionalKeys, needsGlobalDictionary = 1 << 9, 1 << 8
	for n > 0 && !r.short && r.err == nil {
		flags := r.uint64()
		if flags&needsGlobalDictionary != 0 {
			r.err = errors.New("a global dictionary is not supported")
			return
		}
		width := flags & 0xff
		if !r.short && width > 3 {
			r.err = fmt.Errorf("index type %d is unknown", width)
			return
		}
		if flags&hasAdditionalKeys != 0 {
			t.args[0].values(r, r.uint64())
		}
		rows := r.uint64()
		if !r.short && (rows == 0 || rows > n) {
			r.err = fmt.Errorf("%d rows where at most %d are left", rows, n)
			return
		}
		r.skipMany(rows, 1<<width)
		n -= min(rows, n)
	}
}

// byteReader walks over a buffer. When it runs out it turns short and stays so.
type byteReader struct {
	data  []byte
	at    int
	short bool
	err   error
}

func (r *byteReader) skip(n uint64) {
	if r.short || n > uint64(len(r.data)-r.at) {
		r.short = true
		return
	}
	r.at += int(n)
}

func (r *byteReader) skipMany(n, width uint64) {
	if n > math.MaxInt64/max(width, 1) {
		r.short = true
		return
	}
	r.skip(n * width)
}

func (r *byteReader) varint() uint64 {
	if r.short {
		return 0
	}
	v, n := binary.Uvarint(r.data[r.at:])
	if n == 0 {
		r.short = true
		return 0
	}
	if n < 0 {
		r.err = errors.New("a number is too long")
		r.short = true
		return 0
	}
	r.at += n
	return v
}

func (r *byteReader) uint64() uint64 {
	start := r.at
	if r.skip(8); r.short {
		return 0
	}
	return binary.LittleEndian.Uint64(r.data[start:])
}

func (r *byteReader) string() string {
	n := r.varint()
	start := r.at
	if r.skip(n); r.short {
		return ""
	}
	return string(r.data[start:r.at])
}
