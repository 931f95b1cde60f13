package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// The formats of an input, and of a text within a record.
const (
	formatJSON     = "json"
	formatCSV      = "csv"
	formatKeyValue = "keyvalue"
	formatSyslog   = "syslog"
	formatRegexp   = "regexp"
)

// Format says how a text becomes the members of a JSON object.
//
//	json      an object. Of an input: one object a line, objects over several lines, or arrays of them.
//	csv       a row (RFC 4180); the names are Columns, or the values of the first row of an input.
//	keyvalue  name=value pairs with white space between them; a value may be in " or '.
//	          Words without "=" are collected in _words.
//	syslog    RFC 5424, RFC 3164, or a line of a log file: timestamp, host, app, pid, message and, where
//	          the line has them, priority, facility, severity, version, msgid, data.
//	regexp    RE2 (https://github.com/google/re2/wiki/Syntax) with named groups, (?P<name>…): the first of
//	          Patterns that matches counts; its name becomes the member "pattern".
type Format struct {
	Format string `yaml:"format"`
	// Columns names the values of a row of CSV. Without, the first row of the input does.
	Columns []string `yaml:"columns"`
	// MinColumns is how many values a row of CSV has at least, where later versions of a program add columns;
	// default all.
	MinColumns int `yaml:"min_columns"`
	// Delimiter is between values: "," in CSV. In keyvalue it is white space if empty.
	Delimiter string `yaml:"delimiter"`
	// Separator is between a name and its value in keyvalue; "=" if empty.
	Separator string `yaml:"separator"`
	// Quotes is false for CSV in which a quote is an ordinary character.
	Quotes *bool `yaml:"quotes"`
	// Patterns of regexp, tried in their order.
	Patterns []Pattern `yaml:"patterns"`
}

// Pattern is one way in which a text can look.
type Pattern struct {
	Name    string `yaml:"name"`
	Pattern string `yaml:"pattern"`
	re      *regexp.Regexp
}

func (f *Format) quotes() bool { return f.Quotes == nil || *f.Quotes }

func (f *Format) delimiter(or rune) rune {
	for _, r := range f.Delimiter {
		return r
	}
	return or
}

// check completes a format that was read from a file. input tells whether it is that of an input.
func (f *Format) check(where string, input bool) (faults []error) {
	fault := func(format string, v ...any) { faults = append(faults, fmt.Errorf(where+format, v...)) }
	uses := map[string]bool{"columns": len(f.Columns) > 0, "min_columns": f.MinColumns != 0, "delimiter": f.Delimiter != "", "separator": f.Separator != "", "quotes": f.Quotes != nil, "patterns": len(f.Patterns) > 0}
	allowed := map[string][]string{
		"": nil, formatJSON: nil, formatCSV: {"columns", "min_columns", "delimiter", "quotes"}, formatKeyValue: {"delimiter", "separator"}, formatSyslog: nil, formatRegexp: {"patterns"},
	}
	names, ok := allowed[f.Format]
	if !ok {
		fault("format %q is unknown: use json, csv, keyvalue, syslog or regexp", f.Format)
		return faults
	}
	for _, name := range names {
		delete(uses, name)
	}
	for name, used := range uses {
		if used {
			fault("%s does not belong to format %q: remove it", name, f.Format)
		}
	}
	switch {
	case f.Format == formatCSV && !input && len(f.Columns) == 0:
		fault("columns is missing: a text within a record has no header line")
	case f.Format == formatRegexp && len(f.Patterns) == 0:
		fault("patterns is missing: give at least one, with named groups such as (?P<user>\\S+)")
	case utf8.RuneCountInString(f.Delimiter) > 1 || f.Delimiter == `"` || f.Delimiter == "\n" || f.Delimiter == "\r":
		fault("delimiter %q is not one character: use a comma, a semicolon, \"\\t\" or the like", f.Delimiter)
	}
	for i := range f.Patterns {
		p := &f.Patterns[i]
		re, err := regexp.Compile(p.Pattern)
		if err != nil {
			fault("patterns[%d]: %w", i, err)
			continue
		}
		p.re = re
	}
	return faults
}

