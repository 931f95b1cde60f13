package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// ErrNoEvent means that an organization has no event of an id.
var ErrNoEvent = errors.New("there is no such event")

// Position is the place of an event among those of an organization, in the order in which they were recorded.
type Position struct {
	RecordedAt time.Time
	StreamSeq  uint64
	BatchIndex uint32
}

// IsZero tells that p is before everything.
func (p Position) IsZero() bool { return p.StreamSeq == 0 }

// Question is what is asked of the events of one organization.
type Question struct {
	Organization string
	schema.Filter
	// After leaves out what is not behind a position; UpTo what is behind a place in the stream, if it is not zero:
	// below the writer's ack floor nothing more comes in between.
	After Position
	UpTo  uint64
	// Newest has the events that occurred last first; else they come in the order in which they were recorded.
	Newest bool
	Limit  int // 0 for all
	Offset int

	// Follow says that a live tail asks, which gives way to pages.
	Follow bool

	within stretch
}

// where is the condition for the events that q asks for.
func (q *Question) where() string {
	var b strings.Builder
	b.WriteString(" WHERE organization = " + quoteString(q.Organization))
	for _, t := range q.Terms() {
		b.WriteString(" AND " + t.Column + " = " + quoteString(t.Value))
	}
	if !q.Start.IsZero() {
		b.WriteString(" AND occurred_at >= " + micros(q.Start))
	}
	if !q.End.IsZero() {
		b.WriteString(" AND occurred_at < " + micros(q.End))
	}
	if q.Text != "" {
		found := make([]string, len(schema.TextColumns))
		for i, c := range schema.TextColumns {
			found[i] = "positionCaseInsensitive(" + c + ", " + quoteString(q.Text) + ") > 0"
		}
		b.WriteString(" AND (" + strings.Join(found, " OR ") + ")")
	}
	if !q.After.IsZero() {
		at := micros(q.After.RecordedAt)
		fmt.Fprintf(&b, " AND recorded_at >= %s AND (recorded_at, stream_seq, batch_index) > (%s, %d, %d)", at, at, q.After.StreamSeq, q.After.BatchIndex)
	}
	if !q.within.from.IsZero() {
		b.WriteString(" AND recorded_at >= " + micros(q.within.from))
	}
	if !q.within.to.IsZero() {
		b.WriteString(" AND recorded_at < " + micros(q.within.to))
	}
	if q.UpTo > 0 {
		fmt.Fprintf(&b, " AND stream_seq <= %d", q.UpTo)
	}
	return b.String()
}

// order is that of the answer.
func (q *Question) order() string {
	if q.Newest {
		return " ORDER BY recorded_at DESC, stream_seq DESC, batch_index DESC"
	}
	return " ORDER BY recorded_at, stream_seq, batch_index"
}

func (q *Question) limit() string {
	switch {
	case q.Limit == 0:
		return ""
	case q.Offset == 0:
		return fmt.Sprintf(" LIMIT %d", q.Limit)
	default:
		return fmt.Sprintf(" LIMIT %d OFFSET %d", q.Limit, q.Offset)
	}
}

func (q *Question) tail() string { return q.where() + q.order() + q.limit() }

// questionSettings bound one person's question, not the machine.
var questionSettings = clickhouse.Settings{
	"query_plan_optimize_lazy_materialization": 1, "max_execution_time": 60, "optimize_read_in_order": 1,
}

// urgency is the class of a question without a text.
func (q *Question) urgency() class {
	if q.Follow {
		return following
	}
	return urgent
}

// Events calls each with the events that q asks for, one after another. An error of each ends it.
func (s *Store) Events(ctx context.Context, q *Question, each func(*codec.Stored) error) error {
	if q.Limit > 0 && q.Limit <= pageRows {
		return s.page(ctx, q, each)
	}
	return s.stored(ctx, streaming, q.tail(), each)
}

// stored calls each with the rows of a table's condition and order.
func (s *Store) stored(ctx context.Context, of class, tail string, each func(*codec.Stored) error) error {
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(of.settings(questionSettings))),
		"SELECT "+strings.Join(codec.CSVColumns, ", ")+" FROM audit_events"+tail)
	if err != nil {
		return fmt.Errorf("ask for events: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scanStored(rows.Scan)
		if err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("ask for events: %w", err)
	}
	return nil
}

// Event returns the event of an id, or ErrNoEvent.
func (s *Store) Event(ctx context.Context, organization string, id uuid.UUID) (*codec.Stored, error) {
	q := &Question{Organization: organization, Limit: 1}
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(urgent.settings(questionSettings))),
		"SELECT "+strings.Join(codec.CSVColumns, ", ")+" FROM audit_events"+q.where()+" AND id = "+quoteString(id.String())+" LIMIT 1")
	if err != nil {
		return nil, fmt.Errorf("look for event %s: %w", id, err)
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("look for event %s: %w", id, err)
		}
		return nil, fmt.Errorf("%w: %s", ErrNoEvent, id)
	}
	return scanStored(rows.Scan)
}

