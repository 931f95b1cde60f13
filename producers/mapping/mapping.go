package mapping

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/schema"
)

// ErrInvalid is what every refused mapping answers to with errors.Is.
var ErrInvalid = errors.New("invalid mapping")

// A built-in mapping is a directory with mapping.yaml, recorded inputs (input.*) and, for each, the events
// that it has to give (events.ndjson).
//
//go:embed builtin
var builtin embed.FS

// Mapping says how the events of one kind of log are made. It is read from YAML.
type Mapping struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
	Input       Input  `yaml:"input"`
	// Tables are for Rule.Lookup, by name.
	Tables map[string]map[string]string `yaml:"tables"`
	// Values are rules whose value other rules use, as $name in a path, a template or a condition.
	Values map[string]Rule `yaml:"values"`
	// Fields has a rule for each field of an event, by its name in JSON with dots: actor.id.
	//
	// An id that is not a UUID becomes one made of source and id. Without a rule for outcome, the
	// outcome is "unknown"; a rule for it has to give a value for every record.
	Fields map[string]Rule `yaml:"fields"`
	// Attributes has a rule for each attribute; one whose value is empty is left out.
	Attributes map[string]Rule `yaml:"attributes"`

	zone *time.Location
	// assumed says that zone is not certain.
	assumed bool
}

// Input says how records are found in an input.
type Input struct {
	Format `yaml:",inline"`
	// Charset is the encoding of the input, by its WHATWG name (shift_jis); default UTF-8. A byte order mark
	// of UTF-8 or UTF-16 precedes it.
	Charset string `yaml:"charset"`
	// Records are paths to arrays of records in a JSON document, the first that is there. A document
	// without is a record itself; arrays always hold records.
	Records texts `yaml:"records"`
	// Unwrap are paths to an object within a record; the first that is there takes the record's place.
	Unwrap texts `yaml:"unwrap"`
	// Parse reads texts within the record.
	Parse []ParseStep `yaml:"parse"`
	// Each is a path to an array in a record: each element, @item in paths, becomes an event. A record
	// without is one event.
	Each string `yaml:"each"`
	// Only and Skip choose records: those for which one entry of Only holds, if there are any, and none of Skip.
	// Records left out are counted.
	Only []conditions `yaml:"only"`
	Skip []conditions `yaml:"skip"`
	// Repeated is refuse (the default) or list: what happens to a name that an object has twice. With list its
	// value is an array of both.
	Repeated string `yaml:"repeated"`
	// Zone is the time zone of times that do not say theirs. AssumeZone is the same where it is only a guess:
	// events whose time depends on it get the attribute time_zone_assumed.
	Zone       string `yaml:"zone"`
	AssumeZone string `yaml:"assume_zone"`
}

// ParseStep reads the text at Path in some format, and adds the object that it makes to the record as the member
// Into. A record without the path is unchanged.
type ParseStep struct {
	Path   string `yaml:"path"`
	Into   string `yaml:"into"`
	Format `yaml:",inline"`
	// Optional says that a text without the format is left alone; otherwise its record is refused.
	Optional bool `yaml:"optional"`
}

// Builtin lists the mappings that are built in, sorted.
func Builtin() []string {
	entries, _ := builtin.ReadDir("builtin") // embedded: it cannot fail
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// BuiltinFiles returns the directory of a built-in mapping.
func BuiltinFiles(name string) (fs.FS, error) {
	if !slices.Contains(Builtin(), name) {
		return nil, fmt.Errorf("%w: %q is not built in: use %s", ErrInvalid, name, strings.Join(Builtin(), ", "))
	}
	return fs.Sub(builtin, "builtin/"+name)
}

// builtins are read once: they have hundreds of patterns.
var builtins = sync.OnceValues(func() (map[string]*Mapping, error) {
	all := map[string]*Mapping{}
	for _, name := range Builtin() {
		m, err := Load(name)
		if err != nil {
			return nil, err
		}
		all[name] = m
	}
	return all, nil
})

// LoadAll returns the built-in mappings and those of a directory, if it is not empty, by their names: NAME.yaml is
// the mapping NAME, and takes the place of a built-in one.
func LoadAll(dir string) (map[string]*Mapping, error) {
	read, err := builtins()
	if err != nil {
		return nil, err
	}
	all := maps.Clone(read)
	if dir == "" {
		return all, nil
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("read the mappings: %w", err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read the mappings: %w", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the mapping: %w", err)
		}
		m, err := Parse(filepath.Base(path), text)
		if err != nil {
			return nil, err
		}
		all[strings.TrimSuffix(filepath.Base(path), ".yaml")] = m
	}
	return all, nil
}