// parse makes a JSON object of a text.
func (f *Format) parse(text string, lists bool) (string, error) {
	if !utf8.ValidString(text) {
		return "", errNotUTF8
	}
	var o object
	switch f.Format {
	case formatCSV:
		values, err := f.row(text)
		if err != nil {
			return "", err
		}
		return csvObject(f.Columns, f.MinColumns, values, lists)
	case formatKeyValue:
		if err := f.pairs(text, &o); err != nil {
			return "", err
		}
	case formatSyslog:
		if err := syslog(text, &o); err != nil {
			return "", err
		}
	case formatRegexp:
		if !f.match(text, &o) {
			return "", errNoPattern
		}
	default:
		if err := checkJSON(text); err != nil {
			return "", err
		}
		return text, nil
	}
	return o.json(lists)
}

func (f *Format) match(text string, o *object) bool {
	for i := range f.Patterns {
		p := &f.Patterns[i]
		found := p.re.FindStringSubmatchIndex(text)
		if found == nil {
			continue
		}
		if p.Name != "" {
			o.add("pattern", p.Name)
		}
		for g, name := range p.re.SubexpNames() {
			if name != "" && found[2*g] >= 0 {
				o.add(name, text[found[2*g]:found[2*g+1]])
			}
		}
		return true
	}
	return false
}

// pairs reads name=value pairs.
func (f *Format) pairs(text string, o *object) error {
	separator, delimiter := "=", byte(0)
	if f.Separator != "" {
		separator = f.Separator
	}
	if f.Delimiter != "" {
		delimiter = f.Delimiter[0]
	}
	between := func(c byte) bool {
		if delimiter != 0 {
			return c == delimiter
		}
		return c <= ' ' // and the separator of enriched records of auditd, 0x1d
	}
	var words []string
	for i := 0; i < len(text); {
		if between(text[i]) || text[i] == ' ' {
			i++
			continue
		}
		start := i
		for i < len(text) && !between(text[i]) && !strings.HasPrefix(text[i:], separator) {
			i++
		}
		name := strings.TrimSpace(text[start:i])
		if i >= len(text) || between(text[i]) {
			words = append(words, name)
			continue
		}
		i += len(separator)
		if i < len(text) && (text[i] == '"' || text[i] == '\'') {
			value, end, ok := quoted(text, i)
			if !ok {
				return errUnbalanced
			}
			o.add(name, value)
			i = end
			continue
		}
		start = i
		for i < len(text) && !between(text[i]) {
			i++
		}
		o.add(name, text[start:i])
	}
	if len(words) > 0 {
		o.add("_words", strings.Join(words, " "))
	}
	return nil
}

// quoted returns the value in quotes at i, and the index behind it. In double quotes, a backslash stands before
// a quote or another backslash.
func quoted(text string, i int) (value string, end int, ok bool) {
	quote := text[i]
	var b []byte
	for j := i + 1; j < len(text); j++ {
		switch c := text[j]; {
		case c == quote:
			return string(b), j + 1, true
		case c == '\\' && quote == '"' && j+1 < len(text) && (text[j+1] == '"' || text[j+1] == '\\'):
			j++
			b = append(b, text[j])
		default:
			b = append(b, c)
		}
	}
	return "", 0, false
}

// object collects the members of a JSON object in their order.
type object struct {
	names  []string
	values []any // string, json.RawMessage
}

func (o *object) add(name string, value any) {
	o.names, o.values = append(o.names, name), append(o.values, value)
}

// json is the object. A repeated name is an error, or its values become an array in the place of the first.
func (o *object) json(lists bool) (string, error) {
	first := make(map[string]int, len(o.names))
	var more map[int][]any
	for i, name := range o.names {
		at, ok := first[name]
		switch {
		case !ok:
			first[name] = i
		case !lists:
			return "", &repeatedError{name}
		default:
			if more == nil {
				more = map[int][]any{}
			}
			more[at] = append(more[at], o.values[i])
		}
	}
	out := []byte{'{'}
	for i, name := range o.names {
		if first[name] != i {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		value := o.values[i]
		if m := more[i]; m != nil {
			value = append([]any{value}, m...)
		}
		var err error
		if out, err = appendJSON(append(appendText(out, name), ':'), value); err != nil {
			return "", err
		}
	}
	return string(append(out, '}')), nil
}

func appendText(dst []byte, s string) []byte {
	dst, _ = appendJSON(dst, s) // valid UTF-8: it cannot fail
	return dst
}

func appendJSON(dst []byte, v any) ([]byte, error) {
	b := bytes.NewBuffer(dst)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, errors.New("has a value that cannot be JSON")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}
