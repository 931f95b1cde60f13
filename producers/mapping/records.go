package mapping

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/kansa-audit/kansa/schema"
)

// maxRecord bounds a record. It may be larger than the event made of it.
const maxRecord = 8 << 20

// record is a piece of the input from which events are made.
type record struct {
	number   int    // of its line, or in a document its ordinal
	document bool   // number is an ordinal
	sub      int    // index among the records of one line
	more     bool   // another record of the same line follows
	offset   int64  // of its first byte
	size     int64  // to the end of its line or value
	raw      []byte // without white space around it; valid until the next record
	doc      string // raw as a JSON object, if the format of the input is not JSON
	err      error  // why it cannot be read
}

// reader splits an input into records.
type reader struct {
	r      *bufio.Reader
	format *Format // nil for JSON
	paths  []string
	lists  bool // repeated names become lists
	yield  func(record) bool
	offset int64
	number int
}

var errStop = errors.New("stopped by the reader of records")

// each yields the records until the input ends. The error says why it cannot be read further.
func (r *reader) each() error {
	var err error
	switch {
	case r.format == nil || r.format.Format == "" || r.format.Format == formatJSON:
		err = r.json()
	case r.format.Format == formatCSV:
		err = r.csv()
	default:
		err = r.lines(nil, func(line []byte) (string, error) { return r.format.parse(string(line), r.lists) })
	}
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// queued is a line that was read ahead.
type queued struct {
	text []byte
	size int64
	// long says that the line goes on in the input.
	long bool
}

// lines yields a record for each line that is not blank. first are lines that were read ahead.
func (r *reader) lines(first []queued, parse func(line []byte) (doc string, err error)) error {
	for {
		var line queued
		var err error
		switch {
		case len(first) > 0 && !first[0].long:
			line, first = first[0], first[1:]
		case len(first) > 0: // its rest is still in the input
			line, first = first[0], nil
			var rest int64
			_, rest, _, err = readLine(r.r)
			line.size += rest
		default:
			line.text, line.size, line.long, err = readLine(r.r)
		}
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return fmt.Errorf("read line %d: %w", r.number+1, err)
		}
		r.number++
		rec := record{number: r.number, offset: r.offset, size: line.size, raw: trim(line.text)}
		r.offset += line.size
		if len(rec.raw) > 0 {
			switch {
			case line.long:
				rec.err = tooLong()
			case parse != nil:
				rec.doc, err = parse(rec.raw)
				rec.err = recordFault(r.format, err)
			}
			if err := r.emit(rec); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// emit yields a record or, of a JSON document, the records in it.
func (r *reader) emit(rec record) error {
	if rec.err != nil || rec.doc != "" || len(rec.raw) == 0 || rec.raw[0] != '[' && len(r.paths) == 0 {
		return r.give(rec)
	}
	inner := r.recordsIn(rec.raw)
	if inner == nil {
		return r.give(rec)
	}
	for i, raw := range inner {
		rec.sub, rec.more, rec.raw = i, i < len(inner)-1, []byte(raw)
		if err := r.give(rec); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) give(rec record) error {
	if !r.yield(rec) {
		return errStop
	}
	return nil
}

// recordsIn returns the records that a document holds by one of the paths, or the elements of an array;
// nil if it is a record itself.
func (r *reader) recordsIn(raw []byte) []string {
	text := string(raw)
	if !schema.ValidJSON(text) {
		return nil
	}
	s := source{doc: gjson.Parse(text)}
	found := s.doc
	if !found.IsArray() {
		found = gjson.Result{}
		for _, p := range r.paths {
			if found = s.get(p); found.IsArray() {
				break
			}
		}
	}
	if !found.IsArray() {
		return nil
	}
	records := []string{}
	found.ForEach(func(_, element gjson.Result) bool {
		records = append(records, element.Raw)
		return true
	})
	return records
}

// json reads records that are lines, if the first line is a record, and otherwise a document: an array, an
// object that holds records, or values over several lines.
func (r *reader) json() error {
	var ahead []queued
	for {
		line, err := r.peekLine(&ahead)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case len(line) == 0 && err == nil:
			continue // blank
		case len(line) == 0:
			return r.lines(ahead, nil)
		case line[0] == '[', line[0] == '{' && len(r.paths) > 0 && (err == nil && ahead[len(ahead)-1].long || r.recordsIn(line) != nil):
			return r.document(ahead)
		case line[0] == '{' && severalValues(line):
			return r.document(ahead)
		case line[0] == '{' && err == nil && !ahead[len(ahead)-1].long && isCutOff(line):
			return r.secondLine(ahead)
		}
		return r.lines(ahead, nil)
	}
}

// secondLine decides about an input whose first line is the beginning of an object: if the second is an
// object by itself, the first is broken; otherwise both are parts of one.
func (r *reader) secondLine(ahead []queued) error {
	for {
		line, err := r.peekLine(&ahead)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case len(line) == 0 && err == nil:
			continue
		case len(line) == 0, line[0] == '{' && schema.ValidJSON(string(line)):
			return r.lines(ahead, nil)
		}
		return r.document(ahead)
	}
}

// peekLine reads a line ahead. Of one that is longer than a record only the beginning is read.
func (r *reader) peekLine(ahead *[]queued) ([]byte, error) {
	var line []byte
	for len(line) <= maxRecord {
		chunk, err := r.r.ReadSlice('\n')
		line = append(line, chunk...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read line %d: %w", r.number+len(*ahead)+1, err)
		}
		*ahead = append(*ahead, queued{text: line, size: int64(len(line))})
		return trim(line), err
	}
	*ahead = append(*ahead, queued{text: line, size: int64(len(line)), long: true})
	return trim(line), nil
}

// isCutOff tells whether a text is the beginning of JSON.
func isCutOff(text []byte) bool {
	end, ok := schema.SkipJSON(string(text), 0)
	return !ok && end >= len(text)
}

// severalValues tells whether another object follows the first on a line.
func severalValues(line []byte) bool {
	text := string(line)
	end, ok := schema.SkipJSON(text, 0)
	end = schema.SkipSpace(text, end)
	return ok && end < len(text) && (text[end] == '{' || text[end] == '[')
}

// document reads JSON values, one after the other: elements of arrays, records in objects, and others.
func (r *reader) document(ahead []queued) error {
	read := make([]io.Reader, 0, len(ahead)+1)
	for _, line := range ahead {
		read = append(read, bytes.NewReader(line.text))
	}
	d := &documentReader{reader: r, in: bufio.NewReaderSize(io.MultiReader(append(read, r.r)...), 1<<20)}
	return d.values(false)
}

// readLine returns the next line and its size; of one that is too long it keeps the beginning and drops the
// rest.
func readLine(r *bufio.Reader) (line []byte, size int64, long bool, err error) {
	for {
		chunk, err := r.ReadSlice('\n')
		size += int64(len(chunk))
		switch {
		case !long && len(line)+len(chunk) <= maxRecord:
			line = append(line, chunk...)
		default:
			long = true
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, size, long, err
		}
	}
}

// trim removes white space, and the record separators of RFC 7464.
func trim(line []byte) []byte { return bytes.Trim(line, " \t\r\n\x1e") }

func tooLong() *schema.Fault {
	return &schema.Fault{Problem: fmt.Sprintf("the record is longer than %d bytes", maxRecord), Remedy: "split the record, or name the array of records in input.records"}
}

// recordFault says what is wrong with a record in terms of its format; nil for nil.
func recordFault(f *Format, err error) error {
	if err == nil {
		return nil
	}
	var fault *schema.Fault
	if errors.As(err, &fault) {
		return err
	}
	name := formatJSON
	if f != nil && f.Format != "" {
		name = f.Format
	}
	remedy := "correct the record, or the mapping's input"
	switch {
	case errors.Is(err, errNotUTF8):
		remedy = "convert it to UTF-8, or name its encoding in input.charset"
	case errors.Is(err, errNoPattern):
		remedy = "add a pattern, or skip such lines by input.skip"
	default:
		var repeated *repeatedError
		if errors.As(err, &repeated) {
			remedy = "rename one, or set input.repeated to list, which keeps both"
		}
	}
	return &schema.Fault{Problem: "the record (" + name + ") " + err.Error(), Remedy: remedy}
}

// csv yields a record for each row. Quoted values may contain line breaks.
func (r *reader) csv() error {
	columns := r.format.Columns
	var row bytes.Buffer
	for {
		line, size, long, err := readLine(r.r)
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return fmt.Errorf("read line %d: %w", r.number+1, err)
		}
		r.number++
		rec := record{number: r.number, offset: r.offset, size: size}
		row.Reset()
		row.Write(line)
		for r.format.quotes() && bytes.Count(row.Bytes(), []byte{'"'})%2 != 0 && !last && !long && row.Len() < maxRecord {
			line, size, long, err = readLine(r.r)
			last = errors.Is(err, io.EOF)
			if err != nil && !last {
				return fmt.Errorf("read line %d: %w", r.number+1, err)
			}
			r.number++
			rec.size += size
			row.Write(line)
		}
		r.offset += rec.size
		rec.raw = bytes.Trim(row.Bytes(), "\r\n")
		if len(bytes.TrimSpace(rec.raw)) == 0 {
			if last {
				return nil
			}
			continue
		}
		values, err := r.format.row(string(rec.raw))
		switch {
		case long || row.Len() >= maxRecord:
			rec.err = tooLong()
		case err != nil:
			rec.err = recordFault(r.format, err)
		case columns == nil:
			if columns, err = header(values, r.lists); err != nil {
				return err
			}
			if last {
				return nil
			}
			continue
		default:
			rec.doc, err = csvObject(columns, r.format.MinColumns, values, r.lists)
			rec.err = recordFault(r.format, err)
		}
		if columns == nil {
			return fmt.Errorf("%w: read the header line: %w", ErrInvalid, rec.err)
		}
		if err := r.give(rec); err != nil || last {
			return err
		}
	}
}

func header(values []string, lists bool) ([]string, error) {
	for i, v := range values {
		values[i] = strings.TrimSpace(v)
		if values[i] == "" {
			return nil, fmt.Errorf("%w: column %d of the header line has no name: name the columns in input.columns", ErrInvalid, i+1)
		}
		for _, other := range values[:i] {
			if other == values[i] && !lists {
				return nil, fmt.Errorf("%w: the header line has %q twice: name the columns in input.columns, or set input.repeated to list", ErrInvalid, other)
			}
		}
	}
	return values, nil
}

func csvObject(columns []string, least int, values []string, lists bool) (string, error) {
	if least == 0 {
		least = len(columns)
	}
	if len(values) < least || len(values) > len(columns) {
		return "", fmt.Errorf("has %d values, and there are %d columns", len(values), len(columns))
	}
	var o object
	for i, value := range values {
		o.add(columns[i], value)
	}
	return o.json(lists)
}

// row splits the text of one row.
func (f *Format) row(text string) ([]string, error) {
	if !utf8.ValidString(text) {
		return nil, errNotUTF8
	}
	delimiter := f.delimiter(',')
	if !f.quotes() {
		return strings.Split(text, string(delimiter)), nil
	}
	c := csv.NewReader(strings.NewReader(text))
	c.Comma, c.FieldsPerRecord = delimiter, -1
	values, err := c.Read()
	var parse *csv.ParseError
	if errors.As(err, &parse) {
		return nil, fmt.Errorf("is not well-formed at byte %d: %w", parse.Column, parse.Err)
	}
	if err != nil {
		return nil, fmt.Errorf("is not well-formed: %w", err)
	}
	if _, err := c.Read(); !errors.Is(err, io.EOF) {
		return nil, errUnbalanced
	}
	return values, nil
}
