package codec

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// parseCSV reads RFC 4180 by its letter: CRLF ends a record, a quoted field holds any bytes, a quote in it
// is doubled, and a field without quotes holds none. (encoding/csv turns CRLF in quotes into LF.)
func parseCSV(text string) (records [][]string, err error) {
	var record []string
	for i := 0; i < len(text); {
		var field strings.Builder
		if text[i] == '"' {
			for i++; ; i++ {
				if i >= len(text) {
					return nil, fmt.Errorf("the quote is not closed")
				}
				if text[i] == '"' {
					if i++; i >= len(text) || text[i] != '"' {
						break
					}
				}
				field.WriteByte(text[i])
			}
		} else {
			for i < len(text) && !strings.ContainsRune(",\r\n\"", rune(text[i])) {
				field.WriteByte(text[i])
				i++
			}
		}
		record = append(record, field.String())
		switch {
		case strings.HasPrefix(text[i:], ","):
			i++
		case strings.HasPrefix(text[i:], "\r\n"):
			i += 2
			records = append(records, record)
			record = nil
		default:
			return nil, fmt.Errorf("byte %d: %.20q after a field", i, text[i:])
		}
	}
	if record != nil {
		return nil, fmt.Errorf("the last record is not ended")
	}
	return records, nil
}

func TestCSVRoundTrip(t *testing.T) {
	t.Parallel()
	events := randomEvents(200)
	text := AppendCSVHeader(nil)
	stored := make([]Stored, len(events))
	for i := range events {
		stored[i] = Stored{Event: events[i], RecordedAt: testNow.Add(time.Duration(i) * time.Microsecond), StreamSeq: 1<<63 + uint64(i), BatchIndex: uint32(i), RecordedBy: []string{"", "key:a", "nats:\"b\""}[i%3]}
		text = AppendCSV(text, &stored[i])
	}
	records, err := parseCSV(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(CSVColumns, records[0]); diff != "" || len(records) != len(events)+1 {
		t.Fatalf("%d records, header (-want +got):\n%s", len(records), diff)
	}
	for i, record := range records[1:] {
		if diff := cmp.Diff(canonicalStored(t, &stored[i]), canonicalStored(t, storedOf(t, record))); diff != "" {
			t.Errorf("event %d (-written +read):\n%s", i, diff)
		}
	}
}

func canonicalStored(t *testing.T, s *Stored) []any {
	t.Helper()
	e := s.Event
	texts := map[string]string{}
	for i := range schema.Fields {
		if f := &schema.Fields[i]; f.Kind == schema.KindText || f.Kind == schema.KindJSON {
			texts[f.Name] = f.Text(&e) // JSON byte for byte
		}
	}
	return []any{s.RecordedAt, s.StreamSeq, s.BatchIndex, s.RecordedBy, e.Organization, e.Trail, e.ID, e.OccurredAt, texts, e.Attributes}
}

// storedOf is the event of a record of CSV.
func storedOf(t *testing.T, record []string) *Stored {
	t.Helper()
	if len(record) != len(CSVColumns) {
		t.Fatalf("%d fields, want %d", len(record), len(CSVColumns))
	}
	when := func(v string) time.Time {
		at, err := time.Parse(TimeLayout, v)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	var s Stored
	s.RecordedAt = when(record[0])
	seq, seqErr := strconv.ParseUint(record[1], 10, 64)
	index, indexErr := strconv.ParseUint(record[2], 10, 32)
	if seqErr != nil || indexErr != nil {
		t.Fatal(seqErr, indexErr)
	}
	s.StreamSeq, s.BatchIndex = seq, uint32(index)
	s.Organization, s.Trail, s.RecordedBy = record[3], schema.Trail(record[4]), record[5]
	for i := range schema.Fields {
		v := record[6+i]
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindID:
			s.ID = uuid.MustParse(v)
		case schema.KindTime:
			s.OccurredAt = when(v)
		case schema.KindText, schema.KindJSON:
			f.SetText(&s.Event, v)
		case schema.KindMap:
			if err := json.Unmarshal([]byte(v), &s.Attributes); err != nil {
				t.Fatalf("%q: %v", v, err)
			}
			if len(s.Attributes) == 0 {
				s.Attributes = nil
			}
		}
	}
	return &s
}

// The bytes are promised: verifiers in other languages and older archives depend on them.
func TestCSVBytes(t *testing.T) {
	t.Parallel()
	const header = `"recorded_at","stream_seq","batch_index","organization","trail","recorded_by","id","occurred_at","source","event","action","outcome",` +
		`"actor_type","actor_id","actor_name","target_type","target_id","target_name","app_id","ip","user_agent","session_id","trace_id",` +
		`"location","description","before","after","data","data_type","attributes"` + "\r\n"
	const line = `"2026-11-22T05:00:00.000000Z",7,3,"acme","access","key:billing","0193500b-7c00-7abc-8def-0123456789ab","1970-01-01T00:00:00.000001Z","s","e","a","denied",` +
		`"","","","","","","","","","","","","two` + "\r\n" + `lines, ""quoted""","","","{""a"": 1}","","{""a"":""<\u0000é>"",""b"":""""}"` + "\r\n"
	got := string(AppendCSV(AppendCSVHeader(nil), &Stored{
		Event: schema.Event{
			ID: uuid.MustParse("0193500b-7c00-7abc-8def-0123456789ab"), OccurredAt: time.UnixMicro(1), Organization: "acme", Trail: schema.Access,
			Source: "s", Event: "e", Action: "a", Outcome: schema.Denied, Description: "two\r\nlines, \"quoted\"", Data: json.RawMessage(`{"a": 1}`),
			Attributes: map[string]string{"b": "", "a": "<\x00é>"},
		},
		RecordedAt: testNow, StreamSeq: 7, BatchIndex: 3, RecordedBy: "key:billing",
	}))
	if diff := cmp.Diff(header+line, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
