package render

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// CEFOverflow says what becomes of a value that is too long for its key in CEF (requirement I9).
type CEFOverflow string

// The two ways.
const (
	// OverflowFile keeps it in a file beside, and has its SHA-256 in its place: nothing is lost.
	OverflowFile CEFOverflow = "file"
	// OverflowText has codec.TooLong in its place. The value is not in the archive.
	OverflowText CEFOverflow = "text"
)

// Content says what an archive holds of its range, and in which form. The zero value is the partitions as they were
// sealed.
type Content struct {
	Format  codec.Format  `json:"format,omitempty" yaml:"format,omitempty"`   // default csv
	Profile codec.Profile `json:"profile,omitempty" yaml:"profile,omitempty"` // names of columns; default kansa, in tsv qlik
	// CEFOverflow is OverflowFile by default.
	CEFOverflow CEFOverflow `json:"cef_overflow,omitempty" yaml:"cef_overflow,omitempty"`
	// SpreadsheetSafe marks cells of csv and tsv that a spreadsheet would take for formulas. Where nothing is said,
	// it is done in what is rendered for a mailed link.
	SpreadsheetSafe *bool         `json:"spreadsheet_safe,omitempty" yaml:"spreadsheet_safe,omitempty"`
	Filter          schema.Filter `json:"filter,omitzero" yaml:"filter,omitempty"`
	// Recipients are age's public keys: who can open the archive (requirement Z11).
	Recipients []string `json:"age_recipients,omitempty" yaml:"age_recipients,omitempty"`
}

// Empty tells that nothing was said.
func (c *Content) Empty() bool {
	return c.Format == "" && c.Profile == "" && c.CEFOverflow == "" && c.SpreadsheetSafe == nil && c.Filter.IsZero() && len(c.Recipients) == 0
}

// ForLink settles what nobody said for an archive that is fetched by a link: people open it by a double click.
func (c *Content) ForLink() {
	if c.SpreadsheetSafe == nil && c.Rendered() && c.cells() {
		yes := true
		c.SpreadsheetSafe = &yes
	}
}

func (c *Content) format() codec.Format {
	if c.Format == "" {
		return codec.FormatCSV
	}
	return c.Format
}

func (c *Content) cells() bool { return c.format() == codec.FormatCSV || c.Format == codec.FormatTSV }

// Safe tells whether cells are marked.
func (c *Content) Safe() bool { return c.SpreadsheetSafe != nil && *c.SpreadsheetSafe }

// Rendered tells whether the files are made of the partitions rather than being them.
func (c *Content) Rendered() bool {
	return c.format() != codec.FormatCSV || c.Profile != "" && c.Profile != codec.ProfileKansa || c.Safe() || !c.Filter.IsZero()
}

// Plain tells whether the archive is the partitions, copied, and is not encrypted.
func (c *Content) Plain() bool { return !c.Rendered() && len(c.Recipients) == 0 }

// Suffix is what the rendered file of a partition ends in. That of CSV is not ".csv", which is the name of what was
// sealed.
func (c *Content) Suffix() string {
	if c.format() == codec.FormatCSV {
		return ".rendered.csv"
	}
	return "." + string(c.Format)
}

// OverflowSuffix is what the file beside CEF ends in.
const OverflowSuffix = ".overflow.ndjson"

// Suffixes are all that rendered files end in.
var Suffixes = []string{".rendered.csv", ".tsv", ".ndjson", ".json", ".cef"}

// ArchiveSuffix is what the name of the archive ends in.
func (c *Content) ArchiveSuffix() string {
	s := ".zip"
	if c.Rendered() {
		s = "." + string(c.format()) + s
	}
	if len(c.Recipients) > 0 {
		s += ".age"
	}
	return s
}

// Key is the same for contents that give the same archive. For those that say nothing it is empty.
func (c *Content) Key() string {
	if c.Plain() {
		return ""
	}
	k := *c
	if k.Recipients = nil; len(c.Recipients) > 0 {
		k.Recipients = slices.Sorted(slices.Values(c.Recipients))
	}
	k.Format = c.format()
	if !c.Safe() {
		k.SpreadsheetSafe = nil
	}
	if k.Profile == codec.ProfileKansa && k.Format != codec.FormatTSV {
		k.Profile = ""
	}
	if k.CEFOverflow == OverflowFile {
		k.CEFOverflow = ""
	}
	text, _ := json.Marshal(&k) //nolint:errchkjson // strings and times
	return string(text)
}

// options are those of the encoder.
func (c *Content) options() codec.Options {
	return codec.Options{Format: c.format(), Profile: c.Profile, SpreadsheetSafe: c.Safe()}
}

// Validate reports every fault; each names the field, the value and the remedy (requirement I15).
func (c *Content) Validate() error {
	var faults []error
	o := c.options()
	if err := o.Check(); err != nil {
		faults = append(faults, err)
	}
	switch c.CEFOverflow {
	case "":
	case OverflowFile, OverflowText:
		if c.Format != codec.FormatCEF {
			faults = append(faults, &schema.Fault{Field: "cef_overflow", Value: string(c.CEFOverflow), Problem: "is for cef only", Remedy: "leave it out, or use format cef"})
		}
	default:
		faults = append(faults, &schema.Fault{Field: "cef_overflow", Value: string(c.CEFOverflow), Problem: "is none", Remedy: "use file or text"})
	}
	if err := c.Filter.Check(); err != nil {
		faults = append(faults, fmt.Errorf("filter: %w", err))
	}
	if _, err := c.recipients(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// recipients reads the keys.
func (c *Content) recipients() ([]age.Recipient, error) {
	var all []age.Recipient
	for i, text := range c.Recipients {
		f := &schema.Fault{Field: fmt.Sprintf("age_recipients[%d]", i), Value: text, Remedy: "give a public key that age-keygen printed: age1…"}
		if strings.Contains(strings.ToUpper(text), "SECRET-KEY") {
			f.Value, f.Problem = "", "is a secret key, which nobody but its owner may have" // and which is repeated nowhere
			return nil, f
		}
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(r) != 1 {
			f.Problem = "is no public key of age"
			return nil, f
		}
		all = append(all, r[0])
	}
	if len(all) > 0 { // some kinds can't stand together
		if _, err := age.Encrypt(io.Discard, all...); err != nil {
			return nil, &schema.Fault{Field: "age_recipients", Problem: "can't be used together: " + err.Error(), Remedy: "give keys of one kind"}
		}
	}
	return all, nil
}
