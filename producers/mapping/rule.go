package mapping

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// Rule says where a value comes from and how it is changed. In YAML a plain text stands for a path.
//
// Exactly one of Path, Const, Template and Choose gives the value. Then, in this order and as far as they are
// given: Capture, Split, Replace, Match, Lookup, Lower or Upper, Default, Truncate.
type Rule struct {
	// Path: the value of the first path that is there and not empty.
	Path texts `yaml:"path"`
	// Const is the value itself.
	Const *string `yaml:"const"`
	// Template has ${path} replaced by values. It is empty if all of these are.
	Template string `yaml:"template"`
	// Choose: the value of the first rule whose When holds and whose value is not empty.
	Choose []Rule `yaml:"choose"`
	// When is of a rule in Choose: each path's value has to match its pattern (RE2). A missing value is
	// an empty text, which ^$ matches.
	When conditions `yaml:"when"`

	// Capture is a pattern: the value becomes its first group, or all that it matches; empty if it does not.
	Capture *pattern `yaml:"capture"`
	// Split cuts the value at a text and takes one of the parts.
	Split *Split `yaml:"split"`
	// Replace replaces every match of a pattern; ${1} or ${name} in With is a group.
	Replace []Replacement `yaml:"replace"`
	// Match: the value of the first entry whose pattern matches; otherwise it is unchanged.
	Match []Match `yaml:"match"`
	// Lookup is a table, by name or in place: what the value stands for there, and empty if it is not there.
	Lookup lookup `yaml:"lookup"`
	Lower  bool   `yaml:"lower"`
	Upper  bool   `yaml:"upper"`
	// Default stands for an empty value.
	Default string `yaml:"default"`
	// Truncate bounds the bytes of the value. It cuts between characters.
	Truncate int `yaml:"truncate"`

	// Time lists the forms of a time, tried in their order: rfc3339 (the default), unix, unix_ms, unix_us, unix_ns
	// (since 1970), filetime (100 ns since 1601), ticks (100 ns since the year 1), or a layout of Go's package time.
	// A layout without a year takes the latest that is not in the future.
	Time texts `yaml:"time"`
	// Zone is the zone of times that do not say theirs: a name (Asia/Tokyo) or an offset (+09:00).
	Zone string         `yaml:"zone"`
	zone *time.Location // of Zone
}

// Split takes a part of a text.
type Split struct {
	On string `yaml:"on"`
	// Take is the index of the part, from the end if negative. A part that is not there is empty.
	Take int `yaml:"take"`
}

// Replacement replaces what a pattern matches.
type Replacement struct {
	Pattern pattern `yaml:"pattern"`
	With    string  `yaml:"with"`
}

// Match gives a value to texts that match a pattern.
type Match struct {
	Pattern pattern `yaml:"pattern"`
	// Value may contain ${1} or ${name}, a group of the pattern.
	Value string `yaml:"value"`
}

// pattern is a regular expression in YAML.
type pattern struct{ *regexp.Regexp }

func (p *pattern) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return fmt.Errorf("pattern %q: %w", text, err)
	}
	p.Regexp = re
	return nil
}

// texts is a text or a list of texts in YAML.
type texts []string

func (t *texts) UnmarshalYAML(unmarshal func(any) error) error {
	var v any
	if err := unmarshal(&v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*t = texts{v}
		return nil
	case []any:
		for _, element := range v {
			s, ok := element.(string)
			if !ok {
				return fmt.Errorf("%v is not a text", element)
			}
			*t = append(*t, s)
		}
		return nil
	}
	return fmt.Errorf("%v: give a text or a list of texts", v)
}

// lookup is the name of a table, or a table, in YAML.
type lookup struct {
	name  string
	table map[string]string
}

func (l *lookup) UnmarshalYAML(unmarshal func(any) error) error {
	if err := unmarshal(&l.name); err == nil {
		return nil
	}
	return unmarshal(&l.table)
}

// conditions are patterns by path, all of which have to match.
type conditions map[string]pattern

func (c conditions) hold(s *source) bool {
	for path, p := range c {
		if !p.MatchString(s.text(path)) {
			return false
		}
	}
	return true
}

func anyHolds(all []conditions, s *source) bool {
	return slices.ContainsFunc(all, func(c conditions) bool { return c.hold(s) })
}

// UnmarshalYAML accepts a path in place of a rule.
func (r *Rule) UnmarshalYAML(unmarshal func(any) error) error {
	var path string
	if err := unmarshal(&path); err == nil {
		r.Path = texts{path}
		return nil
	}
	type plain Rule
	return unmarshal((*plain)(r))
}

