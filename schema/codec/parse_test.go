package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/schema"
)

// reference reads an event with encoding/json.
func reference(line []byte) (e schema.Event, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, err
	}
	if rest := bytes.TrimLeft(line[d.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return e, errors.New("trailing data")
	}
	if t := bytes.TrimLeft(line, " \t\r\n"); t[0] != '{' {
		return e, errors.New("no object")
	}
	return e, nil
}

// stricter reports whether a line that encoding/json takes may be refused: for names it matches without
// regard to case, names that are there twice, and times and ids in forms that are none.
func stricter(line []byte, fault *schema.Fault) bool {
	switch {
	case fault.Problem == "is there twice":
		return twiceInTokens(line)
	case fault.Problem == "is no field of an event":
		leaf := fault.Field[strings.LastIndexByte(fault.Field, '.')+1:]
		known := []string{"organization", "trail", "actor", "target", "context"}
		for i := range schema.Fields {
			known = append(known, schema.Fields[i].Name[strings.LastIndexByte(schema.Fields[i].Name, '.')+1:])
		}
		for _, name := range known {
			if strings.EqualFold(name, leaf) && name != leaf {
				return true
			}
		}
		return false
	case fault.Field == "occurred_at" && fault.Problem == "is no time":
		v := fault.Value
		return len(v) < 20 || v[13] != ':' || v[19] == ','
	case fault.Field == "id" && fault.Problem == "is no UUID":
		return len(fault.Value) == 38
	}
	return false
}

// twiceInTokens reports whether a name is twice in one of the objects of a line.
func twiceInTokens(line []byte) bool {
	d := json.NewDecoder(bytes.NewReader(line))
	var names []map[string]bool // one for each open object, nil for an array
	isName := false
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch v := token.(type) {
		case json.Delim:
			switch v {
			case '{':
				names = append(names, map[string]bool{})
			case '[':
				names = append(names, nil)
			default:
				names = names[:len(names)-1]
			}
		case string:
			if isName {
				if names[len(names)-1][v] {
					return true
				}
				names[len(names)-1][v] = true
				isName = false
				continue
			}
		}
		isName = len(names) > 0 && names[len(names)-1] != nil
	}
}

