package codec

import (
	"bytes"
	"fmt"
	"mime"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// Content types of a message on audit.events.
const (
	ContentJSON   = "application/json"     // one event, or an array of them
	ContentNDJSON = "application/x-ndjson" // an event a line
	// ContentBlock is a columnar block: ClickHouse's Native format with the columns of schema.Fields.
	ContentBlock = "application/vnd.kansa.block"
)

// Message is one message of events as it lies on the broker.
type Message struct {
	Organization    string
	Trail           schema.Trail
	ContentType     string
	ContentEncoding string
	Payload         []byte
	// Scratch, if there is any, takes what Payload holds when it is decompressed. It is not to be used
	// again before the block is.
	Scratch []byte
	// Where and when the broker stored it.
	StreamSeq  uint64
	RecordedAt time.Time
	// GivenIDs is what schema.HeaderGivenIDs says: a block does not tell who made its ids.
	GivenIDs bool
	// RecordedBy is the credential that published it. The events of schema.RecordedBySystem may have the names that
	// schema.CheckReserved refuses.
	RecordedBy string
}

func (m *Message) system() bool { return m.RecordedBy == schema.RecordedBySystem }

// Reject is an event that may not be stored: its bytes whole, and why.
type Reject struct {
	Index int // within the message
	Raw   []byte
	// ContentType is that of Raw: JSON, or a block of one event where JSON can't say what was in it.
	ContentType string
	Err         error
}

// Decoded is what a message holds.
type Decoded struct {
	Block *Block
	// Index holds each row's place in the message, if some of it were rejected; nil means 0, 1, 2, …
	Index   []uint32
	Rejects []Reject
}

// Decode reads m. Events that break a rule are in Rejects and their neighbours in Block, which is
// then ready to be stored: valid, complete. The error is for a message that can't be read at all,
// and answers to [ErrMalformed] or schema.ErrInvalid. now is the clock of the one who checks.
func Decode(m *Message, now time.Time) (*Decoded, error) {
	if f := schema.CheckReserved(m.Organization, ""); f != nil && !m.system() {
		return nil, f
	}
	payload, err := decompress(m.ContentEncoding, m.Payload, m.Scratch)
	if err != nil {
		return nil, err
	}
	kind, _, err := mime.ParseMediaType(m.ContentType)
	if err != nil && m.ContentType != "" {
		return nil, fmt.Errorf("%w: content type %.64q: %w", ErrMalformed, m.ContentType, err)
	}
	var d *Decoded
	switch kind {
	case ContentBlock:
		d, err = m.decodeBlock(payload, now)
	case ContentNDJSON:
		d, err = m.decodeLines(payload, now)
	case ContentJSON, "":
		d, err = m.decodeJSON(payload, now)
	default:
		return nil, fmt.Errorf("%w: content type %.64q is not known: use %s, %s or %s",
			ErrMalformed, m.ContentType, ContentBlock, ContentNDJSON, ContentJSON)
	}
	if err != nil {
		return nil, err
	}
	d.Block.Complete(func(row int) uuid.UUID {
		if d.Index != nil {
			row = int(d.Index[row])
		}
		return DerivedID(m.RecordedAt, m.StreamSeq, row)
	})
	return d, nil
}

func (m *Message) decodeBlock(payload []byte, now time.Time) (*Decoded, error) {
	b, err := ParseNative(payload)
	if err != nil {
		return nil, err
	}
	if m.GivenIDs {
		b.MarkGiven()
	}
	faults := b.Check(now)
	if !m.system() {
		faults = b.checkReserved(faults)
	}
	if len(faults) == 0 {
		return &Decoded{Block: b}, nil
	}
	d := &Decoded{}
	events := b.Events()
	rows := make([]int, len(faults))
	for i, f := range faults {
		rows[i] = f.Row
		raw, kind := rawEvent(b, f.Row, &events[f.Row])
		d.Rejects = append(d.Rejects, Reject{Index: f.Row, Raw: raw, ContentType: kind, Err: f.Err})
	}
	d.Block = b.Without(rows)
	d.Index = indexWithout(b.Rows(), rows)
	return d, nil
}

// rawEvent is a rejected event of a block: as JSON, for a person to read, if that says all that was in
// it; or else as a block of its own.
func rawEvent(b *Block, row int, e *schema.Event) (raw []byte, contentType string) {
	whole := true
	for i := range schema.Fields {
		f := &schema.Fields[i]
		switch f.Kind {
		case schema.KindID, schema.KindTime:
		case schema.KindText:
			whole = whole && utf8.ValidString(f.Text(e))
		case schema.KindJSON:
			whole = whole && utf8.ValidString(f.Text(e)) && (f.Text(e) == "" || schema.ValidJSON(f.Text(e)))
		case schema.KindMap:
			first, end := b.attrRange(row)
			whole = whole && len(e.Attributes) == end-first // none was there twice
			for k, v := range e.Attributes {
				whole = whole && utf8.ValidString(k) && utf8.ValidString(v)
			}
		}
	}
	if whole {
		if out, err := AppendJSON(nil, e); err == nil {
			return out, ContentJSON
		}
	}
	return b.row(row).AppendNative(nil), ContentBlock
}

func indexWithout(n int, rows []int) []uint32 {
	index := make([]uint32, 0, n-len(rows))
	for i := range n {
		if len(rows) > 0 && rows[0] == i {
			rows = rows[1:]
			continue
		}
		index = append(index, uint32(i))
	}
	return index
}

// withoutMark removes the byte order mark of UTF-8, which programs of Windows write. JSON lets a reader ignore it
// (RFC 8259, section 8.1).
func withoutMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

func (m *Message) decodeLines(payload []byte, now time.Time) (*Decoded, error) {
	payload = withoutMark(payload)
	c := collector{m: m, now: now, d: &Decoded{Block: NewBlock()}}
	const few = 64 // events tell how large the rest will be; a payload is small enough to believe them
	whole := len(payload)
	for len(payload) > 0 {
		line, rest, _ := bytes.Cut(payload, []byte{'\n'})
		payload = rest
		if c.n == few && len(line) > 0 {
			c.d.Block.grow(len(rest)/(whole-len(rest)) + 1)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			c.add(line)
		}
	}
	return c.done()
}

func (m *Message) decodeJSON(payload []byte, now time.Time) (*Decoded, error) {
	payload = withoutMark(payload)
	c := collector{m: m, now: now, d: &Decoded{Block: NewBlock()}}
	text := unsafe.String(unsafe.SliceData(payload), len(payload))
	i := schema.SkipSpace(text, 0)
	if i == len(text) || text[i] != '[' {
		c.add(bytes.TrimSpace(payload))
		return c.done()
	}
	// One event that is no JSON leaves no way to tell where the next begins.
	if !schema.ValidJSON(text) {
		return nil, fmt.Errorf("%w: it is no JSON array", ErrMalformed)
	}
	for i = schema.SkipSpace(text, i+1); text[i] != ']'; {
		end, _ := schema.SkipJSON(text, i)
		c.add(payload[i:end:end])
		if i = schema.SkipSpace(text, end); text[i] == ',' {
			i = schema.SkipSpace(text, i+1)
		}
	}
	return c.done()
}

// collector gathers the events of a JSON message.
type collector struct {
	m      *Message
	now    time.Time
	d      *Decoded
	n      int
	parser parser
	e      schema.Event // the one at hand
}

func (c *collector) add(raw []byte) {
	i := c.n
	c.n++
	if c.n > schema.MaxMessageEvents {
		return
	}
	if err := c.parse(raw); err != nil {
		c.d.Rejects = append(c.d.Rejects, Reject{Index: i, Raw: raw, ContentType: ContentJSON, Err: err})
		c.parser.scratch = nil // err may quote what lies there
		return
	}
	if c.e.ID != uuid.Nil {
		c.d.Block.MarkGiven()
	}
	c.d.Block.Append(&c.e)
	c.d.Index = append(c.d.Index, uint32(i))
}

// parse reads raw into c.e, whose texts are good until the next.
func (c *collector) parse(raw []byte) error {
	e := &c.e
	if f := c.parser.parse(raw, e); f != nil {
		return f
	}
	if e.Organization != c.m.Organization && e.Organization != "" {
		return schema.Disagreement("organization", e.Organization, c.m.Organization)
	}
	if e.Trail != c.m.Trail && e.Trail != "" {
		return schema.Disagreement("trail", string(e.Trail), string(c.m.Trail))
	}
	e.Organization, e.Trail = c.m.Organization, c.m.Trail
	e.OccurredAt = e.OccurredAt.UTC().Truncate(time.Microsecond)
	if err := e.ValidateUTF8(c.now); err != nil {
		return err
	}
	if f := schema.CheckReserved("", e.Source); f != nil && !c.m.system() {
		return f
	}
	return nil
}

func (c *collector) done() (*Decoded, error) {
	switch {
	case c.n == 0:
		return nil, fmt.Errorf("%w: it holds no event", ErrMalformed)
	case c.n > schema.MaxMessageEvents:
		return nil, fmt.Errorf("%w: %d events, at most %d", ErrMalformed, c.n, schema.MaxMessageEvents)
	case len(c.d.Rejects) == 0:
		c.d.Index = nil
	}
	return c.d, nil
}

// OneLine is s with blanks for its control characters: a reason is for a header, which has one line.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