// Load returns the built-in mapping of a name, or reads the file of a path.
func Load(nameOrPath string) (*Mapping, error) {
	if slices.Contains(Builtin(), nameOrPath) {
		text, err := builtin.ReadFile("builtin/" + nameOrPath + "/mapping.yaml")
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
	if err := errors.Join(append(m.Input.check(), m.checkFields()...)...); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	m.zone, _ = loadZone(m.Input.Zone)
	if m.zone == nil {
		m.zone, _ = loadZone(m.Input.AssumeZone)
		m.assumed = true
	}
	return m, nil
}

// InZone returns the mapping for times that do not say their zone and have this one.
func (m *Mapping) InZone(name string) (*Mapping, error) {
	zone, err := loadZone(name)
	if err != nil {
		return nil, err
	}
	out := *m
	out.zone, out.assumed = zone, false
	return &out, nil
}

func (m *Mapping) checkFields() (faults []error) {
	known := []string{"organization", "trail"}
	for i := range schema.Fields {
		if schema.Fields[i].Kind != schema.KindMap {
			known = append(known, schema.Fields[i].Name)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(m.Fields)) {
		rule := m.Fields[field]
		if !slices.Contains(known, field) {
			faults = append(faults, fmt.Errorf("fields.%s is not a field of an event: use %s", field, strings.Join(known, ", ")))
		}
		faults = append(faults, rule.check("fields."+field, m.Tables, false)...)
		m.Fields[field] = rule
	}
	for _, name := range slices.Sorted(maps.Keys(m.Values)) {
		rule := m.Values[name]
		faults = append(faults, rule.check("values."+name, m.Tables, false)...)
		m.Values[name] = rule
	}
	faults = append(faults, m.checkValues()...)
	for _, name := range slices.Sorted(maps.Keys(m.Attributes)) {
		rule := m.Attributes[name]
		faults = append(faults, rule.check("attributes."+name, m.Tables, false)...)
		m.Attributes[name] = rule
	}
	for i := range schema.Fields {
		if f := &schema.Fields[i]; f.Required {
			if _, ok := m.Fields[f.Name]; !ok {
				faults = append(faults, fmt.Errorf("fields.%s is missing: every event needs it", f.Name))
			}
		}
	}
	return faults
}

// checkValues refuses values that are not defined, and those that use themselves.
func (m *Mapping) checkValues() (faults []error) {
	var visit func(where string, r *Rule, within []string)
	visit = func(where string, r *Rule, within []string) {
		for _, name := range r.values() {
			next, ok := m.Values[name]
			switch {
			case !ok:
				faults = append(faults, fmt.Errorf("%s: there is no value %q: define it under values", where, name))
			case slices.Contains(within, name):
				faults = append(faults, fmt.Errorf("%s: the value %q uses itself: remove the circle", where, name))
			default:
				visit("values."+name, &next, append(within[:len(within):len(within)], name))
			}
		}
	}
	input := Rule{Path: m.Input.paths()}
	visit("input", &input, nil)
	for _, rules := range []struct {
		where string
		of    map[string]Rule
	}{{"fields.", m.Fields}, {"values.", m.Values}, {"attributes.", m.Attributes}} {
		for _, name := range slices.Sorted(maps.Keys(rules.of)) {
			rule := rules.of[name]
			var within []string
			if rules.where == "values." {
				within = []string{name}
			}
			visit(rules.where+name, &rule, within)
		}
	}
	return faults
}

// paths are those that are looked up in a record.
func (in *Input) paths() texts {
	all := append(slices.Clone(in.Unwrap), in.Each)
	for i := range in.Parse {
		all = append(all, in.Parse[i].Path)
	}
	for _, conditions := range slices.Concat(in.Only, in.Skip) {
		all = slices.AppendSeq(all, maps.Keys(conditions))
	}
	return all
}

func (in *Input) check() (faults []error) {
	fault := func(format string, v ...any) { faults = append(faults, fmt.Errorf(format, v...)) }
	faults = append(faults, in.Format.check("input.", true)...)
	if in.Charset != "" {
		if _, err := charsetOf(in.Charset); err != nil {
			faults = append(faults, err)
		}
	}
	if in.Format.Format != "" && in.Format.Format != formatJSON && len(in.Records) > 0 {
		fault("input.records belongs to format json: remove it")
	}
	for _, p := range in.Records {
		if p == "" || p[0] == '$' || p[0] == '@' {
			fault("input.records: %q is not a path in a document: name the array of records, such as Records", p)
		}
	}
	if in.Repeated != "" && in.Repeated != "refuse" && in.Repeated != "list" {
		fault("input.repeated %q is unknown: use refuse or list", in.Repeated)
	}
	if in.Zone != "" && in.AssumeZone != "" {
		fault("input has zone and assume_zone: give one")
	}
	for _, zone := range []string{in.Zone, in.AssumeZone} {
		if _, err := loadZone(zone); err != nil {
			fault("input.zone: %w", err)
		}
	}
	for i := range in.Parse {
		p := &in.Parse[i]
		where := fmt.Sprintf("input.parse[%d].", i)
		if p.Path == "" || p.Into == "" {
			fault("%spath and into: give both", where)
		}
		faults = append(faults, p.Format.check(where, false)...)
	}
	return faults
}
