package codec

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// ErrTooMany is what a body with more events than an [Intake] takes answers to.
var ErrTooMany = errors.New("too many events")

// Bounds of what an Intake makes. A block of either size is a message that is worth its fsync.
const (
	intakeRows  = 5000
	intakeBytes = 1 << 20
	// maxLanes bounds the blocks that are open at once, each of which has some kilobytes at least.
	maxLanes = 256
)

// Intake sorts the events of one body, of any organizations and trails, into blocks of one organization and
// trail each. No event becomes a Go object that outlives it; blocks hold copies of what they need, so that the
// body may be used again when the last event is read. The same body gives the same blocks.
//
// Its methods read a body each; it is for one, and then [Intake.Flush].
type Intake struct {
	// Organization and Trail are those of events that name none; the others have to agree with them.
	Organization string
	Trail        schema.Trail
	// Now is the clock of the one who checks.
	Now time.Time
	// ID makes the id of the event at an index, if it has none; a new UUIDv7 if nil.
	ID func(index int) uuid.UUID
	// Permit says whether events of an organization and trail are welcome; all are, if nil. It is asked once
	// for each.
	Permit func(organization string, trail schema.Trail) error
	// Take gets a batch that is full, or the last of its kind. The block is the taker's.
	Take func(Batch)
	// Reject is told of each event that breaks a rule. What err says is good until it returns.
	Reject func(index int, id uuid.UUID, err error)
	// MaxEvents bounds the events of a body.
	MaxEvents int

	// IDs holds the id of each event so far: its own, or the one made for it; zero where one without is rejected.
	IDs []uuid.UUID

	lanes  []intakeLane
	last   int // lane of the last event: the next is often of the same
	parser parser
	e      schema.Event // the one at hand
	given  bool         // it came with an id
}

// Batch is events of one organization and trail.
type Batch struct {
	Organization string
	Trail        schema.Trail
	Block        *Block
	Index        []uint32 // of each event in the body
}

type intakeLane struct {
	Batch
	denied error
}

// Lines reads NDJSON.
func (in *Intake) Lines(body []byte) error {
	body = withoutMark(body)
	// Counted before anything is taken: a body is refused as a whole or not at all.
	if bytes.Count(body, []byte{'\n'}) >= in.MaxEvents && countLines(body) > in.MaxEvents {
		return in.tooMany()
	}
	for len(body) > 0 {
		line, rest, _ := bytes.Cut(body, []byte{'\n'})
		body = rest
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if err := in.add(line, (*parser).parse); err != nil {
			return err
		}
	}
	return in.any()
}

// countLines counts those that are not blank.
func countLines(body []byte) (n int) {
	for line := range bytes.Lines(body) {
		if len(bytes.TrimSpace(line)) > 0 {
			n++
		}
	}
	return n
}

// JSON reads one event or an array of them. Nothing may be published before it returns nil: an array that is
// cut off is known by its end.
func (in *Intake) JSON(body []byte) error { return in.json(body, (*parser).parse) }

// CloudEvents reads one CloudEvent in the structured mode, or a batch of them; see [Intake.CloudEvent].
func (in *Intake) CloudEvents(body []byte) error { return in.json(body, (*parser).cloudEvent) }

// Event takes an event that was made of a record, whose bytes are raw, or what is wrong with the record. Only more
// events than are welcome make it fail.
func (in *Intake) Event(raw []byte, e *schema.Event, wrong error) error {
	return in.add(raw, func(_ *parser, _ []byte, to *schema.Event) *schema.Fault {
		*to = schema.Event{}
		var fault *schema.Fault
		switch {
		case errors.As(wrong, &fault):
			return fault
		case wrong != nil:
			return &schema.Fault{Problem: wrong.Error(), Remedy: "correct the record"}
		}
		*to = *e
		return nil
	})
}

