package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// contentFlags say in which form an archive is to be.
type contentFlags struct {
	Format          string   `short:"F" placeholder:"FORMAT" help:"csv, tsv, ndjson, json or cef. Default: that of the destination, or the sealed CSV itself."`
	Profile         string   `placeholder:"NAME" help:"Names of columns: kansa, qlik (14 columns; the default of tsv) or dataprep."`
	Filter          []string `placeholder:"FIELD=VALUE" sep:"none" help:"Only events of this value; several have to hold together. See below for the fields."`
	CEFOverflow     string   `name:"cef-overflow" placeholder:"file|text" help:"A value too long for its key in CEF goes into a file beside (the default), or a sentence stands for it."`
	SpreadsheetSafe *bool    `negatable:"" help:"Put a ' before values of csv and tsv that a spreadsheet takes for formulas. Default for links to rendered files."`
	AgeRecipient    []string `placeholder:"age1…" help:"Encrypt the archive to this public key; may be given several times."`
}

// filterFields are those of schema.Filter.
var filterFields = []string{
	"trail", "start", "end", "source", "event", "action", "outcome", "actor_id", "target_type", "target_id", "app_id", "ip", "data_type", "text",
}

func (f *contentFlags) content() (c render.Content, err error) {
	c = render.Content{
		Format: codec.Format(f.Format), Profile: codec.Profile(f.Profile), CEFOverflow: render.CEFOverflow(f.CEFOverflow), SpreadsheetSafe: f.SpreadsheetSafe,
		Recipients: f.AgeRecipient,
	}
	fields := map[string]any{}
	for _, s := range f.Filter {
		field, value, ok := strings.Cut(s, "=")
		if !ok || !slices.Contains(filterFields, field) {
			return c, fmt.Errorf("--filter %q: write FIELD=VALUE, with a field of %s", s, strings.Join(filterFields, ", "))
		}
		if _, twice := fields[field]; twice {
			return c, fmt.Errorf("--filter %s is given twice: an event has one", field)
		}
		fields[field] = value
		if field == "start" || field == "end" {
			if fields[field], err = parseTime(value); err != nil {
				return c, fmt.Errorf("--filter %s: %w", field, err)
			}
		}
	}
	if c.Filter, err = filterOf(fields); err != nil {
		return c, err
	}
	return c, c.Validate()
}

func filterOf(fields map[string]any) (f schema.Filter, err error) {
	data, err := json.Marshal(fields)
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		err = fmt.Errorf("--filter: %w", err)
	}
	return f, err
}

// contentText is a content for people.
func contentText(c *render.Content) string {
	words := []string{strings.TrimPrefix(c.ArchiveSuffix(), ".")}
	if c.Profile != "" {
		words = append(words, "profile "+string(c.Profile))
	}
	if c.Safe() {
		words = append(words, "marked for spreadsheets")
	}
	if c.CEFOverflow != "" {
		words = append(words, "overflow as "+string(c.CEFOverflow))
	}
	if !c.Filter.IsZero() {
		data, _ := json.Marshal(c.Filter) //nolint:errchkjson // texts and times
		words = append(words, "only "+string(data))
	}
	if n := len(c.Recipients); n > 0 {
		words = append(words, fmt.Sprintf("for %d recipients", n))
	}
	return strings.Join(words, ", ")
}
