package mapping

import (
	"time"

	"github.com/tidwall/gjson"
)

// Explained is what of a record its events do not have.
type Explained struct {
	// Record is the record as paths see it: parsed and unwrapped.
	Record string
	// Unmapped are the values of the record that no rule reads, in their order. Rules that take the whole record
	// (@this) do not count.
	Unmapped []Member
}

// Member is a value of a record.
type Member struct {
	Path  string
	Value string // JSON
}

// explain tells what rules leave of a record.
func (m *Mapping) explain(s *source, items []gjson.Result, now time.Time) *Explained {
	s.used = &usage{}
	for i, item := range items {
		s.item = item
		_, _ = m.apply(s, i, now)
	}
	for i := range m.Input.Parse {
		s.lookup(m.Input.Parse[i].Path)
	}
	x := &Explained{Record: s.doc.Raw, Unmapped: unmapped(nil, "", s.doc, s.used)}
	s.used = nil
	return x
}

// unmapped appends the leaves of v that are not used.
func unmapped(to []Member, path string, v gjson.Result, u *usage) []Member {
	if path != "" && u.covers(v.Index, v.Index+len(v.Raw)) {
		return to
	}
	if !v.IsObject() && !v.IsArray() || v.Raw == "{}" || v.Raw == "[]" {
		return append(to, Member{path, v.Raw})
	}
	i := 0
	v.ForEach(func(name, value gjson.Result) bool {
		n := itoa(i)
		if v.IsObject() {
			n = gjsonName(textOf(name))
		}
		if path != "" {
			n = path + "." + n
		}
		i++
		to = unmapped(to, n, value, u)
		return true
	})
	return to
}
