package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

func encode(t testing.TB, o Options, stored []Stored) string {
	t.Helper()
	e, err := NewEncoder(o)
	if err != nil {
		t.Fatal(err)
	}
	dst := e.AppendBegin(nil)
	for i := range stored {
		dst = e.Append(dst, &stored[i])
	}
	return string(e.AppendEnd(dst))
}

// storedOfJSON is the event of an object in the names of Kansa.
func storedOfJSON(t *testing.T, line []byte) *Stored {
	t.Helper()
	var own struct {
		RecordedAt time.Time `json:"recorded_at"`
		StreamSeq  uint64    `json:"stream_seq"`
		BatchIndex uint32    `json:"batch_index"`
	}
	var s Stored
	for _, into := range []any{&own, &s.Event} {
		if err := json.Unmarshal(line, into); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	s.RecordedAt, s.StreamSeq, s.BatchIndex = own.RecordedAt, own.StreamSeq, own.BatchIndex
	return &s
}

// oneLine is s with its JSON without line breaks and without white space around it.
func oneLine(s Stored) *Stored {
	for _, raw := range []*json.RawMessage{&s.Before, &s.After, &s.Data} {
		*raw = bytes.Trim(slices.DeleteFunc(bytes.Clone(*raw), func(c byte) bool { return c == '\n' || c == '\r' }), " \t")
	}
	return &s
}

// Requirement I6: JSON, by the line and as an array, has all of an event.
func TestJSONFormats(t *testing.T) {
	t.Parallel()
	stored := storedEvents(200)
	lines := strings.Split(encode(t, Options{Format: FormatNDJSON}, stored), "\n")
	var array []json.RawMessage
	if err := json.Unmarshal([]byte(encode(t, Options{Format: FormatJSON}, stored)), &array); err != nil {
		t.Fatal(err)
	}
	if len(lines) != len(stored)+1 || lines[len(stored)] != "" || len(array) != len(stored) {
		t.Fatalf("%d lines, %d in the array", len(lines), len(array))
	}
	for i := range stored {
		if lines[i] != string(array[i]) {
			t.Fatalf("event %d is %s in a line and %s in the array", i, lines[i], array[i])
		}
		if diff := cmp.Diff(canonicalStored(t, oneLine(stored[i])), canonicalStored(t, storedOfJSON(t, []byte(lines[i])))); diff != "" {
			t.Errorf("event %d (-stored +read):\n%s", i, diff)
		}
	}
	if got := encode(t, Options{Format: FormatJSON}, nil); got != "[]\n" {
		t.Errorf("no events are %q", got)
	}
}

// Requirement Z10: a profile for the names of columns, with attributes kept whole.
func TestProfiles(t *testing.T) {
	t.Parallel()
	s := Stored{
		Event: schema.Event{
			ID: uuid.MustParse("0193500b-7c00-7abc-8def-0123456789ab"), OccurredAt: testNow.Add(1234567 * time.Microsecond), Organization: "acme", Trail: schema.Activity,
			Source: "pipelines", Event: "pipeline.updated", Action: "update", Outcome: schema.Success, Actor: schema.Actor{Type: "user", ID: "u-7", Name: "佐藤"},
			Target: schema.Target{Type: "pipeline", ID: "p-1", Name: "Sales"}, Data: json.RawMessage("{\n\"n\": 1.50}"),
			Attributes: map[string]string{"pipeline_id": "p-1", "pipeline_name": "Sales, \"all\"", "domain_name": "example.com", "other": "kept"},
		},
		RecordedAt: testNow.Add(2 * time.Second), StreamSeq: 7, BatchIndex: 3,
	}
	const attributes = `{""domain_name"":""example.com"",""other"":""kept"",""pipeline_id"":""p-1"",""pipeline_name"":""Sales, \""all\""""}`
	text := encode(t, Options{Format: FormatCSV, Profile: ProfileDataPrep}, []Stored{s})
	for _, want := range []string{`"_zl_timestamp","domain_name","pipeline_id","pipeline_name","recorded_at"`, "\r\n" + `1795323601234,"example.com","p-1","Sales, ""all""","2026-`, attributes} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if got, want := encode(t, Options{Format: FormatCSV}, []Stored{s}), string(csvOf([]Stored{s})); got != want {
		t.Errorf("in its own profile it is\n%s\nnot the partition's\n%s", got, want)
	}
	var prep map[string]any
	if err := json.Unmarshal([]byte(encode(t, Options{Format: FormatNDJSON, Profile: ProfileDataPrep}, []Stored{s})), &prep); err != nil {
		t.Fatal(err)
	}
	if prep["_zl_timestamp"] != 1795323601234.0 || prep["pipeline_name"] != `Sales, "all"` || len(prep["attributes"].(map[string]any)) != 4 {
		t.Errorf("got %v", prep)
	}
	const flat = `{"EventTime":"2026-11-22T05:00:01.234567Z","Source":"pipelines","Event":"pipeline.updated","Target":"pipeline","TargetId":"p-1","TargetName":"Sales",` +
		`"Action":"update","AppId":"","UserId":"u-7","UserName":"佐藤","IpAddress":"","Description":"","Data":{"n": 1.50},"DataType":""}` + "\n"
	if diff := cmp.Diff(flat, encode(t, Options{Format: FormatNDJSON, Profile: ProfileQlik}, []Stored{s})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(QlikColumns, Columns(ProfileQlik)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(CSVColumns, Columns(ProfileKansa)); diff != "" {
		t.Error(diff)
	}
}

const readTSV = `
import csv, json, sys
csv.field_size_limit(1 << 30)
with open(sys.argv[1], newline="", encoding="utf-8") as f:
    json.dump(list(csv.reader(f, delimiter=sys.argv[2])), sys.stdout)
`

// inPython is a text as Python's csv module reads it.
func inPython(t *testing.T, text, delimiter string) (rows [][]string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	name := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "-c", readTSV, name, delimiter).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// Requirement Q8: 14 columns, whatever the values are, in Python's csv module.
func TestTSVHas14Columns(t *testing.T) {
	t.Parallel()
	stored := storedEvents(200)
	for _, safe := range []bool{false, true} {
		rows := inPython(t, encode(t, Options{Format: FormatTSV, SpreadsheetSafe: safe}, stored), "\t")
		if diff := cmp.Diff(QlikColumns, rows[0]); diff != "" || len(rows) != len(stored)+1 {
			t.Fatalf("%d rows, header\n%s", len(rows), diff)
		}
		for i, row := range rows[1:] {
			s := &stored[i]
			want := []string{
				s.OccurredAt.Format(TimeLayout), s.Source, s.Event.Event, s.Target.Type, s.Target.ID, s.Target.Name, s.Action, s.AppID, s.Actor.ID, s.Actor.Name,
				s.Context.IP, s.Description, string(s.Data), s.DataType,
			}
			for j := range row {
				if safe {
					row[j] = strings.TrimPrefix(row[j], string(Mark))
				}
			}
			if diff := cmp.Diff(want, row); diff != "" {
				t.Errorf("event %d:\n%s", i, diff)
			}
		}
	}
}

// A cell that a spreadsheet would take for a formula is marked, in each format of cells, and taking the mark away
// gives the value back.
func TestSpreadsheetSafe(t *testing.T) {
	t.Parallel()
	values := []string{"=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "'quoted'", "＝1", "=\"a\"", "-", "=a\tb\"c\"\n"}
	harmless := []string{"", "a=1", " =1", "1", "佐藤", "ｱ"}
	all := slices.Concat(values, harmless)
	stored := make([]Stored, len(all))
	for i, v := range all {
		stored[i] = Stored{
			Event:      schema.Event{OccurredAt: time.Unix(-5, 0), Organization: "acme", Trail: schema.Access, Actor: schema.Actor{Name: v}, Description: v, Attributes: map[string]string{"domain_name": v}},
			RecordedAt: testNow,
		}
	}
	for format, delimiter := range map[Format]string{FormatCSV: ",", FormatTSV: "\t"} {
		for _, profile := range Profiles {
			rows := inPython(t, encode(t, Options{Format: format, Profile: profile, SpreadsheetSafe: true}, stored), delimiter)
			for i, row := range rows[1:] {
				found := 0
				for c, cell := range row {
					number := rows[0][c] == "_zl_timestamp"
					if cell != "" && strings.ContainsRune("=+-@\t\r\n＝", []rune(cell)[0]) && !number {
						t.Errorf("%s, %s: %q begins as a formula", format, profile, cell)
					}
					want := all[i]
					if i < len(values) {
						want = string(Mark) + want
					}
					if cell == want {
						found++
					}
				}
				if found < 2 {
					t.Errorf("%s, %s: %q is %q", format, profile, all[i], row)
				}
			}
		}
	}
}

func TestOptionsThatDoNotGoTogether(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]Options{
		`format "xml"`: {Format: "xml"}, `profile "splunk"`: {Format: FormatCSV, Profile: "splunk"}, `profile "qlik"`: {Format: FormatCEF, Profile: ProfileQlik},
		`spreadsheet_safe "json"`: {Format: FormatJSON, SpreadsheetSafe: true},
	} {
		if _, err := NewEncoder(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func FuzzFormats(f *testing.F) {
	for i, s := range texts {
		f.Add(s, texts[(i+5)%len(texts)], uint64(i))
	}
	f.Fuzz(func(t *testing.T, a, b string, n uint64) {
		s := anyStored(a, b, n)
		lines := strings.SplitAfter(encode(t, Options{Format: FormatNDJSON}, []Stored{*s}), "\n")
		if len(lines) != 2 {
			t.Fatalf("%d lines", len(lines))
		}
		if diff := cmp.Diff(canonicalStored(t, oneLine(*s)), canonicalStored(t, storedOfJSON(t, []byte(lines[0])))); diff != "" {
			t.Fatal(diff)
		}
		for _, p := range Profiles {
			if line := encode(t, Options{Format: FormatNDJSON, Profile: p}, []Stored{*s}); !json.Valid([]byte(line)) || strings.Count(line, "\n") != 1 {
				t.Fatalf("%s: %q", p, line)
			}
			for _, safe := range []bool{false, true} {
				records, err := parseCSV(encode(t, Options{Format: FormatCSV, Profile: p, SpreadsheetSafe: safe}, []Stored{*s}))
				if err != nil || len(records) != 2 || len(records[1]) != len(Columns(p)) {
					t.Fatalf("%s: %d records, %v", p, len(records), err)
				}
			}
		}
	})
}

func BenchmarkFormats(b *testing.B) {
	stored := benchStored()
	for _, o := range []Options{
		{Format: FormatCSV},
		{Format: FormatCSV, SpreadsheetSafe: true},
		{Format: FormatCSV, Profile: ProfileDataPrep},
		{Format: FormatTSV},
		{Format: FormatNDJSON},
		{Format: FormatJSON},
		{Format: FormatNDJSON, Profile: ProfileQlik},
		{Format: FormatCEF, Overflow: func(Overflow) {}},
	} {
		name := fmt.Sprintf("%s-%s-%t", o.Format, o.Profile, o.SpreadsheetSafe)
		b.Run(name, func(b *testing.B) {
			e, err := NewEncoder(o)
			if err != nil {
				b.Fatal(err)
			}
			var dst []byte
			for b.Loop() {
				dst = e.AppendBegin(dst[:0])
				for i := range stored {
					dst = e.Append(dst, &stored[i])
				}
			}
			perEvent(b, len(stored), len(dst))
		})
	}
}
