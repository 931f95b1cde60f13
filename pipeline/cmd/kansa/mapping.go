package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

type mappingCmd struct {
	List mappingListCmd `cmd:"" help:"List the built-in mappings."`
	Show mappingShowCmd `cmd:"" help:"Print a built-in mapping, to begin one of your own with."`
	Test mappingTestCmd `cmd:"" help:"Show what a mapping makes of records; nothing is published."`
}

func (*mappingCmd) Help() string {
	return `A mapping is a YAML file that says how the records of another system become events: where records are, and for each field of an event a
path, a constant, a template or a choice, and how its value is changed. deploy/MAPPINGS.md describes the language.

  kansa mapping list
  kansa mapping show sshd > mine.yaml
  kansa mapping test mine.yaml --input auth.log
  kansa publish --mapping mine.yaml --organization acme auth.log`
}

// loadMapping loads a mapping for times of a zone, if it is not empty.
func loadMapping(nameOrPath, zone string) (*mapping.Mapping, error) {
	m, err := mapping.Load(nameOrPath)
	if err != nil || zone == "" {
		return m, err
	}
	if m, err = m.InZone(zone); err != nil {
		return nil, fmt.Errorf("read --zone: %w", err)
	}
	return m, nil
}

type mappingListCmd struct {
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *mappingListCmd) Run(e *env) error {
	type row struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	rows := []row{}
	for _, name := range mapping.Builtin() {
		m, err := mapping.Load(name)
		if err != nil {
			return err
		}
		rows = append(rows, row{name, m.Description})
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(rows)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tREADS")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\n", r.Name, r.Description)
	}
	return t.Flush()
}

type mappingShowCmd struct {
	Name string `arg:"" help:"Name of a built-in mapping: kansa mapping list."`
}

func (c *mappingShowCmd) Run(e *env) error {
	files, err := mapping.BuiltinFiles(c.Name)
	if err != nil {
		return err
	}
	text, err := fs.ReadFile(files, "mapping.yaml")
	if err != nil {
		return fmt.Errorf("read the built-in mapping: %w", err)
	}
	_, err = e.stdout.Write(text)
	return err
}

type mappingTestCmd struct {
	Mapping      string `arg:"" help:"Mapping file, or name of a built-in mapping."`
	Input        string `required:"" short:"i" placeholder:"FILE" help:"Records to try it on; - for standard input."`
	Organization string `short:"o" help:"Organization of every event, as for kansa publish."`
	Trail        string `short:"t" enum:"activity,access," default:"" help:"Trail of every event, as for kansa publish."`
	Zone         string `placeholder:"ZONE" help:"Time zone of records whose times do not say theirs, as for kansa publish."`
	Limit        int    `short:"n" default:"20" help:"Show this many records (${default}); 0 for all. All are counted."`
	JSON         bool   `name:"json" help:"Print one JSON object a record: number, record, events, error, skipped, unmapped."`
}

func (*mappingTestCmd) Help() string {
	return `Prints each record next to the events that it becomes, and the values of the record that no rule reads, behind a "-". At the end: how many records became
events, were refused or skipped, and the outcomes. Exits with 1 if a record was refused.`
}

// mappedRecord is one record of the input with all that became of it.
type mappedRecord struct {
	Number   int                        `json:"number"`
	Record   string                     `json:"record"`
	Events   []json.RawMessage          `json:"events,omitempty"`
	Errors   []string                   `json:"errors,omitempty"`
	Skipped  bool                       `json:"skipped,omitempty"`
	Unmapped map[string]json.RawMessage `json:"unmapped,omitempty"`

	place string
	rest  []mapping.Member
}

func newMappedRecord(line *mapping.Line) *mappedRecord {
	r := &mappedRecord{Number: line.Number, Record: string(line.Raw), place: line.Place()}
	if line.Explained != nil {
		r.rest = line.Explained.Unmapped
		r.Unmapped = map[string]json.RawMessage{}
		for _, member := range r.rest {
			r.Unmapped[member.Path] = json.RawMessage(member.Value)
		}
	}
	return r
}

