package store

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// micros is an instant in a query: a bound time.Time would lose its fraction.
func micros(t time.Time) string {
	return fmt.Sprintf("fromUnixTimestamp64Micro(%d, 'UTC')", t.UnixMicro())
}

// rowText is a row's fields as its CSV has them, with the byte 0xFF between them: what seal.RowHash is taken of.
var rowText = textOf(codec.CSVColumns)

// eventText is the part of it that was published: what codec.Part.Contents are hashes of.
var eventText = textOf(codec.CSVColumns[len(codec.CSVColumns)-len(schema.Fields):])

func textOf(columns []string) string {
	texts := make([]string, len(columns))
	for i, c := range columns {
		switch c {
		case "recorded_at", "occurred_at":
			texts[i] = "formatDateTime(" + c + ", '%Y-%m-%dT%H:%i:%S.%fZ', 'UTC')"
		case "stream_seq", "batch_index", "id":
			texts[i] = "toString(" + c + ")"
		case "attributes":
			texts[i] = "toJSONString(attributes)" // see countSettings
		default:
			texts[i] = c
		}
	}
	return "concat(" + strings.Join(texts, `, '\xFF', `) + ")"
}

// Counts returns what was recorded from one instant up to, and without, another: how many rows, from where to
// where in the stream, and the sum of their hashes. final collapses rows that are stored twice.
func (s *Store) Counts(ctx context.Context, from, to time.Time, final bool) ([]rollup.Count, error) {
	rows, err := s.conn.Query(clickhouse.Context(ctx, clickhouse.WithSettings(background.settings(countSettings))), `SELECT organization, trail, count(), min(stream_seq), max(stream_seq), sum(xxh3(`+rowText+`))
FROM audit_events`+finally(final)+` WHERE recorded_at >= `+micros(from)+` AND recorded_at < `+micros(to)+`
GROUP BY organization, trail ORDER BY organization, trail`)
	if err != nil {
		return nil, fmt.Errorf("count events from %s to %s: %w", from, to, err)
	}
	defer rows.Close()
	var counts []rollup.Count
	for rows.Next() {
		var c rollup.Count
		var trail string
		if err := rows.Scan(&c.Organization, &trail, &c.Rows, &c.FirstSeq, &c.LastSeq, &c.Sum); err != nil {
			return nil, fmt.Errorf("count events: %w", err)
		}
		c.Trail = schema.Trail(trail)
		counts = append(counts, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count events: %w", err)
	}
	return counts, nil
}

// Tallies returns what the table has of each message that was recorded from one instant up to, and without,
// another, in the order of the stream. Doubles count twice.
func (s *Store) Tallies(ctx context.Context, from, to time.Time) ([]tally.Tally, error) {
	rows, err := s.conn.Query(clickhouse.Context(ctx, clickhouse.WithSettings(background.settings(countSettings))), `SELECT stream_seq, any(organization), any(trail), any(recorded_at), count(), sum(xxh3(`+rowText+`))
FROM audit_events WHERE recorded_at >= `+micros(from)+` AND recorded_at < `+micros(to)+`
GROUP BY stream_seq ORDER BY stream_seq`)
	if err != nil {
		return nil, fmt.Errorf("count the events of each message: %w", err)
	}
	defer rows.Close()
	var tallies []tally.Tally
	for rows.Next() {
		var t tally.Tally
		var trail string
		if err := rows.Scan(&t.StreamSeq, &t.Organization, &trail, &t.RecordedAt, &t.Rows, &t.Sum); err != nil {
			return nil, fmt.Errorf("count the events of each message: %w", err)
		}
		t.Trail, t.RecordedAt = schema.Trail(trail), t.RecordedAt.UTC()
		tallies = append(tallies, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count the events of each message: %w", err)
	}
	return tallies, nil
}

func finally(final bool) string {
	if final {
		return " FINAL"
	}
	return ""
}

// FirstRecorded returns the time of the earliest event, and false if there is none.
func (s *Store) FirstRecorded(ctx context.Context) (time.Time, bool, error) {
	var n uint64
	var first time.Time
	if err := s.conn.QueryRow(ctx, "SELECT count(), min(recorded_at) FROM audit_events").Scan(&n, &first); err != nil {
		return time.Time{}, false, fmt.Errorf("find the earliest event: %w", err)
	}
	return first.UTC(), n > 0, nil
}

var csvSelect = func() string {
	columns := make([]string, len(codec.CSVColumns))
	for i, c := range codec.CSVColumns {
		columns[i] = c
		if c == "attributes" {
			columns[i] = "toJSONString(attributes) AS attributes"
		}
	}
	return strings.Join(columns, ", ")
}()

// csvSettings make FORMAT CSV write what codec.AppendCSV writes.
var csvSettings = clickhouse.Settings{
	"output_format_csv_crlf_end_of_line": 1, "date_time_output_format": "iso",
	"output_format_json_escape_forward_slashes": 0, "format_csv_delimiter": ",",
}

// countSettings make rowText what codec.AppendCSV writes, too.
var countSettings = clickhouse.Settings{"output_format_json_escape_forward_slashes": 0}

// CSV streams the partition as CSV with a header line (codec.CSVColumns), ordered by recorded_at,
// stream_seq and batch_index. final collapses rows that are stored twice. If the query fails on the way,
// Read returns the error.
func (s *Store) CSV(ctx context.Context, p schema.Partition, final bool) (io.ReadCloser, error) {
	tail := fmt.Sprintf(" FROM audit_events%s WHERE organization = %s AND trail = %s AND recorded_at >= %s AND recorded_at < %s"+
		" ORDER BY organization, trail, recorded_at, stream_seq, batch_index",
		finally(final), quoteString(p.Organization), quoteString(string(p.Trail)), micros(p.Hour), micros(p.End()))
	if s.native {
		return s.csvNative(ctx, "SELECT "+strings.Join(codec.CSVColumns, ", ")+tail)
	}
	out, err := s.conn.QueryFormat(clickhouse.Context(ctx, clickhouse.WithSettings(background.settings(csvSettings))), "CSVWithNames", "SELECT "+csvSelect+tail)
	if err != nil {
		return nil, fmt.Errorf("read %s as CSV: %w", p, err)
	}
	return out, nil
}

// csvNative writes the same text itself: the native protocol has no formats.
func (s *Store) csvNative(ctx context.Context, query string) (io.ReadCloser, error) {
	rows, err := s.conn.Query(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("read as CSV: %w", err)
	}
	r, w := io.Pipe()
	go func() {
		defer rows.Close()
		buf := codec.AppendCSVHeader(nil)
		for rows.Next() {
			e, err := scanStored(rows.Scan)
			if err != nil {
				w.CloseWithError(err)
				return
			}
			if buf = codec.AppendCSV(buf, e); len(buf) > 1<<16 {
				if _, err := w.Write(buf); err != nil {
					return // the reader has closed
				}
				buf = buf[:0]
			}
		}
		if err := rows.Err(); err != nil {
			w.CloseWithError(fmt.Errorf("read as CSV: %w", err))
			return
		}
		_, err := w.Write(buf)
		w.CloseWithError(err)
	}()
	return r, nil
}

// scanStored scans a row of codec.CSVColumns.
func scanStored(scan func(...any) error) (*codec.Stored, error) {
	e := new(codec.Stored)
	var trail string
	var id uuid.UUID
	dest := []any{&e.RecordedAt, &e.StreamSeq, &e.BatchIndex, &e.Organization, &trail, &e.RecordedBy}
	texts := make([]string, len(schema.Fields))
	for i := range schema.Fields {
		switch schema.Fields[i].Kind {
		case schema.KindID:
			dest = append(dest, &id)
		case schema.KindTime:
			dest = append(dest, &e.OccurredAt)
		case schema.KindMap:
			dest = append(dest, &e.Attributes)
		default:
			dest = append(dest, &texts[i])
		}
	}
	if err := scan(dest...); err != nil {
		return nil, fmt.Errorf("read an event: %w", err)
	}
	e.Trail, e.ID = schema.Trail(trail), id
	for i := range schema.Fields {
		if k := schema.Fields[i].Kind; k == schema.KindText || k == schema.KindJSON {
			schema.Fields[i].SetText(&e.Event, texts[i])
		}
	}
	return e, nil
}

func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
