package exporter

import (
	"bytes"
	_ "embed" // README.txt
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Files of an archive that say what else is in it. They are not sealed.
const (
	// Checksums has the SHA-256 of every file with events, as sha256sum writes and reads them.
	Checksums = "SHA256SUMS.txt"
	// RenderedList says of a rendered archive what its files were made of, and by what.
	RenderedList = "RENDERED.json"
)

// facts are what README.txt says.
type facts struct {
	*Request
	SealedRows uint64 // in the partitions
	Rows       uint64 // in the archive
	Hours      int
	Overflow   bool // a file beside CEF is in it
	Example    string
	gaps       map[schema.Trail][]seal.Gap
}

func (f *facts) add(p *partition) {
	f.SealedRows += p.rows
	f.Hours++
	if len(p.gaps) > 0 {
		if f.gaps == nil {
			f.gaps = map[schema.Trail][]seal.Gap{}
		}
		f.gaps[p.trail] = seal.JoinGaps(f.gaps[p.trail], p.gaps...)
	}
	if p.rows > 0 && f.Example == "" {
		f.Example = p.source.Partition.Path()
	}
}

func (f *facts) addRendered(r *render.File) {
	f.Overflow = f.Overflow || len(r.Parts) > 1
	if r.Rows > 0 {
		f.Example = r.Partition
	}
}

//go:embed README.txt
var readmeText string

var readmeTemplate = template.Must(template.New("README.txt").Parse(readmeText))

// readme is README.txt, with the line ends of Windows: everything else shows them.
func (f *facts) readme() ([]byte, error) {
	var b bytes.Buffer
	if err := readmeTemplate.Execute(&b, f); err != nil {
		return nil, fmt.Errorf("write README.txt: %w", err)
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte("\r\n")), nil
}

// What the template asks for.

// What names the trails.
func (f *facts) What() string {
	names := make([]string, len(f.Trails))
	for i, t := range f.Trails {
		names[i] = map[schema.Trail]string{schema.Activity: "what was done (activity)", schema.Access: "who read and signed in (access)"}[t]
	}
	return strings.Join(names, " and ")
}

// Start and End bound the range.
func (f *facts) Start() string { return f.From.UTC().Format(time.RFC3339) }

// End does not belong to it.
func (f *facts) End() string { return f.To.UTC().Format(time.RFC3339) }

// Count is a number for people.
func (f *facts) Count(n any) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// Path is that of a partition as an example.
func (f *facts) Path() string {
	if f.Example != "" {
		return f.Example
	}
	return f.Organization + "/activity/2026/11/22/04"
}

// File is one of a partition as an example.
func (f *facts) File() string {
	if f.Rendered() {
		return f.Path() + f.Suffix()
	}
	return f.Path() + ".csv"
}

// Form is what the files are.
func (f *facts) Form() string {
	switch f.Format {
	case codec.FormatTSV:
		return "values with tabs between them"
	case codec.FormatNDJSON:
		return "a JSON object a line"
	case codec.FormatJSON:
		return "a JSON array"
	case codec.FormatCEF:
		return "Common Event Format, a line each"
	default:
		return "CSV"
	}
}

// Choice is what the filter says.
func (f *facts) Choice() string {
	var all []string
	for _, t := range f.Filter.Terms() {
		all = append(all, t.Column+"="+strconv.Quote(t.Value))
	}
	if !f.Filter.Start.IsZero() {
		all = append(all, "occurred_at from "+f.Filter.Start.UTC().Format(time.RFC3339))
	}
	if !f.Filter.End.IsZero() {
		all = append(all, "occurred_at before "+f.Filter.End.UTC().Format(time.RFC3339))
	}
	if f.Filter.Text != "" {
		all = append(all, "text "+strconv.Quote(f.Filter.Text))
	}
	return strings.Join(all, ", ")
}

// mostGaps bounds those that README.txt tells one by one.
const mostGaps = 100

// Gaps are the times in which not everything was recorded, as lines, trail by trail.
func (f *facts) Gaps() []string {
	var lines []string
	for _, trail := range schema.Trails {
		for _, g := range f.gaps[trail] {
			lines = append(lines, fmt.Sprintf("%-8s  %s to %s\n      %s (%s)", trail, g.From.Format(time.RFC3339Nano), g.To.Format(time.RFC3339Nano), g.Reason, g.By))
		}
	}
	if more := len(lines) - mostGaps; more > 0 {
		lines = append(lines[:mostGaps], fmt.Sprintf("and %s more times, which the manifests state", f.Count(more)))
	}
	return lines
}

// Text tells that what is too long for CEF is not in the archive.
func (f *facts) Text() bool { return f.CEFOverflow == render.OverflowText }

// IsCells tells whether a spreadsheet opens the files.
func (f *facts) IsCells() bool {
	return f.Format == "" || f.Format == codec.FormatCSV || f.Format == codec.FormatTSV
}

// Sum is the SHA-256 of a file of an archive, in hexadecimal.
type Sum struct{ Name, SHA256 string }

// AppendSums appends the lines of Checksums, in the order of names. It sorts sums.
func AppendSums(dst []byte, sums []Sum) []byte {
	slices.SortFunc(sums, func(a, b Sum) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range sums {
		dst = append(append(append(append(dst, s.SHA256...), "  "...), s.Name...), '\n')
	}
	return dst
}

// checksums are of the sealed files, whose manifests say them, or of the rendered.
func checksums(all found, rendered []render.File, isRendered bool) []byte {
	var sums []Sum
	for i := range rendered {
		for _, p := range rendered[i].Parts {
			sums = append(sums, Sum{p.Name, p.SHA256})
		}
	}
	for i := range all {
		if p := &all[i]; p.rows > 0 && !isRendered {
			sums = append(sums, Sum{p.source.Partition.Path() + ".csv", p.source.CSVSHA256})
		}
	}
	return AppendSums(nil, sums)
}

// Rendering is what RenderedList holds.
type Rendering struct {
	Version int            `json:"version"`
	Content render.Content `json:"content"`
	Files   []RenderedFile `json:"files"`
}

// RenderedFile says what was made of a partition.
type RenderedFile struct {
	Manifest string `json:"manifest"`
	// CSVSHA256 and SealedRows stand in the manifest, too.
	CSVSHA256  string         `json:"csv_sha256"`
	SealedRows uint64         `json:"sealed_rows"`
	Rows       uint64         `json:"rows"`
	Parts      []RenderedPart `json:"parts"`
}

// RenderedPart is a file of the archive.
type RenderedPart struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// renderedList writes RenderedList. Who can open the archive is not its matter.
func renderedList(r *Request, all found, rendered []render.File) ([]byte, error) {
	list := Rendering{Version: 1, Content: r.Content, Files: make([]RenderedFile, 0, len(rendered))}
	list.Content.Recipients = nil
	next := 0
	for i := range all {
		p := &all[i]
		if p.rows == 0 {
			continue
		}
		f := &rendered[next]
		next++
		of := RenderedFile{
			Manifest: p.source.Partition.ManifestKey(), CSVSHA256: p.source.CSVSHA256, SealedRows: p.rows, Rows: f.Rows, Parts: make([]RenderedPart, 0, len(f.Parts)),
		}
		for _, part := range f.Parts {
			of.Parts = append(of.Parts, RenderedPart{part.Name, part.Text, part.SHA256})
		}
		list.Files = append(list.Files, of)
	}
	data, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", RenderedList, err)
	}
	return append(data, '\n'), nil
}