// Table is a text form in which events are streamed, without one of them being an object on the way.
type Table string

// The forms. TSV has the 14 columns of requirement Q8, in the quoting of CSV, so that a value may hold anything; CSV
// has those of codec.CSVColumns; NDJSON has a line for each event, as it was published, and where it was recorded.
const (
	TSV    Table = "tsv"
	CSV    Table = "csv"
	NDJSON Table = "ndjson"
)

// tsvColumns are the columns of requirement Q8, and the expressions that are in them.
var tsvColumns = [][2]string{
	{"EventTime", "concat(formatDateTime(occurred_at, '%Y-%m-%dT%H:%i:%S.%f', 'UTC'), 'Z')"},
	{"Source", "source"},
	{"Event", "event"},
	{"Target", "target_type"},
	{"TargetId", "target_id"},
	{"TargetName", "target_name"},
	{"Action", "action"},
	{"AppId", "app_id"},
	{"UserId", "actor_id"},
	{"UserName", "actor_name"},
	{"IpAddress", "ip"},
	{"Description", "description"},
	{"Data", "data"},
	{"DataType", "data_type"},
}

// Stream is the text of all events that q asks for, in the order in which they were recorded, or the newest first. An
// error on the way is returned by Read. The engine's memory for it does not grow with it. It needs HTTP: the native
// protocol has no formats.
func (s *Store) Stream(ctx context.Context, q *Question, form Table) (io.ReadCloser, error) {
	if s.native {
		return nil, errors.New("events are streamed over HTTP only: give clickhouse.url as http:// or https://")
	}
	settings := streaming.settings(csvSettings)
	settings["optimize_read_in_order"] = 1
	var format, columns string
	switch form {
	case TSV:
		format, columns = "CSVWithNames", joinColumns(tsvColumns)
		settings["format_csv_delimiter"] = "\t"
	case CSV:
		format, columns = "CSVWithNames", csvSelect
	case NDJSON:
		format, columns = "TSVRaw", ndjsonLine
	default:
		return nil, fmt.Errorf("form %q: there is none", form)
	}
	parts, err := s.stretches(ctx, q)
	if err != nil {
		return nil, err
	}
	text := func(q *Question, format string) (io.ReadCloser, error) {
		out, err := s.reads.QueryFormat(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), format, "SELECT "+columns+" FROM audit_events"+q.tail())
		if err != nil {
			return nil, fmt.Errorf("stream events: %w", err)
		}
		return out, nil
	}
	if parts == nil {
		return text(q, format)
	}
	first, err := text(q.in(parts[0]), format)
	if err != nil {
		return nil, err
	}
	return &stretched{first, parts[1:], func(t stretch) (io.ReadCloser, error) {
		return text(q.in(t), strings.TrimSuffix(format, "WithNames"))
	}}, nil
}

func joinColumns(columns [][2]string) string {
	all := make([]string, len(columns))
	for i, c := range columns {
		all[i] = c[1] + " AS `" + c[0] + "`"
	}
	return strings.Join(all, ", ")
}

// ndjsonLine makes the JSON of an event out of its columns, as codec's JSON has it.
var ndjsonLine = func() string {
	text := func(name, column string) string {
		return fmt.Sprintf("if(%s = '', '', concat(',\"%s\":', toJSONString(toString(%s))))", column, name, column)
	}
	object := func(name string, fields ...string) string {
		inner := "concat(" + strings.Join(fields, ", ") + ", '')"
		return fmt.Sprintf("if(%s = '', '', concat(',\"%s\":{', substring(%s, 2), '}'))", inner, name, inner)
	}
	raw := func(name string) string {
		return fmt.Sprintf("if(%s = '', '', concat(',\"%s\":', replaceRegexpAll(%s, '[\\r\\n]', ' ')))", name, name, name)
	}
	at := func(column string) string { return "formatDateTime(" + column + ", '%Y-%m-%dT%H:%i:%S.%fZ', 'UTC')" }
	return "concat('{\"id\":\"', toString(id), '\",\"occurred_at\":\"', " + at("occurred_at") + ", '\",\"organization\":', toJSONString(toString(organization)), " +
		"',\"trail\":', toJSONString(toString(trail)), " +
		strings.Join([]string{
			text("source", "source"), text("event", "event"), text("action", "action"), text("outcome", "outcome"),
			object("actor", text("type", "actor_type"), text("id", "actor_id"), text("name", "actor_name")),
			object("target", text("type", "target_type"), text("id", "target_id"), text("name", "target_name")),
			text("app_id", "app_id"),
			object("context", text("ip", "ip"), text("user_agent", "user_agent"), text("session_id", "session_id"), text("trace_id", "trace_id"), text("location", "location")),
			text("description", "description"), raw("before"), raw("after"), raw("data"), text("data_type", "data_type"),
			"if(empty(attributes), '', concat(',\"attributes\":', toJSONString(attributes)))",
		}, ", ") +
		", ',\"recorded_at\":\"', " + at("recorded_at") + ", '\",\"stream_seq\":', toString(stream_seq), ',\"batch_index\":', toString(batch_index), ',\"recorded_by\":', toJSONString(toString(recorded_by)), '}')"
}()

