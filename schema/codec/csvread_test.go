package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/schema"
)

func storedEvents(n int) []Stored {
	events := randomEvents(n)
	stored := make([]Stored, n)
	for i := range events {
		stored[i] = Stored{Event: events[i], RecordedAt: testNow.Add(time.Duration(i) * 777 * time.Microsecond), StreamSeq: 1<<63 + uint64(i), BatchIndex: uint32(i)}
	}
	return stored
}

func csvOf(stored []Stored) []byte {
	text := AppendCSVHeader(nil)
	for i := range stored {
		text = AppendCSV(text, &stored[i])
	}
	return text
}

// What AppendCSV writes, the reader has again, however the text comes.
func TestCSVReaderRoundTrip(t *testing.T) {
	t.Parallel()
	stored := storedEvents(300)
	text := csvOf(stored)
	for name, in := range map[string]io.Reader{
		"whole": bytes.NewReader(text), "by the byte": iotest.OneByteReader(bytes.NewReader(text)), "data with the end": iotest.DataErrReader(bytes.NewReader(text)),
	} {
		r := NewCSVReader(in)
		var e Stored
		for i := range stored {
			if err := r.Next(&e); err != nil {
				t.Fatalf("%s: event %d: %v", name, i, err)
			}
			if diff := cmp.Diff(canonicalStored(t, &stored[i]), canonicalStored(t, &e)); diff != "" {
				t.Fatalf("%s: event %d (-written +read):\n%s", name, i, diff)
			}
		}
		for range 2 {
			if err := r.Next(&e); !errors.Is(err, io.EOF) {
				t.Errorf("%s: at the end: %v", name, err)
			}
		}
		if r.Rows() != uint64(len(stored)) {
			t.Errorf("%s: %d rows", name, r.Rows())
		}
	}
}

func TestCSVReaderIsStrict(t *testing.T) {
	t.Parallel()
	good := string(csvOf([]Stored{{
		Event:      schema.Event{OccurredAt: testNow, Organization: "acme", Trail: schema.Access, Source: "s", Event: "e", Action: "a", Data: []byte(`{"a":1}`), Attributes: map[string]string{"k": "v"}},
		RecordedAt: testNow, StreamSeq: 7, BatchIndex: 3,
	}}))
	if err := readAllCSV(good); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for name, edit := range map[string][2]string{
		"header":            {`"stream_seq"`, `"seq"`},
		"LF":                {"\"\r\n", "\"\n"},
		"row's LF":          {"}\"\r\n", "}\"\n"},
		"no quotes":         {`"acme"`, `acme`},
		"number in quotes":  {`,7,`, `,"7",`},
		"leading zero":      {`,7,`, `,07,`},
		"sign":              {`,7,`, `,+7,`},
		"too large":         {`,3,`, `,4294967296,`},
		"time with comma":   {`05:00:00.0`, `05:00:00,0`},
		"no such day":       {`2026-11-22`, `2026-11-31`},
		"zone":              {`000000Z"`, `000000z"`},
		"organization":      {`"acme"`, `"ac/me"`},
		"trail":             {`"access"`, `"audit"`},
		"id":                {`"00000000-0`, `"0000000000`},
		"upper-case id":     {`-000000000000"`, `-00000000000A"`},
		"not JSON":          {`{""a"":1}`, `{""a"":1`},
		"attributes null":   {`{""k"":""v""}`, `null`},
		"attributes twice":  {`{""k"":""v""}`, `{""k"":""v"",""k"":""w""}`},
		"attributes number": {`{""k"":""v""}`, `{""k"":1}`},
		"attributes, more":  {`{""k"":""v""}`, `{""k"":""v""} `},
		"a column more":     {"}\"\r\n", "}\",\"\"\r\n"},
		"a column less":     {`,"{""k"":""v""}"`, ``},
		"behind quotes":     {`"acme"`, `"acme" `},
		"cut":               {"}\"\r\n", "}\"\r"},
		"open quote":        {"}\"\r\n", "}\r\n"},
		"not UTF-8":         {`"acme","access"`, "\"acme\",\"\xff\""},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if bad == good {
			t.Errorf("%s: nothing was changed", name)
		}
		if err := readAllCSV(bad); !errors.Is(err, ErrCSV) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sick := errors.New("sick disk")
	r := NewCSVReader(io.MultiReader(strings.NewReader(good[:len(good)-9]), iotest.ErrReader(sick)))
	if err := r.Next(new(Stored)); !errors.Is(err, sick) {
		t.Errorf("got %v", err)
	}
	if err := readAllCSV(good[:strings.IndexByte(good, '\n')+1] + `"` + strings.Repeat("x", longestRow+readBuffer)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a quote without end: %v", err)
	}
	if err := readAllCSV(""); !errors.Is(err, io.EOF) {
		t.Errorf("no text: %v", err)
	}
}

func readAllCSV(text string) error {
	r := NewCSVReader(strings.NewReader(text))
	for {
		if err := r.Next(new(Stored)); err != nil {
			return err
		}
	}
}

// Whatever is accepted is, written again, the same event.
func FuzzCSVReader(f *testing.F) {
	stored := storedEvents(40)
	for i := range stored {
		if len(stored[i].Description) < 1000 {
			f.Add(string(AppendCSV(nil, &stored[i])))
		}
	}
	f.Fuzz(func(t *testing.T, row string) {
		r := NewCSVReader(strings.NewReader(string(csvHeader) + row))
		var e, again Stored
		for {
			err := r.Next(&e)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ErrCSV) {
					t.Fatal(err)
				}
				return
			}
			written := AppendCSV(nil, &e)
			s := NewCSVReader(bytes.NewReader(append(bytes.Clone(csvHeader), written...)))
			if err := s.Next(&again); err != nil {
				t.Fatalf("%q: %v", written, err)
			}
			if diff := cmp.Diff(canonicalStored(t, &e), canonicalStored(t, &again)); diff != "" {
				t.Fatal(diff)
			}
			if err := s.Next(&again); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
	})
}

