package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// file is a configuration file that was read, with the places of its keys.
type file struct {
	path  string
	lines map[string]int // by the path of a key, such as destinations[0].name
}

// at says where a key stands: the file and, if it has the key, its line.
func (f *file) at(key string) string {
	for {
		if line := f.lines[key]; line > 0 {
			return f.path + ":" + strconv.Itoa(line)
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return f.path
		}
		key = key[:i]
	}
}

// read reads a file's text over c, and reports every unknown key and every value of a wrong type with its line. A key without a value
// has its default.
func read(path string, data []byte, c *Config) (*file, error) {
	f := &file{path: path, lines: map[string]int{}}
	parsed, err := parser.ParseBytes(bytes.TrimPrefix(data, []byte("\ufeff")), 0) // editors of Windows begin files with a mark
	if err != nil {
		return f, f.malformed(err)
	}
	var root ast.Node
	for _, d := range parsed.Docs {
		switch {
		case d.Body == nil || d.Body.Type() == ast.NullType || d.Body.Type() == ast.CommentType:
		case root != nil:
			return f, fmt.Errorf("%s:%d: a second YAML document begins here: put all keys into one", path, d.Body.GetToken().Position.Line)
		default:
			root = d.Body
		}
	}
	if root == nil {
		return f, nil
	}
	faults := f.check(root, reflect.TypeFor[Config](), "")
	if len(faults) > 0 {
		return f, errors.Join(faults...)
	}
	if err := yaml.NodeToValue(root, c, yaml.Strict()); err != nil {
		return f, f.malformed(err)
	}
	return f, nil
}

// malformed is an error of the YAML library, without the types of Go that it may name.
func (f *file) malformed(err error) error {
	var known yaml.Error
	if errors.As(err, &known) && known.GetToken() != nil {
		return fmt.Errorf("%s:%d: %s", f.path, known.GetToken().Position.Line, known.GetMessage())
	}
	return fmt.Errorf("%s: %w", f.path, err)
}

// check reports what of a node is not as its type has it, and notes where its keys stand. It removes keys without a value, so that they keep
// their defaults.
func (f *file) check(node ast.Node, t reflect.Type, path string) (faults []error) {
	line := node.GetToken().Position.Line
	if path != "" && f.lines[path] == 0 {
		f.lines[path] = line
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if alias, ok := node.(*ast.AnchorNode); ok {
		return f.check(alias.Value, t, path)
	}
	wrong := func(want string) []error {
		return []error{fmt.Errorf("%s:%d: %s is %s: give %s", f.path, line, path, shown(node), want)}
	}
	switch {
	case isLeaf(t):
		if number, ok := node.(*ast.FloatNode); ok && wanted(t) == "a whole number" && number.Value != math.Trunc(number.Value) {
			return wrong(wanted(t)) // the library would leave the fraction out
		}
		if err := yaml.NodeToValue(node, reflect.New(t).Interface(), yaml.Strict()); err != nil {
			return wrong(wanted(t))
		}
	case t.Kind() == reflect.Slice:
		list, ok := node.(*ast.SequenceNode)
		if !ok {
			return wrong("a list")
		}
		for i, v := range list.Values {
			faults = append(faults, f.check(v, t.Elem(), fmt.Sprintf("%s[%d]", path, i))...)
		}
	default:
		mapping, ok := node.(*ast.MappingNode)
		if !ok {
			if path == "" {
				return []error{fmt.Errorf("%s:%d: the file is not a list of keys and values: begin with a key such as data_dir: /var/lib/kansa", f.path, line)}
			}
			return wrong("keys and values")
		}
		var fields map[string]reflect.Type
		if t.Kind() == reflect.Struct {
			fields = fieldsOf(t)
		}
		mapping.Values = slices.DeleteFunc(mapping.Values, func(v *ast.MappingValueNode) bool {
			name := v.Key.GetToken().Value
			key := strings.TrimPrefix(path+"."+name, ".")
			f.lines[key] = v.Key.GetToken().Position.Line
			of, known := fields[name]
			if fields == nil {
				of, known = t.Elem(), true
			}
			if !known {
				faults = append(faults, fmt.Errorf("%s:%d: unknown key %s: %s", f.path, f.lines[key], key, suggestion(name, fields)))
				return false
			}
			if v.Value.Type() == ast.NullType {
				return true
			}
			// The library takes no 0 for a duration, and the documentation says 0 where something is unbounded or off.
			if zero, ok := v.Value.(*ast.IntegerNode); ok && wanted(of) == wanted(reflect.TypeFor[time.Duration]()) && zero.GetToken().Value == "0" {
				v.Value = ast.String(token.String("0s", "0s", zero.GetToken().Position))
			}
			faults = append(faults, f.check(v.Value, of, key)...)
			return false
		})
	}
	return faults
}

// isLeaf tells whether a value of a type is read as a whole.
func isLeaf(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	for _, reads := range []reflect.Type{reflect.TypeFor[encoding.TextUnmarshaler](), reflect.TypeFor[yaml.BytesUnmarshaler](), reflect.TypeFor[yaml.InterfaceUnmarshaler]()} {
		if p.Implements(reads) {
			return true
		}
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice:
		return false
	default:
		return true
	}
}

// wanted says in words what a value of a type is.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 30s, 5m or 24h"
	case reflect.TypeFor[time.Time]():
		return "a time such as 2026-11-22T04:05:06Z"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Uint32:
		if t.PkgPath() == "log/slog" {
			return "debug, info, warn or error"
		}
		if t.PkgPath() != "" { // the durations of our own packages
			return "a duration such as 30s, 5m or 24h"
		}
		return "a whole number"
	case reflect.String:
		return "text"
	}
	return "another value: see deploy/config.example.yaml"
}

// shown is a node as people wrote it, shortened.
func shown(node ast.Node) string {
	switch node.Type() {
	case ast.MappingType, ast.MappingValueType:
		return "keys and values"
	case ast.SequenceType:
		return "a list"
	}
	text := node.GetToken().Value
	if len(text) > 60 {
		text = text[:60] + "…"
	}
	return strconv.Quote(text)
}

// fieldsOf are the keys of a struct and their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		field := t.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		switch {
		case slices.Contains(strings.Split(options, ","), "inline"):
			for k, v := range fieldsOf(field.Type) {
				fields[k] = v
			}
		case name == "-" || !field.IsExported():
		case name == "":
			fields[strings.ToLower(field.Name)] = field.Type
		default:
			fields[name] = field.Type
		}
	}
	return fields
}

// suggestion names the key that was meant, if one is near, or all that there are.
func suggestion(name string, fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for k := range fields {
		names = append(names, k)
	}
	slices.Sort(names)
	best, least := "", 3
	for _, k := range names {
		if d := distance(strings.ToLower(name), k); d < least && d < len(k) {
			best, least = k, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "use one of " + strings.Join(names, ", ")
}

// distance is how many letters differ between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// keyOf is the key that a fault of [Config.Check] begins with.
var keyOf = regexp.MustCompile(`^[a-z_]+(\[\d+\])?(\.[a-z_]+(\[\d+\])?)*`)

// locate puts before each fault of a configuration where its key stands.
func (f *file) locate(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s: %w", f.at(keyOf.FindString(err.Error())), err)
	}
	var all []error
	for _, one := range joined.Unwrap() {
		all = append(all, fmt.Errorf("%s: %w", f.at(keyOf.FindString(one.Error())), one))
	}
	return errors.Join(all...)
}
