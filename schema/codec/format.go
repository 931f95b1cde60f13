package codec

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Format is a form of text in which events are given to people and programs.
type Format string

// The formats (requirements I6, Q8, Z7).
const (
	FormatCSV    Format = "csv"    // RFC 4180: CRLF, a header line, quotes around all values but numbers
	FormatTSV    Format = "tsv"    // the same with tabs, and quotes only where they are needed
	FormatNDJSON Format = "ndjson" // an object a line
	FormatJSON   Format = "json"   // an array of them
	FormatCEF    Format = "cef"    // a line each; see cef.go
)

// Formats lists every format.
var Formats = []Format{FormatCSV, FormatTSV, FormatNDJSON, FormatJSON, FormatCEF}

// Profile says which names the columns have, or the members of an object (requirement Z10).
type Profile string

// The profiles.
const (
	// ProfileKansa has the names of this package: CSVColumns, and in JSON those of an event.
	ProfileKansa Profile = "kansa"
	// ProfileQlik has the 14 columns of requirement Q8.
	ProfileQlik Profile = "qlik"
	// ProfileDataPrep begins with _zl_timestamp, domain_name, pipeline_id and pipeline_name, and goes on as
	// ProfileKansa: attributes are there whole, too.
	ProfileDataPrep Profile = "dataprep"
)

// Profiles lists every profile.
var Profiles = []Profile{ProfileKansa, ProfileQlik, ProfileDataPrep}

// ContentType is the format's media type.
func (f Format) ContentType() string {
	switch f {
	case FormatTSV:
		return "text/tab-separated-values; charset=utf-8"
	case FormatNDJSON:
		return "application/x-ndjson"
	case FormatJSON:
		return "application/json"
	case FormatCEF:
		return "text/plain; charset=utf-8"
	default:
		return "text/csv; charset=utf-8"
	}
}

// Options of an Encoder.
type Options struct {
	Format Format
	// Profile is ProfileQlik by default in TSV, and else ProfileKansa. CEF has keys of its own and takes none.
	Profile Profile
	// SpreadsheetSafe, in CSV and TSV, puts ' before a value that a spreadsheet would take for a formula. See Mark.
	SpreadsheetSafe bool
	// Overflow is given the values that are too long for their key in CEF, whose place their SHA-256 takes. If it is
	// nil, TooLong takes their place, and they are gone. A value is good until the call returns.
	Overflow func(Overflow)
	// Device is who speaks in CEF; what an event's attributes say of it goes before.
	Device Device
}

// Check reports the first fault.
func (o *Options) Check() error {
	if !slices.Contains(Formats, o.Format) {
		return &schema.Fault{Field: "format", Value: string(o.Format), Problem: "is none", Remedy: "use " + names(Formats)}
	}
	if o.Profile != "" && !slices.Contains(Profiles, o.Profile) {
		return &schema.Fault{Field: "profile", Value: string(o.Profile), Problem: "is none", Remedy: "use " + names(Profiles)}
	}
	if o.Format == FormatCEF && o.Profile != "" && o.Profile != ProfileKansa {
		return &schema.Fault{Field: "profile", Value: string(o.Profile), Problem: "is not for cef, whose keys are those of its standard", Remedy: "leave it out"}
	}
	if o.SpreadsheetSafe && o.Format != FormatCSV && o.Format != FormatTSV {
		return &schema.Fault{
			Field: "spreadsheet_safe", Value: string(o.Format), Problem: "is not for this format, which no spreadsheet opens as cells",
			Remedy: "leave it out, or use csv or tsv",
		}
	}
	return nil
}

func names[T ~string](all []T) string {
	list := make([]string, len(all))
	for i, v := range all {
		list[i] = string(v)
	}
	return strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1]
}

// Encoder writes events in a format. It is for one goroutine, and keeps nothing of an event.
type Encoder struct {
	o       Options
	columns []column
	count   uint64
	times   [2]timeText
	scratch []byte   // of one value
	more    []byte   // of another
	keys    []string // of attributes
}

// NewEncoder returns an encoder, or the first fault of o.
func NewEncoder(o Options) (*Encoder, error) {
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("encode events: %w", err)
	}
	if o.Profile == "" {
		o.Profile = ProfileKansa
		if o.Format == FormatTSV {
			o.Profile = ProfileQlik
		}
	}
	o.Device.complete()
	return &Encoder{o: o, columns: columnsOf(o.Profile)}, nil
}

// AppendBegin appends what stands before the first event, and has e begin anew.
func (e *Encoder) AppendBegin(dst []byte) []byte {
	e.count = 0
	switch e.o.Format {
	case FormatCSV:
		return e.appendHeader(dst, ',')
	case FormatTSV:
		return e.appendHeader(dst, '\t')
	case FormatJSON:
		return append(dst, '[')
	}
	return dst
}

// Append appends one event.
func (e *Encoder) Append(dst []byte, s *Stored) []byte {
	e.count++
	switch e.o.Format {
	case FormatCSV:
		return e.appendCSV(dst, s)
	case FormatTSV:
		return e.appendTSV(dst, s)
	case FormatCEF:
		return append(e.appendCEF(dst, s), '\n')
	case FormatJSON:
		if e.count > 1 {
			dst = append(dst, ',')
		}
		return e.AppendObject(append(dst, '\n'), s)
	}
	return append(e.AppendObject(dst, s), '\n')
}

// AppendEnd appends what stands behind the last event.
func (e *Encoder) AppendEnd(dst []byte) []byte {
	if e.o.Format != FormatJSON {
		return dst
	}
	if e.count > 0 {
		dst = append(dst, '\n')
	}
	return append(dst, ']', '\n')
}

// AppendObject appends an event as one JSON object on one line, without a line break, in the encoder's profile.
func (e *Encoder) AppendObject(dst []byte, s *Stored) []byte {
	if e.o.Profile == ProfileQlik {
		return e.appendFlat(dst, s)
	}
	return e.appendNested(dst, s)
}

// A column of CSV and TSV; a member of an object, in ProfileQlik.
type column struct {
	name string
	kind columnKind
	// value may be in e.scratch.
	value func(e *Encoder, s *Stored) string
}

type columnKind uint8

const (
	columnText columnKind = iota
	columnNumber
	columnJSON
)

func (e *Encoder) timeOf(cache int, t time.Time) string {
	e.scratch = e.times[cache].append(e.scratch[:0], t.UnixMicro())
	return text(e.scratch)
}

func recordedAt(e *Encoder, s *Stored) string { return e.timeOf(0, s.RecordedAt) }
func occurredAt(e *Encoder, s *Stored) string { return e.timeOf(1, s.OccurredAt) }

func attributes(e *Encoder, s *Stored) string {
	e.scratch = e.appendAttributes(e.scratch[:0], s.Attributes)
	return text(e.scratch)
}

func attribute(name string) func(*Encoder, *Stored) string {
	return func(_ *Encoder, s *Stored) string { return s.Attributes[name] }
}
