package codec

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// taken is what an intake made of a body.
type taken struct {
	events  map[int]schema.Event
	rejects map[int]error
	batches int
}

func newIntake(t testing.TB) (*Intake, *taken) {
	out := &taken{events: map[int]schema.Event{}, rejects: map[int]error{}}
	return &Intake{
		Now: testNow, MaxEvents: 1 << 16,
		Take: func(b Batch) {
			out.batches++
			if len(b.Index) != b.Block.Rows() || b.Block.Bytes() != b.Block.size() {
				t.Errorf("%d places of %d rows; %d bytes, says %d", len(b.Index), b.Block.Rows(), b.Block.size(), b.Block.Bytes())
			}
			for i, e := range b.Block.Events() {
				e.Organization, e.Trail = b.Organization, b.Trail
				out.events[int(b.Index[i])] = e
			}
			if faults := b.Block.Check(testNow); len(faults) > 0 {
				t.Errorf("taken, but %v", faults[0].Err)
			}
			b.Block.GiveBack()
		},
		Reject: func(i int, _ uuid.UUID, err error) { out.rejects[i] = errors.New(err.Error()) },
	}, out
}

// Events of all lanes come out as they went in, whatever way they went.
func TestIntake(t *testing.T) {
	now := testNow.Add(-time.Hour)
	src := sample.New(3, func() time.Time { now = now.Add(time.Millisecond); return now })
	var lines, array []byte
	want := map[int]schema.Event{}
	for i := range 12_000 {
		e := src.Next()
		want[i] = e
		var err error
		if lines, err = AppendJSON(lines, &e); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, '\n')
	}
	array = append([]byte("[\n"), bytes.ReplaceAll(bytes.TrimSpace(lines), []byte("\n"), []byte(" , "))...)
	array = append(array, ']')
	for name, read := range map[string]func(*Intake) error{
		"lines": func(in *Intake) error { return in.Lines(append([]byte("\n \r\n"), lines...)) },
		"array": func(in *Intake) error { return in.JSON(array) },
	} {
		in, got := newIntake(t)
		if err := read(in); err != nil {
			t.Fatal(name, err)
		}
		in.Flush()
		if len(got.rejects) > 0 || got.batches < 7 {
			t.Errorf("%s: rejected %v; %d batches", name, got.rejects, got.batches)
		}
		if d := cmp.Diff(want, got.events); d != "" {
			t.Errorf("%s: %.2000s", name, d)
		}
	}
}

func TestAppendBlock(t *testing.T) {
	events := randomEvents(500)
	whole, joined := NewBlock(), NewBlock()
	for i := range events {
		whole.Append(&events[i])
	}
	for first := 0; first < len(events); first += 77 {
		part := NewBlock()
		for i := first; i < min(first+77, len(events)); i++ {
			part.Append(&events[i])
		}
		joined.AppendBlock(part)
	}
	if !bytes.Equal(whole.AppendNative(nil), joined.AppendNative(nil)) || whole.Bytes() != joined.Bytes() {
		t.Error("joined blocks are another block")
	}
}

const cloudEventText = `{"specversion":"1.0","id":"A-1","source":"/billing","type":"com.example.Invoice.Paid","time":"2026-11-22T04:05:06Z",
 "subject":"inv-9","dataschema":"https://example.com/s","data":{"n": 1},"organization":"acme","trail":"activity","actorid":"u-7",
 "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","partition":7,"flag":true,"nothing":null}`

