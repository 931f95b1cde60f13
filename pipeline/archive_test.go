package pipeline_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// recorded returns the events of a file of recorded logs; where there is none, of a few made-up lines.
func recorded(t *testing.T, file, mappingName string) []schema.Event {
	t.Helper()
	path, ok := pipelinetest.DataFile(t, file)
	if !ok {
		path = filepath.Join("..", "producers", "mapping", "testdata", mappingName+".ndjson")
	}
	m, err := mapping.Load(mappingName)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var events []schema.Event
	for line, err := range mapping.Lines(f, mapping.Options{Mapping: m}) {
		if err != nil || line.Err != nil {
			t.Fatal(err, line.Err)
		}
		events = append(events, line.Event)
	}
	return events
}

// awkward has the values that a careless path loses or bends.
func awkward(t *testing.T) []schema.Event {
	t.Helper()
	source := sample.New(11, nil)
	texts := []string{
		"", "plain", "two\nlines", "two\r\nlines", "\r", "\n", "tab\tand \"quotes\"", `""`, `"`, ",", "'", `\N`, `\n`, `back\slash`, "NULL", "=1+1", " blank ",
		"ünïcödé ✓ 監査 🔒", "\u2028\u2029", "\x01\x1f", "a\x00b", strings.Repeat("long ", 10_000), "\\", "{}", "[]", "\ufeffbom",
	}
	events := make([]schema.Event, len(texts))
	for i, text := range texts {
		e := source.Next()
		e.Organization, e.Trail = "awkward", schema.Activity
		e.Description, e.Actor.Name, e.Target.Name = text, text[:min(len(text), 900)], text[:min(len(text), 900)]
		if !strings.Contains(text, "ü") { // not cut within a letter
			e.Context.UserAgent = text[:min(len(text), 900)]
		}
		e.Attributes = map[string]string{"text": text[:min(len(text), 900)], "z": "last", "a/b": "</script>"}
		data, err := json.Marshal(map[string]string{"text": text})
		if err != nil {
			t.Fatal(err)
		}
		e.Data, e.Before, e.After = data, []byte(`null`), []byte("{ \"spaced\" :\t1.0e+2,\n\"x\":[true,false,null] }")
		events[i] = e
	}
	return events
}

