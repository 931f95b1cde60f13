package mapping

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Line is an event of the input, or why there is none.
type Line struct {
	// Number is that of the record: its line or, in a JSON document, its ordinal; from 1.
	Number   int
	Document bool   // Number is an ordinal
	Offset   int64  // of the record's first byte, in the input's text
	Size     int64  // of the record, with the end of its line
	Raw      []byte // the record, without white space around it; valid until the next line
	Event    schema.Event
	Err      error
	// Part is the index of the event among those of its record.
	Part int
	// Skipped says that the mapping leaves the record out; there is neither an event nor an error.
	Skipped bool
	// Explained is set if Options.Explain is, and the record can be read by the mapping.
	Explained *Explained
	// More says that the same record or line gives another Line.
	More bool
}

// Place says where the record is, for people: "12" for a line, "record 12" in a document.
func (l *Line) Place() string {
	if l.Document {
		return "record " + itoa(l.Number)
	}
	return itoa(l.Number)
}

// Options of Lines.
type Options struct {
	// Mapping is nil for records that are events already.
	Mapping *Mapping
	// Organization and Trail, if set, replace those of every event.
	Organization string
	Trail        schema.Trail
	Now          func() time.Time // default time.Now
	// From is the number of the first record to yield; those before it are read, and skipped. Default 1.
	From int
	// Explain has each Line say what the mapping leaves of its record.
	Explain bool
	// WithoutID leaves events without an id if their records have none: for inputs that are not read again.
	WithoutID bool
	// unchecked leaves events as rules make them.
	unchecked bool
}

// Lines reads events from an input, gzip or not: NDJSON, a JSON document, or what the mapping's input says.
//
// Events without an id get one made of their bytes and their place, so that reading the same input again gives
// the same events. Every event it yields is valid. The last pair has an error if the input cannot be read further.
func Lines(input io.Reader, o Options) iter.Seq2[Line, error] {
	if o.Now == nil {
		o.Now = time.Now
	}
	return func(yield func(Line, error) bool) {
		var charset string
		r := &reader{}
		if o.Mapping != nil {
			in := &o.Mapping.Input
			charset, r.format, r.paths, r.lists = in.Charset, &in.Format, in.Records, in.Repeated == "list"
		}
		text, err := openText(input, charset)
		if err != nil {
			yield(Line{}, err)
			return
		}
		r.r = text
		goOn := true
		r.yield = func(rec record) bool {
			if rec.number >= o.From {
				goOn = o.events(&rec, func(l Line) bool { return yield(l, nil) })
			}
			return goOn
		}
		if err := r.each(); err != nil && goOn {
			yield(Line{}, err)
		}
	}
}

// events yields the events of a record.
func (o *Options) events(rec *record, yield func(Line) bool) bool {
	l := Line{Number: rec.number, Document: rec.document, Offset: rec.offset, Size: rec.size, Raw: rec.raw}
	now := o.Now()
	index := 0
	visit := func(e schema.Event, err error, more bool) bool {
		l.Part = index
		l.Event, l.Err, l.Skipped, l.More = e, err, errors.Is(err, errSkipped), more || rec.more
		switch {
		case l.Skipped:
			l.Event, l.Err = schema.Event{}, nil
		case err == nil && !o.unchecked:
			l.Err = o.complete(&l.Event, rec, index, now)
		}
		index++
		return yield(l)
	}
	switch {
	case rec.err != nil:
		return visit(schema.Event{}, rec.err, false)
	case o.Mapping != nil:
		var explained func(*Explained)
		if o.Explain {
			explained = func(x *Explained) { l.Explained = x }
		}
		return o.Mapping.events(rec, now, explained, visit)
	}
	e, err := codec.ParseEvent(rec.raw)
	return visit(e, err, false)
}

func (o *Options) complete(e *schema.Event, rec *record, index int, now time.Time) error {
	if o.Organization != "" {
		e.Organization = o.Organization
	}
	if o.Trail != "" {
		e.Trail = o.Trail
	}
	withoutID := o.WithoutID && e.ID == uuid.Nil
	if e.ID == uuid.Nil {
		e.ID = contentID(rec.raw, rec.number, rec.sub, index)
	}
	e.Complete(now)
	err := e.Validate(now)
	if withoutID {
		e.ID = uuid.Nil
	}
	return err
}

// contentID is made of a record and its place: equal records of one input are different events.
func contentID(text []byte, number, sub, index int) uuid.UUID {
	return codec.HashedID("record", itoa(number), itoa(sub), itoa(index), string(text))
}

func itoa(n int) string { return strconv.Itoa(n) }

// Events makes the events of a whole message, such as the bytes of a dead letter. They are not validated, and have no
// id if their records have none. The error is of the first event that cannot be made.
func (m *Mapping) Events(message io.Reader) (events []schema.Event, err error) {
	for line, err := range Lines(message, Options{Mapping: m, unchecked: true}) {
		switch {
		case err != nil:
			return nil, err
		case line.Err != nil:
			return nil, fmt.Errorf("record %s: %w", line.Place(), line.Err)
		case !line.Skipped:
			events = append(events, line.Event)
		}
	}
	return events, nil
}