// Bar is how many events occurred in a while.
type Bar struct {
	Start  time.Time `json:"start"`
	Events uint64    `json:"events"`
}

// Histogram counts the events that q asks for, by the time they occurred, in steps of a width. Steps without events
// are left out.
func (s *Store) Histogram(ctx context.Context, q *Question, width time.Duration) ([]Bar, error) {
	of := urgent
	if q.Text != "" {
		of = searching
	}
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(of.settings(questionSettings))), fmt.Sprintf(
		"SELECT toStartOfInterval(occurred_at, toIntervalSecond(%d), 'UTC') AS start, count() FROM audit_events%s GROUP BY start ORDER BY start", max(1, int(width.Seconds())), q.where()))
	if err != nil {
		return nil, fmt.Errorf("count events over time: %w", err)
	}
	defer rows.Close()
	bars := []Bar{}
	for rows.Next() {
		var b Bar
		if err := rows.Scan(&b.Start, &b.Events); err != nil {
			return nil, fmt.Errorf("count events over time: %w", err)
		}
		b.Start = b.Start.UTC()
		bars = append(bars, b)
	}
	return bars, rows.Err()
}

// Seen is a type of event that an organization has recorded (requirement Q12).
type Seen struct {
	Trail  schema.Trail `json:"trail"`
	Source string       `json:"source"`
	Event  string       `json:"event"`
	Action string       `json:"action"`
	Events uint64       `json:"events"`
	First  time.Time    `json:"first"`
	Last   time.Time    `json:"last"`
}

// Catalogue lists the types of events of an organization, the most frequent first.
func (s *Store) Catalogue(ctx context.Context, organization string) ([]Seen, error) {
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(searching.settings(questionSettings))),
		"SELECT toString(trail), toString(source), toString(event), toString(action), count() AS n, min(recorded_at), max(recorded_at) FROM audit_events WHERE organization = "+
			quoteString(organization)+" GROUP BY trail, source, event, action ORDER BY n DESC, source, event, action LIMIT 10000")
	if err != nil {
		return nil, fmt.Errorf("list the types of events: %w", err)
	}
	defer rows.Close()
	all := []Seen{}
	for rows.Next() {
		var v Seen
		var trail string
		if err := rows.Scan(&trail, &v.Source, &v.Event, &v.Action, &v.Events, &v.First, &v.Last); err != nil {
			return nil, fmt.Errorf("list the types of events: %w", err)
		}
		v.Trail, v.First, v.Last = schema.Trail(trail), v.First.UTC(), v.Last.UTC()
		all = append(all, v)
	}
	return all, rows.Err()
}

// Organizations lists those that have events.
func (s *Store) Organizations(ctx context.Context) ([]string, error) {
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(urgent.settings(questionSettings))), "SELECT DISTINCT toString(organization) AS name FROM audit_event_counts ORDER BY name LIMIT 10000")
	if err != nil {
		return nil, fmt.Errorf("list the organizations: %w", err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("list the organizations: %w", err)
		}
		all = append(all, name)
	}
	return all, rows.Err()
}

// cursor is how a position is written.
type cursor struct {
	At    int64  `json:"t"`
	Seq   uint64 `json:"s"`
	Index uint32 `json:"i"`
}

// MarshalText writes what UnmarshalText reads; what it is made of is nobody's business.
func (p Position) MarshalText() ([]byte, error) {
	return json.Marshal(cursor{p.RecordedAt.UnixMicro(), p.StreamSeq, p.BatchIndex})
}

// UnmarshalText reads what MarshalText wrote.
func (p *Position) UnmarshalText(text []byte) error {
	var c cursor
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("it is no position: %w", err)
	}
	*p = Position{time.UnixMicro(c.At).UTC(), c.Seq, c.Index}
	return nil
}

// Last is the place of the event of an organization that was recorded last, up to a place in the stream.
func (s *Store) Last(ctx context.Context, organization string, upTo uint64) (Position, error) {
	var p Position
	rows, err := s.reads.Query(clickhouse.Context(ctx, clickhouse.WithSettings(urgent.settings(questionSettings))), fmt.Sprintf(
		"SELECT recorded_at, stream_seq, batch_index FROM audit_events WHERE organization = %s AND stream_seq <= %d ORDER BY recorded_at DESC, stream_seq DESC, batch_index DESC LIMIT 1",
		quoteString(organization), upTo))
	if err != nil {
		return p, fmt.Errorf("find the last event: %w", err)
	}
	defer rows.Close()
	if rows.Next() {
		if err := rows.Scan(&p.RecordedAt, &p.StreamSeq, &p.BatchIndex); err != nil {
			return p, fmt.Errorf("find the last event: %w", err)
		}
		p.RecordedAt = p.RecordedAt.UTC()
	}
	return p, rows.Err()
}