// checkParse compares the parser with encoding/json.
func checkParse(t *testing.T, line []byte) {
	t.Helper()
	got, gotErr := ParseEvent(line)
	if len(line) > schema.MaxEventBytes || !json.Valid(bytes.ToValidUTF8(line, nil)) {
		if gotErr == nil {
			t.Errorf("%.200q is accepted", line)
		}
		return
	}
	want, wantErr := reference(line)
	var fault *schema.Fault
	switch {
	case gotErr != nil && (!errors.As(gotErr, &fault) || !errors.Is(gotErr, schema.ErrInvalid)):
		t.Errorf("%.200q: %v is no fault", line, gotErr)
	case gotErr != nil && wantErr == nil && bytes.Equal(line, bytes.ToValidUTF8(line, nil)) && !stricter(line, fault):
		t.Errorf("%.200q: refused: %v", line, gotErr)
	case gotErr == nil && wantErr != nil && !bytes.Contains(line, []byte(`\`)): // it does not read escapes in times
		t.Errorf("%.200q: accepted, but %v", line, wantErr)
	case gotErr == nil && wantErr == nil:
		if len(got.Attributes) == 0 && len(want.Attributes) == 0 {
			got.Attributes, want.Attributes = nil, nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%.200q (-encoding/json +parser):\n%s", line, diff)
		}
	}
}

const head = `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"access","source":"s","event":"e","action":"a"`

// parseLines is each with the fault it has, or nothing.
var parseLines = map[string]string{
	``:                                      `the event is cut off after 0 bytes: give a whole JSON object`,
	`{`:                                     `the event is cut off after 1 bytes: give a whole JSON object`,
	`{}`:                                    ``,
	` { } `:                                 ``,
	`[]`:                                    `the event is a JSON array: give a JSON object`,
	`"x"`:                                   `the event is a JSON string: give a JSON object`,
	`null`:                                  `the event is a JSON null: give a JSON object`,
	`hello`:                                 `the event is not JSON at byte 1: 'h': give a JSON object`,
	`{"source"}`:                            `the event is not JSON at byte 10: '}': give a JSON object`,
	`{"source":"a",}`:                       `the event is not JSON at byte 15: '}': give a JSON object`,
	`{"source":"a" "event":"b"}`:            `the event is not JSON at byte 15: '"': give a JSON object`,
	`{"source":"a"}{}`:                      `"{}" follows the event: put one event in a line`,
	`{"source":"a"`:                         `the event is cut off after 13 bytes: give a whole JSON object`,
	"{\"source\":\"a\nb\"}":                 `the event is not JSON at byte 13: '\n': give a JSON object`,
	"{\"source\":\"\xff\"}":                 `the event is not valid UTF-8: encode it as UTF-8`,
	`{"source":7}`:                          `source is a JSON number: give a JSON string`,
	`{"source":tru}`:                        `the event is not JSON at byte 11: 't': give a JSON object`,
	`{"actor":"u"}`:                         `actor is a JSON string: give a JSON object`,
	`{"actor":{"id":true}}`:                 `actor.id is a JSON bool: give a JSON string`,
	`{"actor":{"mail":"x"}}`:                `actor.mail is no field of an event: put it in data or attributes`,
	`{"actor":{"id":"a","id":"b"}}`:         `actor.id is there twice: give one value`,
	`{"actor":{"id":"a"},"actor":{}}`:       `actor is there twice: give one value`,
	`{"attributes":[]}`:                     `attributes is a JSON array: give a JSON object`,
	`{"attributes":{"a":{}}}`:               `attributes.a is a JSON object: give a JSON string`,
	`{"attributes":{"a":"1","\u0061":"2"}}`: `attributes.a is there twice: give one value`,
	`{"Source":"a"}`:                        `Source is no field of an event: put it in data or attributes`,
	`{"colour":"a"}`:                        `colour is no field of an event: put it in data or attributes`,
	`{"occurred_at":"yesterday"}`:           `occurred_at "yesterday" is no time: use RFC 3339: 2026-11-22T04:05:06.789Z`,
	`{"occurred_at":"2026-11-22T4:05:06Z"}`: `occurred_at "2026-11-22T4:05:06Z" is no time: use RFC 3339: 2026-11-22T04:05:06.789Z`,
	`{"occurred_at":17}`:                    `occurred_at is a JSON number: give a JSON string`,
	`{"id":"7"}`:                            `id "7" is no UUID: use a UUID, or leave it out`,
	`{"data":{"a":}}`:                       `the event is not JSON at byte 14: '}': give a JSON object`,
	`{"data":01}`:                           `the event is not JSON at byte 9: '0': give a JSON object`,
	`{"source":"\ud83d\ude00\ud83d\u0041\"\\\/\b\f\n\r\t\u00e9"}`:                                                         ``,
	`{"source":"\ud83d","event":"\ude00\ud83d"}`:                                                                          ``,
	`{"data": {"a" : [1, 2]} , "before":null,"after":"x"}`:                                                                ``,
	`{"source":null,"actor":null,"attributes":null,"id":null,"occurred_at":null,"trail":null}`:                            ``,
	`{"attributes":{"a":null,"b":""}}`:                                                                                    ``,
	`{"action":"a","id":"0193500b-7c00-7abc-8def-0123456789ab","context":{"location":"x","ip":"y"},"actor":{"name":"z"}}`: ``,
	head + `}`: ``,
	head + `,"occurred_at":"2026-11-22T04:05:06Z"}`: `occurred_at is there twice: give one value`,
}

func TestParseEvent(t *testing.T) {
	t.Parallel()
	for line, want := range parseLines {
		checkParse(t, []byte(line))
		got := ""
		if _, err := ParseEvent([]byte(line)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
		}
	}
}

func TestParseEventReadsWhatIsWritten(t *testing.T) {
	t.Parallel()
	for _, want := range randomEvents(300) {
		line, err := AppendJSON(nil, &want)
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > schema.MaxEventBytes {
			continue
		}
		checkParse(t, line)
		got, err := ParseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		for i := range line { // nothing of an event may lie in the line it was read from
			line[i] = 'x'
		}
		again, _ := AppendJSON(nil, &got)
		first, _ := AppendJSON(nil, &want)
		if !bytes.Equal(again, first) {
			t.Errorf("got  %s\nwant %s", again, first)
		}
	}
}

// A whole document that is cut off anywhere is refused, and never more than cut off.
func TestParseEventCutOff(t *testing.T) {
	t.Parallel()
	e := randomEvents(1)[0]
	line, err := AppendJSON(nil, &e)
	if err != nil {
		t.Fatal(err)
	}
	for n := range line {
		if _, err := ParseEvent(line[:n]); !errors.Is(err, schema.ErrInvalid) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(line), err)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for line := range parseLines {
		f.Add([]byte(line))
	}
	for _, e := range randomEvents(20) {
		if line, err := AppendJSON(nil, &e); err == nil && len(line) < 4096 {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, line []byte) { checkParse(t, line) })
}
