package mapping

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"

	"github.com/kansa-audit/kansa/schema"
)

// A path names a value of a record in gjson's syntax, with three names of our own:
//
//	a.b.0.c      member b of a, its first element, member c of that
//	a\.b         the member whose name is "a.b"; a backslash also goes before * ? | # @
//	a.#          how many elements a has
//	a.#.b        member b of every element, as an array
//	a.#(n=="x").v  member v of the first element whose n is x
//	a->b         a is a text that holds JSON: its member b; "a->" is all of it
//	@this        the whole record
//	@item, @item.b  the element of input.each, and its member
//	@raw         the text of the record as it was read
//	$name        a value of the mapping
const (
	pathThis = "@this"
	pathItem = "@item"
	pathRaw  = "@raw"
)

// source is what paths are looked up in.
type source struct {
	m    *Mapping
	raw  string       // the record's text
	doc  gjson.Result // the record
	item gjson.Result // the element of input.each; does not exist without
	// used, if not nil, collects the parts of the record that paths find.
	used *usage
}

// get returns the value of a path. It does not exist if nothing is there.
func (s *source) get(path string) gjson.Result {
	first, rest, nested := strings.Cut(path, "->")
	v := s.lookup(first)
	for nested {
		if v.Type != gjson.String {
			return gjson.Result{}
		}
		inner := textOf(v)
		if checkJSON(inner) != nil {
			return gjson.Result{}
		}
		v = gjson.Parse(inner)
		first, rest, nested = strings.Cut(rest, "->")
		if first != "" {
			v = v.Get(first)
		}
	}
	return v
}

func (s *source) lookup(path string) gjson.Result {
	switch {
	case strings.HasPrefix(path, "$"):
		rule := s.m.Values[path[1:]]
		return gjson.Result{Type: gjson.String, Str: rule.value(s)}
	case path == pathRaw:
		return gjson.Result{Type: gjson.String, Str: s.raw}
	case path == pathThis || path == "":
		return s.doc
	case path == pathItem:
		s.used.found(s.item)
		return s.item
	case strings.HasPrefix(path, pathItem+"."):
		v := s.item.Get(path[len(pathItem)+1:])
		s.used.found(v)
		return v
	}
	v := s.doc.Get(path)
	s.used.found(v)
	return v
}

// text is the value of a path as text: of a number its digits as they are in the record, of an object or
// an array its JSON, and of null nothing.
func (s *source) text(path string) string { return textOf(s.get(path)) }

func textOf(v gjson.Result) string {
	switch v.Type {
	case gjson.Null:
		return ""
	case gjson.String:
		if strings.IndexByte(v.Raw, '\\') < 0 {
			return v.Str
		}
		// gjson's own unescaping differs from that of events in lone surrogates.
		out := schema.AppendUnescaped(nil, v.Raw[1:len(v.Raw)-1])
		return unsafe.String(unsafe.SliceData(out), len(out))
	case gjson.Number:
		if v.Raw != "" {
			return v.Raw // never through a float64, which has 53 bits
		}
	}
	return v.String()
}

var (
	errNotJSON    = errors.New("is not JSON")
	errNotObject  = errors.New("is not a JSON object")
	errNotUTF8    = errors.New("is not valid UTF-8")
	errNoPattern  = errors.New("matches none of the patterns")
	errUnbalanced = errors.New("has a quote that does not end")
)

// repeatedError says that an object has two members of one name.
type repeatedError struct{ path string }

func (e *repeatedError) Error() string { return fmt.Sprintf("has the name %q twice", e.path) }

// checkJSON refuses what is not JSON, and objects in which a name is repeated: readers of JSON differ in
// which of the values they take (RFC 8259, section 4).
func checkJSON(s string) error {
	if !schema.ValidJSON(s) {
		return errNotJSON
	}
	var w names
	w.value(s, schema.SkipSpace(s, 0))
	if w.repeated != "" {
		return &repeatedError{w.repeated}
	}
	return nil
}

// names walks valid JSON and finds the first name that is repeated within its object.
type names struct {
	path     []string
	repeated string
}

// value returns the index behind the value at s[i], which begins with no white space.
func (w *names) value(s string, i int) int {
	switch s[i] {
	case '{':
		return w.object(s, schema.SkipSpace(s, i+1))
	case '[':
		i = schema.SkipSpace(s, i+1)
		for s[i] != ']' {
			i = schema.SkipSpace(s, w.value(s, i))
			if s[i] == ',' {
				i = schema.SkipSpace(s, i+1)
			}
		}
		return i + 1
	}
	end, _ := schema.SkipJSON(s, i)
	return end
}

func (w *names) object(s string, i int) int {
	var few [16]string
	seen := few[:0]
	var many map[string]struct{}
	for s[i] != '}' {
		end, escaped, _ := schema.SkipJSONString(s, i)
		name := s[i+1 : end-1]
		if escaped {
			name = string(schema.AppendUnescaped(nil, name))
		}
		var twice bool
		switch {
		case many != nil:
			_, twice = many[name]
			many[name] = struct{}{}
		case len(seen) < cap(seen):
			for _, n := range seen {
				twice = twice || n == name
			}
			seen = append(seen, name)
		default:
			many = map[string]struct{}{name: {}}
			for _, n := range seen {
				twice = twice || n == name
				many[n] = struct{}{}
			}
		}
		w.path = append(w.path, name)
		if twice && w.repeated == "" {
			w.repeated = strings.Join(w.path, ".")
		}
		i = schema.SkipSpace(s, schema.SkipSpace(s, end)+1) // behind the colon
		i = schema.SkipSpace(s, w.value(s, i))
		w.path = w.path[:len(w.path)-1]
		if s[i] == ',' {
			i = schema.SkipSpace(s, i+1)
		}
	}
	return i + 1
}

// usage collects which bytes of a record paths have found.
type usage struct{ spans []span }

type span struct{ first, end int }

func (u *usage) found(v gjson.Result) {
	if u == nil || !v.Exists() {
		return
	}
	if len(v.Indexes) > 0 { // a.#.b
		for i, element := range v.Array() {
			if i < len(v.Indexes) {
				u.spans = append(u.spans, span{v.Indexes[i], v.Indexes[i] + len(element.Raw)})
			}
		}
		return
	}
	if v.Index > 0 {
		u.spans = append(u.spans, span{v.Index, v.Index + len(v.Raw)})
	}
}

func (u *usage) covers(first, end int) bool {
	for _, s := range u.spans {
		if s.first <= first && end <= s.end {
			return true
		}
	}
	return false
}
