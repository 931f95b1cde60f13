package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

func TestBlockRoundTrip(t *testing.T) {
	t.Parallel()
	events := randomEvents(500)
	b := blockOf(events)
	data := b.AppendNative([]byte("before"))
	parsed, err := ParseNative(data[len("before"):])
	if err != nil {
		t.Fatal(err)
	}
	if faults := parsed.Check(testNow); len(faults) > 0 {
		t.Fatalf("valid events are refused: event %d: %v", faults[0].Row, faults[0].Err)
	}
	if diff := cmp.Diff(events, withOwner(parsed.Events())); diff != "" {
		t.Errorf("events (-written +read):\n%s", diff)
	}
	if parsed.Rows() != len(events) || parsed.Bytes() != b.Bytes() || b.Bytes() != b.size() {
		t.Errorf("%d rows, %d bytes; written %d, in columns %d", parsed.Rows(), parsed.Bytes(), b.Bytes(), b.size())
	}
	if again := parsed.AppendNative(nil); !bytes.Equal(again, data[len("before"):]) {
		t.Error("what was read is not written the same")
	}
	b.Reset()
	if b.Rows() != 0 || b.Bytes() != 0 {
		t.Errorf("after Reset: %d rows, %d bytes", b.Rows(), b.Bytes())
	}
	b.Append(&events[0])
	if diff := cmp.Diff(events[:1], withOwner(b.Events())); diff != "" {
		t.Errorf("after Reset (-written +read):\n%s", diff)
	}
}

func TestBlockOfLargestEvent(t *testing.T) {
	t.Parallel()
	e := randomEvents(1)[0]
	e.Description = ""
	e.Description = strings.Repeat("é", (schema.MaxEventBytes-blockOf([]schema.Event{e}).Bytes())/2)
	b, err := ParseNative(blockOf([]schema.Event{e}).AppendNative(nil))
	if err != nil {
		t.Fatal(err)
	}
	if faults := b.Check(testNow); len(faults) > 0 {
		t.Error(faults[0].Err)
	}
}