func (in *Intake) json(body []byte, parse parseFunc) error {
	body = withoutMark(body)
	text := unsafe.String(unsafe.SliceData(body), len(body))
	i := schema.SkipSpace(text, 0)
	if i == len(text) {
		return in.any()
	}
	if text[i] != '[' {
		end, ok := schema.SkipJSON(text, i)
		if ok {
			ok = schema.SkipSpace(text, end) == len(text)
		}
		if !ok {
			return in.malformed(text, end)
		}
		return in.add(bytes.TrimSpace(body), parse)
	}
	i = schema.SkipSpace(text, i+1)
	for first := true; ; first = false {
		if first && i < len(text) && text[i] == ']' {
			break
		}
		end, ok := schema.SkipJSON(text, i)
		if !ok {
			return in.malformed(text, end)
		}
		if err := in.add(body[i:end:end], parse); err != nil {
			return err
		}
		i = schema.SkipSpace(text, end)
		if i < len(text) && text[i] == ',' {
			i = schema.SkipSpace(text, i+1)
			continue
		}
		if i >= len(text) || text[i] != ']' {
			return in.malformed(text, i)
		}
		break
	}
	if end := schema.SkipSpace(text, i+1); end < len(text) {
		return in.malformed(text, end)
	}
	return in.any()
}

func (in *Intake) malformed(text string, at int) error {
	if at >= len(text) {
		return fmt.Errorf("%w: the JSON is cut off after %d bytes", ErrMalformed, len(text))
	}
	return fmt.Errorf("%w: it is not JSON at byte %d: %q", ErrMalformed, at+1, text[at])
}

// CloudEvent reads one CloudEvent in the binary mode: its attributes, and its data.
func (in *Intake) CloudEvent(attributes iter.Seq2[string, string], data []byte) error {
	return in.add(data, func(p *parser, data []byte, e *schema.Event) *schema.Fault {
		c := cloudEvent{e: e}
		*e = schema.Event{}
		clear(p.attrs)
		for name, value := range attributes {
			if !utf8.ValidString(name) || !utf8.ValidString(value) {
				return &schema.Fault{Field: name, Value: value, Problem: "is not valid UTF-8", Remedy: "encode it as UTF-8"}
			}
			if f := c.set(p, name, value); f != nil {
				return f
			}
		}
		if f := c.binaryData(data); f != nil {
			return f
		}
		return c.finish(p)
	})
}

// Block reads a columnar block, whose organization and trail are those of the Intake.
func (in *Intake) Block(body []byte) error {
	b, err := ParseNative(body)
	if err != nil {
		return err
	}
	if b.Rows() > in.MaxEvents {
		return in.tooMany()
	}
	lane, f := in.lane(in.Organization, in.Trail)
	if f != nil {
		return f
	}
	ids := reader{data: b.cols[colID]}
	for range b.Rows() {
		in.IDs = append(in.IDs, readUUID(ids.take(16)))
	}
	if lane.denied != nil {
		for row := range b.Rows() {
			in.Reject(row, in.IDs[row], lane.denied)
		}
		return nil
	}
	faults := b.checkReserved(b.Check(in.Now))
	rows := make([]int, len(faults))
	for i, f := range faults {
		rows[i] = f.Row
		in.Reject(f.Row, in.IDs[f.Row], f.Err)
	}
	index := indexWithout(b.Rows(), rows)
	given := false
	for _, row := range index {
		if in.IDs[row] == uuid.Nil {
			in.IDs[row] = in.newID(int(row))
		} else {
			given = true
		}
	}
	if len(rows) > 0 {
		b = b.Without(rows)
	}
	if b.Rows() == 0 {
		return nil
	}
	b.Complete(func(row int) uuid.UUID { return in.IDs[index[row]] })
	if given {
		b.MarkGiven()
	}
	lane.Block.AppendBlock(b) // b lies in the body
	lane.Index = index
	return nil
}

type parseFunc func(*parser, []byte, *schema.Event) *schema.Fault

// add reads the next event. Only more events than are welcome make it fail.
func (in *Intake) add(raw []byte, parse parseFunc) error {
	i := len(in.IDs)
	if i >= in.MaxEvents {
		return in.tooMany()
	}
	e := &in.e
	lane, err := in.read(raw, parse, i)
	in.IDs = append(in.IDs, e.ID)
	if err != nil {
		in.Reject(i, e.ID, err)
		return nil
	}
	b := lane.Block
	if b.Rows() >= intakeRows || b.Rows() > 0 && b.Bytes()+len(raw) > intakeBytes {
		in.Take(lane.Batch)
		b = TakeBlock()
		lane.Block, lane.Index = b, nil
	}
	b.Append(e)
	if in.given {
		b.MarkGiven()
	}
	lane.Index = append(lane.Index, uint32(i))
	return nil
}

