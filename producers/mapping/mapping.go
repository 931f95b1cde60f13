package mapping

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/schema"
)

// ErrInvalid is what every refused mapping answers to with errors.Is.
var ErrInvalid = errors.New("invalid mapping")

//go:embed builtin/*.yaml
var builtin embed.FS

// Mapping says how the events of one kind of log are made. It is read from YAML; see builtin/ for two
// that are worth reading.
type Mapping struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
	// Fields has a rule for each field of an event, by its name in JSON with dots: actor.id. An id that is
	// not a UUID becomes one that is made of source and id.
	Fields map[string]Rule `yaml:"fields"`
	// Attributes has a rule for each attribute; one whose value is empty is left out.
	Attributes map[string]Rule `yaml:"attributes"`
}

// Rule says where a value comes from. In YAML a plain text stands for a path.
//
// The value is the first of Paths that is there and not empty (gjson's syntax: a.b.0.c; @this is the whole
// record; a backslash before a dot or an @ that is part of a name); or Const; or Template, in which ${path}
// is replaced. Then the first entry of Match whose pattern fits replaces it, Lower makes it lower case, and
// Default stands in if it is empty.
type Rule struct {
	Paths    []string `yaml:"path"`
	Const    *string  `yaml:"const"`
	Template string   `yaml:"template"`
	Match    []Match  `yaml:"match"`
	Lower    bool     `yaml:"lower"`
	Default  string   `yaml:"default"`
	// Time is the form of a time: rfc3339 (default), unix, unix_ms, unix_us, or a Go layout. A time
	// without a zone is UTC.
	Time string `yaml:"time"`
}

// Match replaces a value that fits a pattern.
type Match struct {
	Pattern string `yaml:"pattern"`
	Value   string `yaml:"value"`
	re      *regexp.Regexp
}

// ruleFile is the form of a rule in a file.
type ruleFile struct {
	Path     any     `yaml:"path"`
	Const    *string `yaml:"const"`
	Template string  `yaml:"template"`
	Match    []Match `yaml:"match"`
	Lower    bool    `yaml:"lower"`
	Default  string  `yaml:"default"`
	Time     string  `yaml:"time"`
}

// UnmarshalYAML accepts a plain path, or a map in which path is one or a list.
func (r *Rule) UnmarshalYAML(unmarshal func(any) error) error {
	var path string
	if err := unmarshal(&path); err == nil {
		r.Paths = []string{path}
		return nil
	}
	var f ruleFile
	if err := unmarshal(&f); err != nil {
		return err
	}
	*r = Rule{Const: f.Const, Template: f.Template, Match: f.Match, Lower: f.Lower, Default: f.Default, Time: f.Time}
	switch p := f.Path.(type) {
	case nil:
	case string:
		r.Paths = []string{p}
	case []any:
		for _, v := range p {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("path %v is no text", v)
			}
			r.Paths = append(r.Paths, s)
		}
	default:
		return fmt.Errorf("path %v: give a text or a list of texts", p)
	}
	return nil
}

// Builtin lists the mappings that are built in.
func Builtin() []string {
	entries, _ := builtin.ReadDir("builtin") // embedded: it can't fail
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".yaml")
	}
	return names
}

// Load returns the built-in mapping of a name, or reads the file of a path.
func Load(nameOrPath string) (*Mapping, error) {
	if slices.Contains(Builtin(), nameOrPath) {
		text, err := builtin.ReadFile("builtin/" + nameOrPath + ".yaml")
		if err != nil {
			return nil, fmt.Errorf("read the built-in mapping: %w", err)
		}
		return Parse(nameOrPath, text)
	}
	text, err := os.ReadFile(nameOrPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q is neither built in (%s) nor a file", ErrInvalid, nameOrPath, strings.Join(Builtin(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("read the mapping: %w", err)
	}
	return Parse(filepath.Base(nameOrPath), text)
}

// Parse reads a mapping from YAML, strictly; name is for errors.
func Parse(name string, text []byte) (*Mapping, error) {
	m := &Mapping{Name: name}
	if err := yaml.UnmarshalWithOptions(text, m, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrInvalid, name, yaml.FormatError(err, false, true))
	}
	known := []string{"organization", "trail"}
	for i := range schema.Fields {
		if schema.Fields[i].Kind != schema.KindMap {
			known = append(known, schema.Fields[i].Name)
		}
	}
	var faults []error
	check := func(where string, r Rule) Rule {
		sources := 0
		for _, set := range []bool{len(r.Paths) > 0, r.Const != nil, r.Template != ""} {
			if set {
				sources++
			}
		}
		if sources != 1 {
			faults = append(faults, fmt.Errorf("%s has %d of path, const and template: give one", where, sources))
		}
		r.Match = slices.Clone(r.Match)
		for i := range r.Match {
			re, err := regexp.Compile(r.Match[i].Pattern)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: match %d: %w", where, i, err))
			}
			r.Match[i].re = re
		}
		return r
	}
	for field, rule := range m.Fields {
		if !slices.Contains(known, field) {
			faults = append(faults, fmt.Errorf("fields.%s is no field of an event: use %s", field, strings.Join(known, ", ")))
		}
		m.Fields[field] = check("fields."+field, rule)
	}
	for name, rule := range m.Attributes {
		m.Attributes[name] = check("attributes."+name, rule)
	}
	for i := range schema.Fields {
		if f := &schema.Fields[i]; f.Required {
			if _, ok := m.Fields[f.Name]; !ok {
				faults = append(faults, fmt.Errorf("fields.%s is missing: every event needs it", f.Name))
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return m, nil
}
