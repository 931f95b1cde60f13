package mapping

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

const event = `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"access","source":"s","event":"e","action":"a"}`

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// read lists the lines of an input: the number, and "ok" or what is wrong; and how the input ended.
func read(r io.Reader) (lines []string, ids []uuid.UUID, err error) {
	o := Options{Now: func() time.Time { return testNow }}
	for line, err := range Lines(r, o) {
		if err != nil {
			return lines, ids, err
		}
		said := "ok"
		if line.Err != nil {
			said = line.Err.Error()
		} else {
			ids = append(ids, line.Event.ID)
		}
		lines = append(lines, fmt.Sprintf("%d %s", line.Number, said))
	}
	return lines, ids, nil
}

func TestLines(t *testing.T) {
	t.Parallel()
	cut := "the event is cut off after 1 bytes: give a whole JSON object"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":             {"", nil},
		"one":                 {event + "\n", []string{"1 ok"}},
		"no line break":       {event + "\n" + event, []string{"1 ok", "2 ok"}},
		"CRLF":                {event + "\r\n" + event + "\r\n", []string{"1 ok", "2 ok"}},
		"blank lines":         {"\n\n" + event + "\n \t\r\n" + event + "\n\n", []string{"3 ok", "5 ok"}},
		"BOM":                 {"\ufeff" + event + "\n" + event + "\n", []string{"1 ok", "2 ok"}},
		"BOM alone":           {"\ufeff\r\n" + event, []string{"2 ok"}},
		"faults in between":   {event + "\n{\n" + event + "\n", []string{"1 ok", "2 " + cut, "3 ok"}},
		"members of gzip":     {zipped(t, event+"\n") + zipped(t, event+"\n"), []string{"1 ok", "2 ok"}},
		"gzip of nothing":     {zipped(t, ""), nil},
		"invalid, not broken": {strings.Replace(event, `"a"`, `"A"`, 1), []string{`1 action "A" contains upper case: write a`}},
	} {
		for form, text := range map[string]string{"plain": c.text, "gzip": zipped(t, c.text)} {
			if form == "gzip" && strings.HasPrefix(c.text, "\x1f\x8b") {
				continue // one layer is taken off, no more
			}
			got, _, err := read(iotest.OneByteReader(strings.NewReader(text)))
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%s, %s: %v (-want +got):\n%s", name, form, err, diff)
			}
		}
	}
}

func TestLinesThatAreTooLong(t *testing.T) {
	t.Parallel()
	// The piece that goes beyond the bound is followed by a small one, which would fit again.
	long := "x" + strings.Repeat(" ", maxRecord+100) + "y"
	n := 0
	for line, err := range Lines(strings.NewReader(event+"\n"+long+"\n"+event), Options{Now: func() time.Time { return testNow }}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if (line.Err != nil) != (n == 2) {
			t.Errorf("line %d: %v", line.Number, line.Err)
		}
		if n == 2 && (!strings.Contains(line.Err.Error(), "longer than 8388608 bytes") || string(line.Raw) != "x") {
			t.Errorf("%v, %d bytes of it", line.Err, len(line.Raw))
		}
	}
	if n != 3 {
		t.Errorf("%d lines", n)
	}
}

func TestInputThatBreaksOff(t *testing.T) {
	t.Parallel()
	text := zipped(t, strings.Repeat(event+"\n", 1000))
	for name, c := range map[string]struct {
		input io.Reader
		want  error
	}{
		"gzip cut off":          {strings.NewReader(text[:len(text)-10]), io.ErrUnexpectedEOF},
		"gzip cut in its head":  {strings.NewReader(text[:5]), io.ErrUnexpectedEOF},
		"gzip of another sum":   {strings.NewReader(text[:len(text)-8] + "12345678"), gzip.ErrChecksum},
		"an error of the input": {io.MultiReader(strings.NewReader(event+"\n"+event[:9]), iotest.ErrReader(io.ErrNoProgress)), io.ErrNoProgress},
	} {
		lines, _, err := read(c.input)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v after %d lines, want %v", name, err, len(lines), c.want)
		}
		for _, line := range lines {
			if !strings.HasSuffix(line, " ok") {
				t.Errorf("%s: a line that is not whole was taken for one: %s", name, line)
			}
		}
	}
}

// Reading the same input again gives the same events, and equal lines are different events.
func TestIDsAreStable(t *testing.T) {
	t.Parallel()
	text := event + "\n" + event + "\n" + strings.Replace(event, "{", `{"id":"0193500b-7c00-7abc-8def-0123456789ab",`, 1)
	_, first, err := read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := read(strings.NewReader(zipped(t, "\ufeff"+text)))
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		t.Errorf("%v (-first +again):\n%s", err, diff)
	}
	if len(first) != 3 || first[0] == first[1] || first[0].Version() != 8 || first[0].Variant() != uuid.RFC4122 {
		t.Errorf("ids %v", first)
	}
	if want := uuid.MustParse("0193500b-7c00-7abc-8def-0123456789ab"); first[2] != want {
		t.Errorf("the event's own id became %s", first[2])
	}
}

func TestOwnersOfLines(t *testing.T) {
	t.Parallel()
	for line, err := range Lines(strings.NewReader(event), Options{Organization: "globex", Trail: schema.Activity, Now: func() time.Time { return testNow }}) {
		if err != nil || line.Err != nil || line.Event.Organization != "globex" || line.Event.Trail != schema.Activity {
			t.Errorf("%+v, %v", line, err)
		}
	}
}