// What an application may say comes back through the CSV.
func FuzzCSVRoundTrip(f *testing.F) {
	for i, s := range texts {
		f.Add(s, texts[(i+7)%len(texts)], uint64(i))
	}
	f.Fuzz(func(t *testing.T, a, b string, n uint64) {
		e := anyStored(a, b, n)
		got := new(Stored)
		r := NewCSVReader(bytes.NewReader(csvOf([]Stored{*e})))
		if err := r.Next(got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(canonicalStored(t, e), canonicalStored(t, got)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// anyStored is an event of two texts, as far as they are such.
func anyStored(a, b string, n uint64) *Stored {
	a, b = strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?")
	e := &Stored{
		Event: schema.Event{
			OccurredAt: time.UnixMicro(int64(n % 4e15)).UTC(), Organization: "acme", Trail: schema.Trails[n%2], Source: a, Event: b, Action: a, Outcome: schema.Success,
			Actor: schema.Actor{Type: b, ID: a, Name: b}, Target: schema.Target{Type: a, ID: b, Name: a}, AppID: b,
			Context: schema.Context{IP: a, UserAgent: b, SessionID: a, TraceID: b, Location: a}, Description: b + a, DataType: b,
		},
		RecordedAt: time.UnixMicro(int64(n % 4e15)).UTC(), StreamSeq: n, BatchIndex: uint32(n),
	}
	quoted := appendJSONString(nil, a)
	e.Before, e.After = quoted, fmt.Appendf(nil, "{\n%s : [%s,\r\n1.50]}", quoted, quoted)
	if schema.ValidJSON(b) {
		e.Data = []byte(b)
	}
	if n%3 == 0 {
		e.Attributes = map[string]string{a: b, a + "x": a}
	}
	return e
}

func BenchmarkCSVReader(b *testing.B) {
	stored := benchStored()
	text := csvOf(stored)
	in := bytes.NewReader(nil)
	r := NewCSVReader(in)
	var e Stored
	for b.Loop() {
		in.Reset(text)
		r.Reset(in)
		for r.Next(&e) == nil {
		}
		if r.Rows() != uint64(len(stored)) {
			b.Fatal(r.Rows())
		}
	}
	perEvent(b, len(stored), len(text))
}

func benchStored() []Stored {
	events := benchEvents()
	stored := make([]Stored, len(events))
	for i := range events {
		stored[i] = Stored{Event: events[i], RecordedAt: events[i].OccurredAt, StreamSeq: uint64(i), BatchIndex: uint32(i % 100)}
	}
	return stored
}