// Requirement B7.
func TestCloudEvents(t *testing.T) {
	in, got := newIntake(t)
	second := strings.Replace(cloudEventText, `"data":{"n": 1}`, `"datacontenttype":"image/png","data_base64":"AAEC","action":"pay"`, 1)
	second = strings.Replace(second, `"A-1"`, `"0196f1d0-0000-7000-8000-000000000001"`, 1)
	bad := []string{
		`{"specversion":"0.3"}`, `{"id":"x"}`, `7`, strings.Replace(cloudEventText, `"flag":true`, `"id":"again"`, 1),
		strings.Replace(cloudEventText, `"flag":true`, `"flag":{}`, 1), strings.Replace(cloudEventText, `"time":"2026-11-22T04:05:06Z",`, "", 1),
		strings.Replace(cloudEventText, `"data":{"n": 1}`, `"data_base64":"!"`, 1), strings.Replace(cloudEventText, `"flag":true`, `"partition":8`, 1),
	}
	if err := in.CloudEvents([]byte("[" + cloudEventText + "," + second + "," + strings.Join(bad, ",") + "]")); err != nil {
		t.Fatal(err)
	}
	in.Flush()
	want := schema.Event{
		ID: HashedID("cloudevents", "/billing", "A-1"), OccurredAt: time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC), Organization: "acme", Trail: schema.Activity,
		Source: "/billing", Event: "com.example.Invoice.Paid", Action: "paid", Outcome: schema.Success, Actor: schema.Actor{ID: "u-7"}, Target: schema.Target{ID: "inv-9"},
		Context: schema.Context{TraceID: "0af7651916cd43dd8448eb211c80319c"}, Data: []byte(`{"n": 1}`), DataType: "https://example.com/s",
		Attributes: map[string]string{"ce_id": "A-1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "partition": "7", "flag": "true"},
	}
	if d := cmp.Diff(want, got.events[0]); d != "" {
		t.Error(d)
	}
	e := got.events[1]
	if e.ID.String() != "0196f1d0-0000-7000-8000-000000000001" || e.Action != "pay" || string(e.Data) != `"AAEC"` || e.Attributes["datacontenttype"] != "image/png" || e.Attributes["ce_id"] != "" {
		t.Errorf("%+v", e)
	}
	if len(got.rejects) != len(bad) || len(got.events) != 2 {
		t.Errorf("%d rejected of %d: %v", len(got.rejects), len(bad), got.rejects)
	}
}

func FuzzIntake(f *testing.F) {
	for _, s := range []string{"", "[]", "[1,2", "{}", "[{}]", cloudEventText, "[" + cloudEventText + "]", "{\"a\":1}\n\n{]", "null", `[{"organization":"acme"},]`} {
		f.Add([]byte(s), uint8(len(s)))
	}
	good, _ := AppendJSON(nil, &randomEvents(1)[0])
	f.Add(good, uint8(0))
	f.Fuzz(func(t *testing.T, body []byte, way uint8) {
		in, got := newIntake(t)
		in.Organization, in.Trail = "acme", schema.Activity
		var err error
		switch way % 5 {
		case 0:
			err = in.Lines(body)
		case 1:
			err = in.JSON(body)
		case 2:
			err = in.CloudEvents(body)
		case 3:
			err = in.Block(body)
		case 4:
			err = in.CloudEvent(func(yield func(string, string) bool) {
				for l := range strings.Lines(string(body)) {
					name, value, _ := strings.Cut(strings.TrimSuffix(l, "\n"), ":")
					if !yield(name, value) {
						return
					}
				}
			}, body)
		}
		in.Flush()
		if err == nil && len(got.events)+len(got.rejects) != len(in.IDs) {
			t.Errorf("%d events, %d rejected, of %d", len(got.events), len(got.rejects), len(in.IDs))
		}
		for i, e := range got.events {
			if e.ID != in.IDs[i] {
				t.Errorf("event %d has id %s, says %s", i, e.ID, in.IDs[i])
			}
		}
		if (way%5 == 1 || way%5 == 2) && err == nil && !schema.ValidJSON(string(body)) {
			t.Errorf("taken, but no JSON")
		}
	})
}

// What a body of 200 events of three organizations costs until its blocks are ready.
func BenchmarkIntake(b *testing.B) {
	src := sample.New(1, nil)
	var body []byte
	for range 200 {
		e := src.Next()
		var err error
		if body, err = AppendJSON(body, &e); err != nil {
			b.Fatal(err)
		}
		body = append(body, '\n')
	}
	b.ReportAllocs()
	for b.Loop() {
		in := Intake{Now: time.Now(), MaxEvents: 1000, Take: func(b Batch) { b.Block.GiveBack() }, Reject: func(_ int, _ uuid.UUID, err error) { b.Fatal(err) }}
		if err := in.Lines(body); err != nil {
			b.Fatal(err)
		}
		in.Flush()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200, "ns/event")
}