// check returns what is wrong with a rule.
func (r *Rule) check(where string, tables map[string]map[string]string, chosen bool) (faults []error) {
	fault := func(format string, v ...any) { faults = append(faults, fmt.Errorf(where+format, v...)) }
	sources := 0
	for _, set := range []bool{len(r.Path) > 0, r.Const != nil, r.Template != "", len(r.Choose) > 0} {
		if set {
			sources++
		}
	}
	if sources != 1 {
		fault(" has %d of path, const, template and choose: give one", sources)
	}
	if len(r.When) > 0 && !chosen {
		fault(".when belongs to the rules of choose: remove it")
	}
	if r.Lookup.name != "" {
		if r.Lookup.table = tables[r.Lookup.name]; r.Lookup.table == nil {
			fault(".lookup: there is no table %q: define it under tables", r.Lookup.name)
		}
	}
	if r.Split != nil && r.Split.On == "" {
		fault(".split.on is empty: give the text to cut at")
	}
	if r.Lower && r.Upper {
		fault(" has lower and upper: give one")
	}
	if r.Truncate < 0 {
		fault(".truncate %d is negative: give a number of bytes", r.Truncate)
	}
	if (len(r.Time) > 0 || r.Zone != "") && where != "fields.occurred_at" {
		fault(".time and zone belong to occurred_at: remove them")
	}
	for _, form := range r.Time {
		if err := checkTimeForm(form); err != nil {
			fault(".time: %w", err)
		}
	}
	var err error
	if r.zone, err = loadZone(r.Zone); err != nil {
		fault(".zone: %w", err)
	}
	for i := range r.Choose {
		faults = append(faults, r.Choose[i].check(fmt.Sprintf("%s.choose[%d]", where, i), tables, true)...)
	}
	return faults
}

// values are the names of the values that the rule uses.
func (r *Rule) values() (names []string) {
	add := func(path string) {
		if name, ok := strings.CutPrefix(path, "$"); ok {
			names = append(names, name)
		}
	}
	for _, p := range r.Path {
		add(p)
	}
	for path := range r.When {
		add(path)
	}
	for _, part := range strings.Split(r.Template, "${")[1:] {
		path, _, _ := strings.Cut(part, "}")
		add(path)
	}
	for i := range r.Choose {
		names = append(names, r.Choose[i].values()...)
	}
	return names
}

// value is the rule's value as text.
func (r *Rule) value(s *source) string {
	v := r.change(r.source(s))
	if v == "" {
		v = r.Default
	}
	if r.Truncate > 0 && len(v) > r.Truncate {
		end := r.Truncate
		for end > 0 && !utf8.RuneStart(v[end]) {
			end--
		}
		v = v[:end]
	}
	return v
}

func (r *Rule) source(s *source) string {
	switch {
	case r.Const != nil:
		return *r.Const
	case r.Template != "":
		return expand(r.Template, s)
	case len(r.Choose) > 0:
		for i := range r.Choose {
			if c := &r.Choose[i]; c.When.hold(s) {
				if v := c.value(s); v != "" {
					return v
				}
			}
		}
		return ""
	}
	for _, p := range r.Path {
		if v := s.text(p); v != "" {
			return v
		}
	}
	return ""
}

// changes tells whether the rule changes the value that it finds.
func (r *Rule) changes() bool {
	return r.Capture != nil || r.Split != nil || len(r.Replace) > 0 || len(r.Match) > 0 || r.Lookup.table != nil || r.Lower || r.Upper || r.Truncate > 0
}

func (r *Rule) change(v string) string {
	if r.Capture != nil {
		m := r.Capture.FindStringSubmatch(v)
		switch len(m) {
		case 0:
			v = ""
		case 1:
			v = m[0]
		default:
			v = m[1]
		}
	}
	if r.Split != nil {
		parts := strings.Split(v, r.Split.On)
		i := r.Split.Take
		if i < 0 {
			i += len(parts)
		}
		v = ""
		if i >= 0 && i < len(parts) {
			v = strings.TrimSpace(parts[i])
		}
	}
	for i := range r.Replace {
		v = r.Replace[i].Pattern.ReplaceAllString(v, r.Replace[i].With)
	}
	for i := range r.Match {
		m := &r.Match[i]
		if found := m.Pattern.FindStringSubmatchIndex(v); found != nil {
			v = string(m.Pattern.ExpandString(nil, m.Value, v, found))
			break
		}
	}
	if r.Lookup.table != nil {
		v = r.Lookup.table[v]
	}
	switch {
	case r.Lower:
		v = strings.ToLower(v)
	case r.Upper:
		v = strings.ToUpper(v)
	}
	return v
}

// raw is the rule's value as JSON: the record's own bytes, if it is a path that is not changed.
func (r *Rule) raw(s *source) string {
	for i := range r.Choose {
		if c := &r.Choose[i]; c.When.hold(s) {
			if v := c.raw(s); v != "" {
				return v
			}
		}
	}
	if !r.changes() {
		for _, p := range r.Path {
			if v := s.get(p); v.Type != gjson.Null {
				if v.Raw == "" {
					return string(appendText(nil, v.Str)) // @raw
				}
				return v.Raw
			}
		}
	}
	if v := r.value(s); v != "" {
		return string(appendText(nil, v))
	}
	return ""
}

func expand(template string, s *source) string {
	var b strings.Builder
	places, values := 0, 0
	for {
		before, rest, found := strings.Cut(template, "${")
		b.WriteString(before)
		if !found {
			break
		}
		path, after, _ := strings.Cut(rest, "}")
		places++
		if v := s.text(path); v != "" {
			values++
			b.WriteString(v)
		}
		template = after
	}
	if places > 0 && values == 0 {
		return ""
	}
	return b.String()
}
