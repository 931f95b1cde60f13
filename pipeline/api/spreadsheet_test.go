package api

import (
	"encoding/csv"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/schema/codec"
)

func markedOf(t *testing.T, text string, one bool) string {
	t.Helper()
	in := io.Reader(strings.NewReader(text))
	if one {
		in = iotest.OneByteReader(in)
	}
	out, err := io.ReadAll(newMarked(io.NopCloser(in)))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Values that a spreadsheet would take for a formula begin with the mark; quotes within values, numbers and separators stay.
func TestFormulasAreMarked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`"=1+1","a",7` + "\r\n":      `"'=1+1","a",7` + "\r\n",
		`"","=a"`:                    `"","'=a"`,
		`"a""=b"`:                    `"a""=b"`,
		`"""=b"`:                     `"""=b"`,
		`"＝1"` + "\t" + `"@x"`:       `"'＝1"` + "\t" + `"'@x"`,
		`"'quoted"`:                  `"''quoted"`,
		`"ａ","-","` + "\tx" + `",-5`: `"ａ","'-","'` + "\tx" + `",-5`,
		`"`:                          `"`,
	} {
		for _, one := range []bool{false, true} {
			if got := markedOf(t, text, one); got != want {
				t.Errorf("%q: %q, want %q", text, got, want)
			}
		}
	}
}

// A reader of CSV that takes the mark away has every value back, and none that it gets is a formula.
func FuzzMarkedFormulas(f *testing.F) {
	for _, seed := range []string{"=1", "\"=1", "\"\"", "", "'", "-5", "＝", "\xef\xbc", "a\r\nb", "\t"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.Contains(a+b, "\r") || !utf8.ValidString(a+b) { // which encoding/csv changes
			return
		}
		quote := func(v string) string { return `"` + strings.ReplaceAll(v, `"`, `""`) + `"` }
		row, err := csv.NewReader(strings.NewReader(markedOf(t, quote(a)+","+quote(b)+"\r\n", false))).Read()
		if errors.Is(err, io.EOF) || err != nil || len(row) != 2 {
			t.Fatalf("%q, %v", row, err)
		}
		for i, v := range []string{a, b} {
			want := v
			if codec.Dangerous(v) {
				want = string(codec.Mark) + v
			}
			if row[i] != want {
				t.Errorf("%q became %q", v, row[i])
			}
		}
	})
}