// print writes the record, and below it the fields of its events, a line each.
func (r *mappedRecord) print(w io.Writer) error {
	title := "line " + r.place
	if strings.HasPrefix(r.place, "record") {
		title = r.place
	}
	fmt.Fprintf(w, "%s: %s\n", title, shortened(r.Record, 400))
	for _, problem := range r.Errors {
		fmt.Fprintf(w, "  refused: %s\n", problem)
	}
	if r.Skipped {
		fmt.Fprintln(w, "  skipped by the mapping")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, event := range r.Events {
		if len(r.Events) > 1 {
			fmt.Fprintf(t, "  event %d of %d\t\n", i+1, len(r.Events))
		}
		var e schema.Event
		if err := json.Unmarshal(event, &e); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		printField(t, "organization", e.Organization)
		printField(t, "trail", string(e.Trail))
		for i := range schema.Fields {
			switch f := &schema.Fields[i]; f.Kind {
			case schema.KindID:
				printField(t, f.Name, e.ID.String())
			case schema.KindTime:
				printField(t, f.Name, e.OccurredAt.Format(time.RFC3339Nano))
			case schema.KindMap:
				for _, name := range slices.Sorted(maps.Keys(e.Attributes)) {
					printField(t, "attributes."+name, e.Attributes[name])
				}
			default:
				printField(t, f.Name, f.Text(&e))
			}
		}
	}
	for _, member := range r.rest {
		fmt.Fprintf(t, "  - %s\t%s\n", member.Path, shortened(member.Value, 100))
	}
	return t.Flush()
}

func printField(w io.Writer, name, value string) {
	if value != "" {
		fmt.Fprintf(w, "  %s\t%s\n", name, shortened(value, 100))
	}
}

// shortened is a text on one line, cut to a number of characters.
func shortened(s string, most int) string {
	s = codec.OneLine(s)
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

func (c *mappingTestCmd) Run(e *env) error {
	m, err := loadMapping(c.Mapping, c.Zone)
	if err != nil {
		return err
	}
	input := e.stdin
	if c.Input != "-" {
		f, err := os.Open(c.Input)
		if err != nil {
			return fmt.Errorf("open --input: %w", err)
		}
		defer f.Close()
		input = f
	}
	var records, events, refused, skipped int
	outcomes := map[schema.Outcome]int{}
	var one *mappedRecord
	flush := func() error {
		if one == nil {
			return nil
		}
		records++
		if c.Limit != 0 && records > c.Limit {
			return nil
		}
		if c.JSON {
			return json.NewEncoder(e.stdout).Encode(one)
		}
		return one.print(e.stdout)
	}
	for line, err := range mapping.Lines(input, mapping.Options{Mapping: m, Organization: c.Organization, Trail: schema.Trail(c.Trail), Explain: true}) {
		if err != nil {
			return fmt.Errorf("%s: %w", c.Input, err)
		}
		if line.Part == 0 {
			if err := flush(); err != nil {
				return err
			}
			one = newMappedRecord(&line)
		}
		switch {
		case line.Skipped:
			skipped++
			one.Skipped = true
		case line.Err != nil:
			refused++
			one.Errors = append(one.Errors, strings.TrimSpace(line.Err.Error()))
		default:
			events++
			outcomes[line.Event.Outcome]++
			text, err := codec.AppendJSON(nil, &line.Event)
			if err != nil {
				return err
			}
			one.Events = append(one.Events, text)
		}
	}
	if err := flush(); err != nil {
		return err
	}
	summary := e.stdout
	if c.JSON {
		summary = e.stderr
	}
	if c.Limit > 0 && records > c.Limit {
		fmt.Fprintf(summary, "… and %s more records; --limit 0 shows all\n", grouped(uint64(records-c.Limit)))
	}
	fmt.Fprintf(summary, "%s records: %s events", grouped(uint64(records)), grouped(uint64(events)))
	separator := " ("
	for _, o := range []schema.Outcome{schema.Success, schema.Failure, schema.Denied, schema.Unknown} {
		if n := outcomes[o]; n > 0 {
			fmt.Fprintf(summary, "%s%s %s", separator, grouped(uint64(n)), o)
			separator = ", "
		}
	}
	if separator == ", " {
		fmt.Fprint(summary, ")")
	}
	fmt.Fprintf(summary, ", %s refused, %s skipped\n", grouped(uint64(refused)), grouped(uint64(skipped)))
	if refused > 0 {
		return errFailed
	}
	return nil
}