func TestBlockWithout(t *testing.T) {
	t.Parallel()
	events := randomEvents(6)
	b := blockOf(events).Without([]int{0, 3, 5})
	want := []schema.Event{events[1], events[2], events[4]}
	if diff := cmp.Diff(want, withOwner(b.Events())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBlockComplete(t *testing.T) {
	t.Parallel()
	events := randomEvents(5)
	want := randomEvents(5)
	for _, i := range []int{1, 3} {
		events[i].ID, want[i].ID = uuid.Nil, uuid.UUID{15: byte(100 + i)}
	}
	events[2].Outcome, want[2].Outcome = "", schema.Success
	data := blockOf(events).AppendNative(nil)
	before := bytes.Clone(data)
	b, err := ParseNative(data)
	if err != nil {
		t.Fatal(err)
	}
	b.Complete(func(row int) uuid.UUID { return uuid.UUID{15: byte(100 + row)} })
	if diff := cmp.Diff(want, withOwner(b.Events())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !bytes.Equal(data, before) {
		t.Error("the message's own bytes were changed")
	}
	if b.Bytes() != b.size() {
		t.Errorf("%d bytes, in columns %d", b.Bytes(), b.size())
	}
}

// survive parses what may be anything: no panic, and what is parsed can be used.
func survive(t *testing.T, data []byte) {
	t.Helper()
	b, err := ParseNative(data)
	if err != nil {
		if !errors.Is(err, ErrMalformed) || len(err.Error()) > 2048 {
			t.Errorf("%v of %d bytes is no ErrMalformed", err, len(err.Error()))
		}
		return
	}
	faults := b.Check(testNow)
	rows := make([]int, len(faults))
	for i, f := range faults {
		rows[i] = f.Row
		if !errors.Is(f.Err, schema.ErrInvalid) || len(f.Err.Error()) > 48<<10 {
			t.Errorf("event %d: %.300v of %d bytes", f.Row, f.Err, len(f.Err.Error()))
		}
	}
	good := b.Without(rows)
	good.Complete(func(int) uuid.UUID { return uuid.Max })
	for i, e := range withOwner(good.Events()) {
		if err := e.Validate(testNow); err != nil {
			t.Errorf("event %d went through: %v", i, err)
		}
	}
	if len(faults) == 0 && !bytes.Equal(b.AppendNative(nil), data) && canonical(data) {
		t.Error("what was read is not written the same")
	}
}

// canonical reports whether the header's two numbers are of the shortest form.
func canonical(data []byte) bool {
	n, k := binary.Uvarint(data)
	m, l := binary.Uvarint(data[k:])
	return bytes.HasPrefix(data, binary.AppendUvarint(binary.AppendUvarint(nil, n), m)) && k+l > 0
}

func TestParseNativeCutOff(t *testing.T) {
	t.Parallel()
	data := blockOf(randomEvents(9)).AppendNative(nil)
	for n := range data {
		if _, err := ParseNative(data[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := ParseNative(append(bytes.Clone(data), 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestParseNativeFlipped(t *testing.T) {
	t.Parallel()
	data := blockOf(randomEvents(5)).AppendNative(nil)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		for _, flip := range []byte{0x01, 0x80, 0xff, byte(r.Uint32()) | 2} {
			data[i] ^= flip
			survive(t, data)
			data[i] ^= flip
		}
	}
}

func TestParseNativeLies(t *testing.T) {
	t.Parallel()
	good := blockOf(randomEvents(3)).AppendNative(nil)
	columns := uint64(len(schema.Fields))
	head := func(cols, rows uint64) []byte {
		return append(binary.AppendUvarint(binary.AppendUvarint(nil, cols), rows), good[2:]...)
	}
	replace := func(from, to string) []byte { return bytes.Replace(bytes.Clone(good), []byte(from), []byte(to), 1) }
	offsets := bytes.Index(good, []byte("Map(String, String)")) + len("Map(String, String)")
	at := func(row int, end uint64) []byte {
		data := bytes.Clone(good)
		binary.LittleEndian.PutUint64(data[offsets+8*row:], end)
		return data
	}
	for name, data := range map[string][]byte{
		"nothing":                nil,
		"no rows":                head(columns, 0),
		"too many rows":          head(columns, schema.MaxMessageEvents+1),
		"2^64-1 rows":            head(columns, 1<<64-1),
		"more rows than it has":  head(columns, 4),
		"fewer rows than it has": head(columns, 2),
		"most rows allowed":      head(columns, schema.MaxMessageEvents),
		"no columns":             head(0, 3),
		"one column fewer":       head(columns-1, 3),
		"one column more":        head(columns+1, 3),
		"2^64-1 columns":         head(1<<64-1, 3),
		"endless number":         bytes.Repeat([]byte{0xff}, 20),
		"another column":         replace("\x06source\x06String", "\x06sourcf\x06String"),
		"another type":           replace("\x06source\x06String", "\x06source\x06UInt64"),
		"offsets beyond all":     at(2, 1<<40),
		"offsets beyond int64":   at(2, 1<<63+1),
		"offsets that fall":      at(0, 1<<20),
		"offsets that fall by 1": at(2, 0),
	} {
		if name == "offsets that fall by 1" && binary.LittleEndian.Uint64(good[offsets:]) == 0 {
			t.Fatal("the first event has no attributes: the test tests nothing")
		}
		if b, err := ParseNative(data); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
}

// spoiled has events with the faults of each kind, alone and together, and good ones between.
func spoiled() []schema.Event {
	events := randomEvents(40)
	r := rand.New(rand.NewPCG(3, 4))
	spoil := []func(*schema.Event){
		func(e *schema.Event) { e.Source = "" },
		func(e *schema.Event) { e.Source = "a\x00" },
		func(e *schema.Event) { e.Source = strings.Repeat("s", 257) },
		func(e *schema.Event) { e.Event = "a b" },
		func(e *schema.Event) { e.Action = "Update" },
		func(e *schema.Event) { e.Outcome = "maybe" },
		func(e *schema.Event) { e.Actor.Name = "caf\xe9" },
		func(e *schema.Event) { e.Target.ID = strings.Repeat("\xff", 4097) },
		func(e *schema.Event) { e.Before = json.RawMessage("x") },
		func(e *schema.Event) { e.Data = json.RawMessage("{} {}") },
		func(e *schema.Event) { e.OccurredAt = testNow.Add(schema.MaxClockAhead + time.Microsecond) },
		func(e *schema.Event) { e.OccurredAt = schema.MinOccurredAt.Add(-time.Microsecond) },
		func(e *schema.Event) { e.OccurredAt = time.Time{} },
		func(e *schema.Event) { e.Attributes = map[string]string{"": "x", "\xff": "y", "z": "\xfe", "a": "b"} },
		func(e *schema.Event) {
			e.Attributes = map[string]string{"z": strings.Repeat("v", schema.MaxAttributeValue+1)}
		},
		func(e *schema.Event) {
			e.Attributes = map[string]string{}
			for i := range 300 {
				e.Attributes[strings.Repeat("n", 200+i)] = ""
			}
		},
		func(e *schema.Event) { e.Description = strings.Repeat("d", schema.MaxEventBytes) },
		func(e *schema.Event) { e.Description = strings.Repeat("d", schema.MaxEventBytes+1) },
	}
	for i, f := range spoil {
		f(&events[2*i])
	}
	for range 20 { // several faults in one event
		e := randomEvents(1)[0]
		for range 4 {
			spoil[r.IntN(len(spoil))](&e)
		}
		events = append(events, e)
	}
	return events
}

// There is one table of rules: a block is judged as its events are.
func TestCheckIsValidate(t *testing.T) {
	t.Parallel()
	events := spoiled()
	b, err := ParseNative(blockOf(events).AppendNative(nil))
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]string{}
	last := -1
	for _, f := range b.Check(testNow) {
		if f.Row <= last {
			t.Errorf("row %d after %d", f.Row, last)
		}
		last = f.Row
		got[f.Row] = f.Err.Error()
	}
	want := map[int]string{}
	for i := range events {
		if err := events[i].Validate(testNow); err != nil {
			want[i] = err.Error()
		}
	}
	if len(want) < 30 {
		t.Fatalf("only %d events are faulty: the test tests little", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-Validate +Check):\n%s", diff)
	}
}

// A map in Go can't have one key twice, a block can.
func TestCheckAttributesInOrder(t *testing.T) {
	t.Parallel()
	e := randomEvents(1)[0]
	e.Attributes = map[string]string{"aa": "1", "bb": "2"}
	good := blockOf([]schema.Event{e, e}).AppendNative(nil)
	for from, to := range map[string]string{"\x02aa\x02bb": "\x02bb\x02bb", "\x02aa\x02bb\x02aa": "\x02cc\x02bb\x02aa"} {
		b, err := ParseNative(bytes.Replace(bytes.Clone(good), []byte(from), []byte(to), 1))
		if err != nil {
			t.Fatal(err)
		}
		faults := b.Check(testNow)
		if len(faults) != 1 || faults[0].Row != 0 || !strings.Contains(faults[0].Err.Error(), "attributes \"bb\" comes after") {
			t.Errorf("%q: %v", to, faults)
		}
	}
}

func FuzzParseNative(f *testing.F) {
	f.Add(blockOf(randomEvents(1)).AppendNative(nil))
	f.Add(blockOf(randomEvents(4)[1:]).AppendNative(nil))
	small := schema.Event{OccurredAt: testNow, Source: "s", Event: "e", Action: "a", Attributes: map[string]string{"a": "b", "c": ""}}
	f.Add(blockOf([]schema.Event{small, small}).AppendNative(nil))
	f.Fuzz(func(t *testing.T, data []byte) { survive(t, data) })
}
