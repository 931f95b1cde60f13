package schema_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/schema"
)

var jsonTexts = []string{
	``, ` `, `null`, ` true `, "\tfalse\r\n", `nul`, `nullx`, `True`, `0`, `-0`, `00`, `01`, `-`, `+1`, `1.`, `.5`, `1.5e`, `1.5e+`, `1.5e+10`, `1E5`, `-1e-5`,
	`0.0`, `0e0`, `1 2`, `""`, `"a`, `"\`, `"\"`, `"\\"`, `"\n\/\b\f\r\t\""`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u12aF"`, "\"\n\"", "\"\x00\"", "\"\x7f\xff\"",
	`[]`, `[ ]`, `[1]`, `[1,]`, `[,1]`, `[1 2]`, `[1,2`, `[`, `]`, `{}`, `{ }`, `{"a":1}`, `{"a":1,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1 "b":2}`,
	`{"a" : [ { "b" : null } , "c" ] }`, `{"a":1]`, `[}`, `{"a":1}}`, `"a" "b"`, "\u00a01", "\ufeff1", `NaN`, `Infinity`, `'a'`, `/**/1`,
}

func TestValidJSONIsThatOfTheStandardLibrary(t *testing.T) {
	t.Parallel()
	texts := jsonTexts
	for _, deep := range []int{9_999, 10_000, 10_001} {
		texts = append(texts, strings.Repeat("[", deep)+strings.Repeat("]", deep),
			strings.Repeat("[", deep-1)+"1"+strings.Repeat("]", deep-1), strings.Repeat(`{"a":`, deep)+"1"+strings.Repeat("}", deep))
	}
	for _, s := range texts {
		if got, want := schema.ValidJSON(s), json.Valid([]byte(s)); got != want {
			t.Errorf("%.40q of %d bytes: got %t, want %t", s, len(s), got, want)
		}
	}
}

func FuzzValidJSON(f *testing.F) {
	for _, s := range jsonTexts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := schema.ValidJSON(s), json.Valid([]byte(s)); got != want {
			t.Errorf("%q: got %t, want %t", s, got, want)
		}
	})
}

// A string is looked at eight bytes at a time: each byte has to be told wherever it stands.
func TestValidJSONOfEachByteInEachPlace(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		for place := range 20 {
			for _, filler := range []byte{'x', 0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff} {
				b := bytes.Repeat([]byte{filler}, 20)
				b[place] = byte(c)
				s := `"` + string(b) + `"`
				if got, want := schema.ValidJSON(s), json.Valid([]byte(s)); got != want {
					t.Fatalf("%q: got %t, want %t", s, got, want)
				}
			}
		}
	}
}