// The rows in an archive equal the input field by field (requirement Z7), whatever the events contain.
func TestRecordedLogsFieldByField(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter, pipeline.RoleRollup)
	want := map[string]schema.Event{}
	p, err := producers.New(s.Client.JS, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now().Add(-time.Second)
	for _, events := range [][]schema.Event{
		recorded(t, "cloudtrail.ndjson", "cloudtrail"), recorded(t, "windows-events.ndjson.gz", "windows"), awkward(t),
	} {
		for _, e := range events {
			want[e.ID.String()] = e
			if _, err := p.PublishAsync(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Second)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		next, err := s.Rollup.Advance(t.Context())
		return err == nil && next.After(end), []any{next, err}
	})
	orgs := map[string]bool{}
	for _, e := range want {
		orgs[e.Organization] = true
	}
	rows := 0
	for org := range orgs {
		for _, got := range archiveRows(t, s, org, begin, end) {
			rows++
			e, ok := want[got["id"]]
			if !ok {
				t.Errorf("%s: %s was not published, or is there twice", org, got["id"])
				continue
			}
			delete(want, got["id"])
			compareRow(t, got, &e)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d events are not in the archives", len(want))
	}
	t.Logf("%d rows compared", rows)
}

// archiveRows returns the rows of the archive of all of an organization's events, by column.
func archiveRows(t *testing.T, s *pipeline.System, org string, from, to time.Time) []map[string]string {
	t.Helper()
	plan, err := exporter.PlanArchive(t.Context(), s.Bucket, &exporter.Request{
		ID: "all-" + org, Organization: org, Trails: schema.Trails, From: from.Truncate(time.Second), To: to.Add(time.Second), MailTo: []string{"a@b.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if n, err := plan.WriteTo(context.Background(), &file); err != nil || n != plan.Size() {
		t.Fatalf("%d of %d bytes: %v", n, plan.Size(), err)
	}
	z, err := zip.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]string
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, ".csv") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		records, err := pipelinetest.ParseCSV(string(text))
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		if !slices.Equal(records[0], codec.CSVColumns) {
			t.Fatalf("%s: header %q", f.Name, records[0])
		}
		for _, record := range records[1:] {
			row := map[string]string{}
			for i, c := range codec.CSVColumns {
				row[c] = record[i]
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func compareRow(t *testing.T, got map[string]string, e *schema.Event) {
	t.Helper()
	differ := func(column, got, want string) {
		if got != want {
			t.Errorf("%s: %s is %.200q, want %.200q", e.ID, column, got, want)
		}
	}
	differ("organization", got["organization"], e.Organization)
	differ("trail", got["trail"], string(e.Trail))
	for i := range schema.Fields {
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindTime:
			differ(f.Column, got[f.Column], e.OccurredAt.Format(codec.TimeLayout))
		case schema.KindText, schema.KindJSON:
			differ(f.Column, got[f.Column], f.Text(e))
		case schema.KindMap:
			var m map[string]string
			if err := json.Unmarshal([]byte(got[f.Column]), &m); err != nil || !maps.Equal(m, e.Attributes) {
				t.Errorf("%s: attributes are %s, %v; want %v", e.ID, got[f.Column], err, e.Attributes)
			}
		case schema.KindID:
		}
	}
	if _, err := time.Parse(codec.TimeLayout, got["recorded_at"]); err != nil {
		t.Errorf("%s: recorded_at: %v", e.ID, err)
	}
	if n, err := strconv.ParseUint(got["stream_seq"], 10, 64); err != nil || n == 0 {
		t.Errorf("%s: stream_seq is %s", e.ID, got["stream_seq"])
	}
}

// The engine's CSV and our own are the same bytes: a partition does not depend on the protocol by which
// ClickHouse was read.
func TestCSVOfTheEngineIsOurs(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter, pipeline.RoleRollup)
	p, err := producers.New(s.Client.JS, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	events := awkward(t)
	for _, e := range events {
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	pipelinetest.UntilStored(t, s.Store, uint64(len(events)), time.Minute)
	part := schema.Partition{Organization: "awkward", Trail: schema.Activity, Hour: time.Now().Truncate(24 * time.Hour).Add(-24 * time.Hour), Length: 72 * time.Hour}
	r, err := s.Store.CSV(t.Context(), part, false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	records, err := pipelinetest.ParseCSV(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != len(events)+1 {
		t.Fatalf("%d records, want %d", len(records), len(events)+1)
	}
	byID := map[string]*schema.Event{}
	for i := range events {
		byID[events[i].ID.String()] = &events[i]
	}
	ours := codec.AppendCSVHeader(nil)
	for _, record := range records[1:] {
		column := func(name string) string { return record[slices.Index(codec.CSVColumns, name)] }
		stored := codec.Stored{Event: *byID[column("id")]}
		stored.RecordedAt, err = time.Parse(codec.TimeLayout, column("recorded_at"))
		if err != nil {
			t.Fatal(err)
		}
		stored.StreamSeq, err = strconv.ParseUint(column("stream_seq"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		index, err := strconv.ParseUint(column("batch_index"), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		stored.BatchIndex, stored.RecordedBy = uint32(index), column("recorded_by")
		ours = codec.AppendCSV(ours, &stored)
	}
	if !bytes.Equal(ours, text) {
		i := 0
		for i < min(len(ours), len(text)) && ours[i] == text[i] {
			i++
		}
		t.Errorf("from byte %d on:\nours   %.300q\nengine %.300q", i, ours[max(0, i-50):], text[max(0, i-50):])
	}
}