// read makes raw, the event at an index, into in.e, and finds its lane.
func (in *Intake) read(raw []byte, parse parseFunc, index int) (*intakeLane, error) {
	e := &in.e
	if f := parse(&in.parser, raw, e); f != nil {
		return nil, f
	}
	switch {
	case e.Organization == "":
		e.Organization = in.Organization
	case in.Organization != "" && e.Organization != in.Organization:
		return nil, disagrees("organization", e.Organization, in.Organization)
	}
	switch {
	case e.Trail == "":
		e.Trail = in.Trail
	case in.Trail != "" && e.Trail != in.Trail:
		return nil, disagrees("trail", string(e.Trail), string(in.Trail))
	}
	if e.Outcome == "" {
		e.Outcome = schema.Success
	}
	e.OccurredAt = e.OccurredAt.UTC().Truncate(time.Microsecond)
	if err := e.ValidateUTF8(in.Now); err != nil {
		return nil, err
	}
	if f := schema.CheckReserved("", e.Source); f != nil {
		return nil, f
	}
	lane, f := in.lane(e.Organization, e.Trail)
	if f != nil {
		return nil, f
	}
	in.given = e.ID != uuid.Nil
	if lane.denied == nil && !in.given {
		e.ID = in.newID(index)
	}
	return lane, lane.denied
}

func disagrees(field, body, request string) *schema.Fault {
	return &schema.Fault{
		Field: field, Value: body, Problem: fmt.Sprintf("disagrees with the request, which says %q", request),
		Remedy: "send the event in a request for its own, or in one that names none",
	}
}

func (in *Intake) newID(index int) uuid.UUID {
	if in.ID != nil {
		return in.ID(index)
	}
	return schema.NewID(in.Now)
}

// lane finds or makes the lane of an organization and trail, which are valid.
func (in *Intake) lane(organization string, trail schema.Trail) (*intakeLane, *schema.Fault) {
	for k := range len(in.lanes) {
		i := in.last + k
		if i >= len(in.lanes) {
			i -= len(in.lanes)
		}
		if l := &in.lanes[i]; l.Organization == organization && l.Trail == trail {
			in.last = i
			return l, nil
		}
	}
	if len(in.lanes) == maxLanes {
		return nil, &schema.Fault{
			Field: "organization", Value: organization, Problem: fmt.Sprintf("is beyond the %d organizations and trails of one request", maxLanes),
			Remedy: "send it in another request",
		}
	}
	organization = string([]byte(organization)) // it lies in the body
	trail = schema.Trail([]byte(trail))
	l := intakeLane{Batch: Batch{Organization: organization, Trail: trail}}
	if f := schema.CheckReserved(organization, ""); f != nil {
		l.denied = f
	} else if in.Permit != nil {
		l.denied = in.Permit(organization, trail)
	}
	if l.denied == nil {
		l.Block = TakeBlock()
	}
	in.last = len(in.lanes)
	in.lanes = append(in.lanes, l)
	return &in.lanes[in.last], nil
}

func (in *Intake) any() error {
	if len(in.IDs) == 0 {
		return fmt.Errorf("%w: it holds no event", ErrMalformed)
	}
	return nil
}

func (in *Intake) tooMany() error { return fmt.Errorf("%w: at most %d", ErrTooMany, in.MaxEvents) }

// Flush hands out what is left.
func (in *Intake) Flush() {
	for i := range in.lanes {
		switch b := in.lanes[i].Block; {
		case b == nil:
		case b.Rows() > 0:
			in.Take(in.lanes[i].Batch)
		default:
			b.GiveBack()
		}
		in.lanes[i].Block = nil
	}
}

// Discard is Flush for a body that came to nothing.
func (in *Intake) Discard() {
	for i := range in.lanes {
		if b := in.lanes[i].Block; b != nil {
			b.GiveBack()
		}
		in.lanes[i].Block = nil
	}
}
