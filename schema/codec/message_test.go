package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"github.com/kansa-audit/kansa/schema"
)

func message(contentType, encoding string, payload []byte) *Message {
	return &Message{
		Organization: "acme", Trail: schema.Activity, ContentType: contentType, ContentEncoding: encoding, Payload: payload,
		StreamSeq: 42, RecordedAt: testNow,
	}
}

func jsonOf(t *testing.T, events []schema.Event, sep string) []byte {
	t.Helper()
	var out []byte
	for i := range events {
		if i > 0 {
			out = append(out, sep...)
		}
		var err error
		if out, err = AppendJSON(out, &events[i]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestDecodeEachEncoding(t *testing.T) {
	t.Parallel()
	events := randomEvents(30)
	lines := jsonOf(t, events, "\n")
	array := fmt.Appendf(nil, " [ %s ]\n", jsonOf(t, events, " ,\n"))
	one := jsonOf(t, events[:1], "")
	block := blockOf(events).AppendNative(nil)
	for _, c := range []struct {
		contentType string
		payload     []byte
		n           int
	}{
		{ContentBlock, block, 30},
		{ContentNDJSON, lines, 30},
		{ContentNDJSON, append(bytes.ReplaceAll(lines, []byte("\n"), []byte("\r\n\r\n  \n")), '\n'), 30},
		{ContentJSON, array, 30},
		{ContentJSON, one, 1},
		{ContentJSON, append([]byte("\n "), one...), 1},
		{"application/json; charset=utf-8", one, 1},
		{"Application/JSON", one, 1},
		{"", one, 1},
	} {
		for _, encoding := range []string{"", EncodingSnappy, EncodingZstd} {
			payload := c.payload
			payload = Compress(encoding, payload, nil)
			d, err := Decode(message(c.contentType, encoding, payload), testNow)
			if err != nil {
				t.Errorf("%s %s: %v", c.contentType, encoding, err)
				continue
			}
			if len(d.Rejects) > 0 || d.Index != nil {
				t.Errorf("%s %s: %d rejects, index %v", c.contentType, encoding, len(d.Rejects), d.Index)
			}
			got := withOwner(d.Block.Events())
			if diff := cmp.Diff(canonicalJSON(t, events[:c.n]), canonicalJSON(t, got)); diff != "" {
				t.Errorf("%s %s (-written +decoded):\n%s", c.contentType, encoding, diff)
			}
		}
	}
}

// canonicalJSON takes away the white space that JSON on its way may lose.
func canonicalJSON(t *testing.T, events []schema.Event) []string {
	t.Helper()
	return strings.Split(string(jsonOf(t, events, "\n")), "\n")
}

func TestDecodeRefusesMessages(t *testing.T) {
	t.Parallel()
	one := `{"occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}`
	bomb, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	huge := func(n int) []byte { return bomb.EncodeAll(bytes.Repeat([]byte(" "), n), nil) }
	// A frame that claims 1 GiB and holds nothing: magic, descriptor (8-byte size, single segment), size.
	claim := binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 1<<30)
	for name, m := range map[string]*Message{
		"unknown content type":   message("text/plain", "", []byte(one)),
		"broken content type":    message("application/json; =", "", []byte(one)),
		"huge content type":      message(strings.Repeat("\x00", 60<<10), "", []byte(one)),
		"unknown encoding":       message(ContentJSON, "gzip", []byte(one)),
		"huge encoding":          message(ContentJSON, strings.Repeat("\x00", 60<<10), []byte(one)),
		"not snappy":             message(ContentJSON, EncodingSnappy, []byte(one)),
		"snappy bomb":            message(ContentNDJSON, EncodingSnappy, Compress(EncodingSnappy, make([]byte, schema.MaxMessageBytes+1), nil)),
		"snappy claim":           message(ContentNDJSON, EncodingSnappy, []byte("\xff\xff\xff\xff\x0fx")),
		"not zstd":               message(ContentJSON, EncodingZstd, []byte(one)),
		"zstd cut off":           message(ContentJSON, EncodingZstd, Compress(EncodingZstd, []byte(one), nil)[:20]),
		"zstd bomb":              message(ContentNDJSON, EncodingZstd, huge(64<<20)),
		"zstd one byte too much": message(ContentNDJSON, EncodingZstd, huge(schema.MaxMessageBytes+1)),
		"zstd claim":             message(ContentNDJSON, EncodingZstd, claim),
		"too large":              message(ContentNDJSON, "", make([]byte, schema.MaxMessageBytes+1)),
		"no lines":               message(ContentNDJSON, "", nil),
		"blank lines":            message(ContentNDJSON, "", []byte("\n \r\n\n")),
		"empty array":            message(ContentJSON, "", []byte(" [ ] ")),
		"array cut off":          message(ContentJSON, "", []byte("["+one+",")),
		"array and more":         message(ContentJSON, "", []byte("["+one+"] x")),
		"too many events":        message(ContentNDJSON, "", bytes.Repeat([]byte("{}\n"), schema.MaxMessageEvents+1)),
		"too many in an array":   message(ContentJSON, "", fmt.Appendf(nil, "[%s1]", strings.Repeat("1,", schema.MaxMessageEvents))),
		"empty block":            message(ContentBlock, "", NewBlock().AppendNative(nil)),
		"JSON for a block":       message(ContentBlock, "", []byte(one)),
	} {
		d, err := Decode(m, testNow)
		if !errors.Is(err, ErrMalformed) || d != nil {
			t.Errorf("%s: %v, %v", name, d, err)
			continue
		}
		if len(err.Error()) > 4096 { // it becomes a header
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
	const n = schema.MaxMessageEvents
	if d, err := Decode(message(ContentNDJSON, EncodingZstd, Compress(EncodingZstd, bytes.Repeat([]byte("{}\n"), n), nil)), testNow); err != nil || len(d.Rejects) != n {
		t.Errorf("%d events that are empty: %v", n, err)
	}
	if _, err := Decode(message(ContentNDJSON, EncodingZstd, huge(schema.MaxMessageBytes)), testNow); err == nil || !strings.Contains(err.Error(), "no event") {
		t.Errorf("4 MiB of nothing: %v", err)
	}
}

// A bad event stops nobody: it is rejected whole, and its neighbours go through with their places.
func TestDecodeRejects(t *testing.T) {
	t.Parallel()
	good := `{"occurred_at":"2026-11-22T04:05:06Z","source":"s","event":"e","action":"a"}`
	with := func(more string) string { return strings.TrimSuffix(good, "}") + more + "}" }
	raw := []string{
		good,
		`hello`,
		with(`,"organization":"globex"`),
		with(`,"organization":"acme","trail":"activity"`),
		with(`,"trail":"access"`),
		with(`,"description":"` + strings.Repeat("x", 1<<20) + `"`),
		good,
		"{\"source\":\"\xff\"}",
		with(`,"unknown":1`),
		with(`,"outcome":"\u0000"`),
		with(`,"description":"a\u0062c","app_id":"\u0064"`),
	}
	wantIndex := []uint32{0, 3, 6, 10}
	wantErrors := map[int]string{
		1: "not JSON at byte 1", 2: `disagrees with the subject, which says "acme"`, 4: `disagrees with the subject, which says "activity"`,
		5: "has 1048669 bytes", 7: "not valid UTF-8", 8: "unknown is no field", 9: `outcome "\x00" is not an outcome`,
	}
	check := func(kind string, d *Decoded, err error, raw []string, wantIndex []uint32) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if diff := cmp.Diff(wantIndex, d.Index); diff != "" {
			t.Errorf("%s: index (-want +got):\n%s", kind, diff)
		}
		for _, r := range d.Rejects {
			if string(r.Raw) != raw[r.Index] || r.ContentType != ContentJSON {
				t.Errorf("%s: reject %d is %.200q of type %s", kind, r.Index, r.Raw, r.ContentType)
			}
			if want := wantErrors[r.Index]; want == "" || !strings.Contains(r.Err.Error(), want) || !errors.Is(r.Err, schema.ErrInvalid) {
				t.Errorf("%s: reject %d: %v, want %q", kind, r.Index, r.Err, want)
			}
		}
		if d.Block.Rows()+len(d.Rejects) != len(raw) {
			t.Errorf("%s: %d rows and %d rejects of %d", kind, d.Block.Rows(), len(d.Rejects), len(raw))
		}
		for i, e := range d.Block.Events() {
			if e.ID != DerivedID(testNow, 42, int(d.Index[i])) || e.Outcome != schema.Success {
				t.Errorf("%s: event %d has id %s, outcome %q", kind, i, e.ID, e.Outcome)
			}
		}
	}
	lines := strings.Join(raw, "\n")
	d, err := Decode(message(ContentNDJSON, "", []byte(lines)), testNow)
	check("lines", d, err, raw, wantIndex)
	if e := d.Block.Events()[3]; e.Description != "abc" || e.AppID != "d" {
		t.Errorf("escapes: %+v", e)
	}
	// In an array one item that is no JSON leaves no items; without it, all is as in lines.
	raw[1] = good
	wantIndex = []uint32{0, 1, 3, 6, 10}
	array := "[" + strings.Join(raw, ",") + "]"
	d, err = Decode(message(ContentJSON, "", []byte(array)), testNow)
	check("array", d, err, raw, wantIndex)
}

func TestDecodeRejectsOfBlocks(t *testing.T) {
	t.Parallel()
	events := spoiled()
	events[1].ID = uuid.Nil
	d, err := Decode(message(ContentBlock, EncodingZstd, Compress(EncodingZstd, blockOf(events).AppendNative(nil), nil)), testNow)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	rejected := map[int]bool{}
	for _, r := range d.Rejects {
		kinds[r.ContentType]++
		rejected[r.Index] = true
		var got schema.Event
		switch r.ContentType {
		case ContentJSON:
			if len(r.Raw) > schema.MaxEventBytes {
				continue // for people only
			}
			if got, err = ParseEvent(r.Raw); err != nil {
				t.Fatalf("reject %d: %v", r.Index, err)
			}
		case ContentBlock:
			b, err := ParseNative(r.Raw)
			if err != nil || b.Rows() != 1 {
				t.Fatalf("reject %d: %v", r.Index, err)
			}
			got = b.Events()[0]
		}
		want := events[r.Index]
		got.Organization, got.Trail = want.Organization, want.Trail
		if r.ContentType == ContentJSON {
			if diff := cmp.Diff(canonicalJSON(t, []schema.Event{want}), canonicalJSON(t, []schema.Event{got})); diff != "" {
				t.Errorf("reject %d (-want +got):\n%s", r.Index, diff)
			}
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("reject %d (-want +got):\n%s", r.Index, diff)
		}
	}
	if kinds[ContentJSON] == 0 || kinds[ContentBlock] == 0 {
		t.Errorf("rejects by type: %v", kinds)
	}
	var want []uint32
	for i := range events {
		if !rejected[i] {
			want = append(want, uint32(i))
		}
	}
	if diff := cmp.Diff(want, d.Index); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	if got, want := d.Block.Events()[0].ID, DerivedID(testNow, 42, 1); got != want || rejected[1] {
		t.Errorf("id %s, want %s", got, want)
	}
}

func TestDerivedID(t *testing.T) {
	t.Parallel()
	seen := map[uuid.UUID]string{}
	for _, seq := range []uint64{0, 1, 2, 255, 256, 1 << 16, 1<<16 + 1, 1 << 32, 1 << 40, 1<<48 - 1} {
		for _, index := range []int{0, 1, 2, 255, 256, 257, 65535} {
			id := DerivedID(testNow, seq, index)
			if id != DerivedID(testNow.In(time.FixedZone("JST", 9*3600)), seq, index) {
				t.Error("the id is not stable")
			}
			if at := fmt.Sprintf("%d-%d", seq, index); seen[id] != "" {
				t.Errorf("%s and %s have the same id", at, seen[id])
			} else {
				seen[id] = at
			}
			if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
				t.Errorf("%s has version %d, variant %s", id, id.Version(), id.Variant())
			}
			if sec, nsec := id.Time().UnixTime(); time.Unix(sec, nsec).UnixMilli() != testNow.UnixMilli() {
				t.Errorf("%s is of %v", id, time.Unix(sec, nsec))
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(0), false, []byte(head+`}`))
	f.Add(uint8(1), false, []byte(head+"}\n"+head+`,"outcome":"x"}`))
	f.Add(uint8(0), false, []byte(`[`+head+`}, {} ]`))
	f.Add(uint8(2), false, blockOf(randomEvents(2)).AppendNative(nil))
	f.Add(uint8(1), true, Compress(EncodingZstd, []byte(head+`}`), nil))
	f.Add(uint8(3), true, []byte("(\xb5/\xfd"))
	types := []string{ContentJSON, ContentNDJSON, ContentBlock, "text/plain"}
	f.Fuzz(func(t *testing.T, kind uint8, compressed bool, payload []byte) {
		m := message(types[int(kind)%len(types)], "", payload)
		if compressed {
			m.ContentEncoding = EncodingZstd
		}
		d, err := Decode(m, testNow)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v is no ErrMalformed", err)
			}
			return
		}
		if d.Index != nil && len(d.Index) != d.Block.Rows() {
			t.Errorf("%d places for %d rows", len(d.Index), d.Block.Rows())
		}
		for _, e := range withOwner(d.Block.Events()) {
			if err := e.Validate(testNow); err != nil || e.ID == uuid.Nil || e.Outcome == "" {
				t.Errorf("%+v went through: %v", e, err)
			}
		}
		for _, r := range d.Rejects {
			if !errors.Is(r.Err, schema.ErrInvalid) || len(r.Err.Error()) > 48<<10 {
				t.Errorf("reject %d: %.200v", r.Index, r.Err)
			}
		}
	})
}
