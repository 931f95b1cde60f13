package codec

import (
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/kansa-audit/kansa/schema"
)

// RowFault says that the event at Row may not be stored, and why.
type RowFault struct {
	Row int
	Err error
}

// Check applies schema's rules to every event of b, column by column, and returns the faulty ones in
// order, each with its faults: those that Event.Validate finds, and one more that only a block can have,
// attributes out of order. now is the clock of the one who checks.
func (b *Block) Check(now time.Time) []RowFault {
	faults := map[int]*schema.ValidationError{}
	add := func(row int, f *schema.Fault) {
		if faults[row] == nil {
			faults[row] = new(schema.ValidationError)
		}
		faults[row].Add(f)
	}
	sizes := b.sizes()
	for i := range schema.Fields {
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID: // any is good
		case schema.KindTime:
			for row := range b.rows {
				if f := schema.CheckTime(b.occurredAt(row), now); f != nil {
					add(row, f)
				}
			}
		case schema.KindText, schema.KindJSON:
			b.checkColumn(i, add)
		case schema.KindMap:
			b.checkAttributes(add)
		}
	}
	for row, n := range sizes {
		if f := schema.CheckSize(n); f != nil {
			add(row, f)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	out := make([]RowFault, 0, len(faults))
	for row, err := range faults {
		out = append(out, RowFault{Row: row, Err: err})
	}
	slices.SortFunc(out, func(x, y RowFault) int { return x.Row - y.Row })
	return out
}

// checkColumn looks at the values of a column one by one only if looking at all at once does not do.
func (b *Block) checkColumn(i int, add func(int, *schema.Fault)) {
	f, s := &schema.Fields[i], b.span(i)
	all := unsafe.String(unsafe.SliceData(b.cols[i]), len(b.cols[i]))
	// Lengths below 128 are ASCII themselves. So what lies between two of them is UTF-8, or ASCII, if all is.
	short := s.longest < utf8.RuneSelf
	text := short && (schema.IsASCII(all) || utf8.ValidString(all))
	if text && f.Plain() && s.longest <= f.MaxBytes && (!f.Required || !s.empty) {
		return
	}
	check := f.CheckText
	if text {
		check = f.CheckASCII
	}
	r := reader{data: b.cols[i]}
	last, good := "", false // many values are those of the row before
	for row := range b.rows {
		v := r.string()
		if v == "" && !f.Required || good && v == last {
			continue
		}
		fault := check(v)
		if fault != nil {
			add(row, fault)
		}
		last, good = v, fault == nil
	}
}

func (b *Block) span(i int) span {
	if b.spans != nil {
		return b.spans[i]
	}
	_, s := (&reader{data: b.cols[i]}).strings(b.rows)
	return s
}

// sizes returns the size of each event, or nothing if none can be too large, which is the rule.
func (b *Block) sizes() []int {
	most := len(b.attrKeys) + len(b.attrValues)
	for i := range b.cols {
		if k := schema.Fields[i].Kind; k == schema.KindText || k == schema.KindJSON {
			most += b.span(i).longest
		}
	}
	if schema.CheckSize(most) == nil {
		return nil
	}
	sizes := make([]int, b.rows)
	for i := range b.cols {
		if k := schema.Fields[i].Kind; k == schema.KindText || k == schema.KindJSON {
			r := reader{data: b.cols[i]}
			for row := range sizes {
				sizes[row] += len(r.bytes())
			}
		}
	}
	b.eachAttribute(func(row int, k, v string) { sizes[row] += len(k) + len(v) })
	return sizes
}

func (b *Block) checkAttributes(add func(int, *schema.Fault)) {
	if b.attrs == 0 {
		return
	}
	keys, values := reader{data: b.attrKeys}, reader{data: b.attrValues}
	for row := range b.rows {
		first, end := b.attrRange(row)
		if f := schema.CheckAttributeCount(end - first); f != nil {
			add(row, f)
		}
		last := ""
		for i := first; i < end; i++ {
			k, v := keys.string(), values.string()
			if f := schema.CheckAttribute(k, v); f != nil {
				add(row, f)
			}
			// An attribute that is there twice would be two in ClickHouse and one wherever the event
			// becomes a map: what is exported would not be what was recorded.
			if i > first && k <= last {
				add(row, &schema.Fault{
					Field: "attributes", Value: k, Problem: "comes after " + strconv.Quote(last[:min(len(last), 64)]),
					Remedy: "give each attribute once, in ascending order of names",
				})
			}
			last = k
		}
	}
}

// checkReserved adds to the faults of b the events that name a source which is reserved, unless they have a fault already.
func (b *Block) checkReserved(faults []RowFault) []RowFault {
	r := reader{data: b.cols[colSource]}
	last, good := "", false
	for row := range b.rows {
		v := r.string()
		if good && v == last {
			continue
		}
		f := schema.CheckReserved("", v)
		last, good = v, f == nil
		if f == nil {
			continue
		}
		at, found := slices.BinarySearchFunc(faults, row, func(f RowFault, row int) int { return f.Row - row })
		if !found {
			faults = slices.Insert(faults, at, RowFault{Row: row, Err: f})
		}
	}
	return faults
}
