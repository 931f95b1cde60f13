package mapping

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/unicode"
)

// described lists what becomes of an input: place and description of each event, or what is wrong.
func described(t *testing.T, m *Mapping, input string) (all []string) {
	t.Helper()
	r := io.Reader(strings.NewReader(input))
	if len(input) < 1<<16 { // a large one takes half a minute byte by byte
		r = iotest.OneByteReader(r)
	}
	for line, err := range Lines(r, Options{Mapping: m, Now: func() time.Time { return testNow }}) {
		switch {
		case err != nil:
			all = append(all, "ends: "+err.Error())
		case line.Skipped:
			all = append(all, line.Place()+" skipped")
		case line.Err != nil:
			problem, _, _ := strings.Cut(line.Err.Error(), ": ")
			all = append(all, line.Place()+" refused "+problem)
		default:
			all = append(all, line.Place()+" "+line.Event.Description)
		}
	}
	return all
}

// mappingOf is a mapping with an input of some kind, that puts n into the description.
func mappingOf(t testing.TB, input, description string) *Mapping {
	t.Helper()
	text := "input: " + input + `
fields:
  occurred_at: {const: '2026-11-22T04:05:06Z'}
  organization: {const: acme}
  trail: {const: access}
  source: {const: s}
  event: {const: e}
  action: {const: a}
  description: ` + description + "\n"
	m, err := Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRecordsOfJSON(t *testing.T) {
	t.Parallel()
	m := mappingOf(t, "{records: [Records, data.events], unwrap: [detail, 'message->']}", "n")
	long := `{"pad":"` + strings.Repeat("x", maxRecord) + `","Records":[{"n":1},{"n":2}],"after":[{"n":9}]} {"n":3}`
	for name, c := range map[string]struct {
		input string
		want  []string
	}{
		"lines":                      {"{\"n\":1}\n\n{\"n\":2}\r\n", []string{"1 1", "3 2"}},
		"an array on one line":       {`[{"n":1},{"n":2}]`, []string{"record 1 1", "record 2 2"}},
		"an array over lines":        {"\n[\n {\"n\":1},\n {\"n\":\n 2}\n]\n", []string{"record 1 1", "record 2 2"}},
		"arrays one after the other": {"[{\"n\":1}]\n[]\n[{\"n\":2}]", []string{"record 1 1", "record 2 2"}},
		"an object over lines":       {"{\n \"n\": 1\n}\n{\n \"n\": 2\n}\n", []string{"record 1 1", "record 2 2"}},
		"records in an object":       {`{"Records":[{"n":1},{"n":2}]}`, []string{"record 1 1", "record 2 2"}},
		"records deep in an object":  {"{\"data\":{\n\"events\":[{\"n\":1}]}}", []string{"record 1 1"}},
		"no records in an object":    {`{"Records":[]}` + "\n" + `{"n":1}`, []string{"record 1 1"}},
		"records in a later line":    {"{\"n\":1}\n{\"Records\":[{\"n\":2},{\"n\":3}]}\n{\"n\":4}", []string{"1 1", "2 2", "2 3", "3 4"}},
		"an envelope":                {`{"detail":{"n":1}}`, []string{"1 1"}},
		"JSON in a text":             {`{"message":"{\"n\":1}"}`, []string{"1 1"}},
		"record separators":          {"\x1e{\"n\":1}\n\x1e{\"n\":2}\n", []string{"1 1", "2 2"}},
		"larger than a record":       {long, []string{"record 1 1", "record 2 2", "record 3 3"}},
		"a broken first line":        {"{\"n\":\n{\"n\":2}\n{\"n\":3}\n", []string{"1 refused the record (json) is not JSON", "2 2", "3 3"}},
		"a broken line":              {"{\"n\":1}\n{\"n\":\n{\"n\":3}\n", []string{"1 1", "2 refused the record (json) is not JSON", "3 3"}},
		"an array that is cut off":   {`[{"n":1},{"n":2`, []string{"record 1 1", "record 2 refused the record is cut off", "record 3 refused the array is cut off"}},
		"something in an array":      {`[{"n":1},7,"]",{"n":2}]`, []string{"record 1 1", "record 2 refused the record (json) is not a JSON object", "record 3 refused the record (json) is not a JSON object", "record 4 2"}},
		"a repeated name":            {`{"n":1,"o":{"x":1,"\u0078":2}}`, []string{`1 refused the record (json) has the name "o.x" twice`}},
		"nothing":                    {" \n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, described(t, m, c.input)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Reading further after a stop must neither repeat nor leave out a record.
func TestLinesFromARecord(t *testing.T) {
	t.Parallel()
	m := mappingOf(t, "{records: Records}", "n")
	for _, input := range []string{"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n", `{"Records":[{"n":1},{"n":2},{"n":3}]}`} {
		n := 0
		for line, err := range Lines(strings.NewReader(input), Options{Mapping: m, From: 2, Now: func() time.Time { return testNow }}) {
			n++
			if want := fmt.Sprint(n + 1); err != nil || line.Err != nil || line.Event.Description != want {
				t.Errorf("%s: %v, %v, want %s", input, line.Event.Description, line.Err, want)
			}
		}
		if n != 2 {
			t.Errorf("%s: %d events", input, n)
		}
	}
}

func TestEventsInARecord(t *testing.T) {
	t.Parallel()
	m := mappingOf(t, "{each: events}", "{template: '${id}-${@item.n}'}")
	want := []string{"1 r-1", "1 r-2", "2 s-", "3 t-", "4 u-3"}
	got := described(t, m, `{"id":"r","events":[{"n":1},{"n":2}]}
{"id":"s"}
{"id":"t","events":[]}
{"id":"u","events":{"n":3}}`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRecordsOfText(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mapping, description, input string
		want                        []string
	}{
		"CSV with a header":           {"{format: csv}", "b", "\ufeffa,b\r\n1,\"x\"\"\ny\"\r\n2,z\r\n", []string{"2 x\"\ny", "4 z"}},
		"CSV with too few values":     {"{format: csv}", "b", "a,b\n1\n2,z\n", []string{"2 refused the record (csv) has 1 values, and there are 2 columns", "3 z"}},
		"CSV with a stray quote":      {"{format: csv}", "b", "a,b\n1,x\"y\n2\",z\n3,w\n", []string{`2 refused the record (csv) is not well-formed at byte 4`, "4 w"}},
		"CSV whose header repeats":    {"{format: csv}", "a", "a,a\n1,2\n", []string{`ends: invalid mapping: the header line has "a" twice: name the columns in input.columns, or set input.repeated to list`}},
		"repeated columns as lists":   {"{format: csv, repeated: list}", "a", "a,a\n1,2\n", []string{`2 ["1","2"]`}},
		"tabs without quotes":         {`{format: csv, delimiter: "\t", quotes: false, columns: [a, b]}`, "b", "1\t\"x\n", []string{`1 "x`}},
		"pairs":                       {"{format: keyvalue}", "{template: '${a}|${b}|${c}|${_words}'}", `a=1 b="x \"y\" z" c='p q' word other` + "\n", []string{`1 1|x "y" z|p q|word other`}},
		"pairs with other separators": {`{format: keyvalue, separator: ":", delimiter: ";"}`, "{template: '${a}|${b}'}", "a:1; b:x y\n", []string{"1 1|x y"}},
		"pairs that repeat":           {"{format: keyvalue}", "a", "a=1 a=2\n", []string{`1 refused the record (keyvalue) has the name "a" twice`}},
		"a quote that does not end":   {"{format: keyvalue}", "a", "a=\"1 b=2\n", []string{"1 refused the record (keyvalue) has a quote that does not end"}},
		"RFC 5424":                    {"{format: syslog}", `{template: '${severity} ${app} ${pid} ${data.x\@1.k} ${message}'}`, "<165>1 2026-11-22T04:05:06.003Z h evntslog - ID47 [x@1 k=\"v\\\"]\"][y a=\"b\"] \ufeffHello\n", []string{`1 5 evntslog  v"] Hello`}},
		"RFC 3164":                    {"{format: syslog}", "{template: '${facility} ${host} ${app} ${pid} ${message}'}", "<34>Oct  1 22:14:15 mymachine su[7]: 'su root' failed\n", []string{"1 4 mymachine su 7 'su root' failed"}},
		"not syslog":                  {"{format: syslog}", "message", "hello\n", []string{"1 refused the record (syslog) does not begin as a line of syslog does"}},
		"patterns":                    {`{format: regexp, patterns: [{name: in, pattern: '^in (?P<u>\S+)'}, {pattern: '^out( (?P<u>\S+))?$'}]}`, "{template: '${pattern} ${u}'}", "in aiko\nout\nwhat\n", []string{"1 in aiko", "2 ", "3 refused the record (regexp) matches none of the patterns"}},
		"only and skip":               {`{format: keyvalue, only: [{a: '^1$'}, {b: '.'}], skip: [{b: '^2$'}]}`, "{template: '${a}${b}'}", "a=1\na=2\nb=1\nb=2\n", []string{"1 1", "2 skipped", "3 1", "4 skipped"}},
		"a text within a record":      {`{parse: [{path: m, format: keyvalue, into: kv}]}`, "kv.b", `{"m":"a=1 b=2"}`, []string{"1 2"}},
		"bytes that are not UTF-8":    {"{format: keyvalue}", "a", "a=\xff\na=b\n", []string{"1 refused the record (keyvalue) is not valid UTF-8", "2 b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, described(t, mappingOf(t, c.mapping, c.description), c.input)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The same text is read in every encoding that says what it is.
func TestEncodingsOfText(t *testing.T) {
	t.Parallel()
	const text = "name,b\r\n花子 Åsa,z\r\n"
	utf16, err := unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewEncoder().String(text)
	if err != nil {
		t.Fatal(err)
	}
	bigEndian, err := unicode.UTF16(unicode.BigEndian, unicode.UseBOM).NewEncoder().String(text)
	if err != nil {
		t.Fatal(err)
	}
	sjis, err := japanese.ShiftJIS.NewEncoder().String("name,b\r\n花子,z\r\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ input, text, want string }{
		{"{format: csv}", text, "2 花子 Åsa"},
		{"{format: csv}", "\ufeff" + text, "2 花子 Åsa"},
		{"{format: csv}", utf16, "2 花子 Åsa"},
		{"{format: csv}", bigEndian, "2 花子 Åsa"},
		{"{format: csv, charset: shift_jis}", sjis, "2 花子"},
		{"{format: csv, charset: shift_jis}", utf16, "2 花子 Åsa"},
	} {
		if got := described(t, mappingOf(t, c.input, "name"), c.text); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %q, want %q", c.input, got, c.want)
		}
	}
}

func TestNumbersKeepTheirDigits(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"9007199254740993.0", "1e400", "1.50", "-0", "123456789.123456789123456789", "1E+2"} {
		m := mappingOf(t, "{}", "{template: '${n}'}\nattributes: {n: n}")
		events, err := m.Events(strings.NewReader(`{"n":` + n + `}`))
		if err != nil || len(events) != 1 || events[0].Description != n || events[0].Attributes["n"] != n {
			t.Errorf("%s became %v, %v", n, events, err)
		}
	}
}

func TestUnmappedValues(t *testing.T) {
	t.Parallel()
	m := mappingOf(t, "{each: items}", "{template: '${a.b}${@item.x}${$v}'}\n  data: '@this'\nvalues: {v: c.0}")
	var got []Member
	for line, err := range Lines(strings.NewReader(`{"a":{"b":1,"rest":2},"c":[3,4],"d.e":null,"items":[{"x":5,"y":6}],"o":{}}`), Options{Mapping: m, Explain: true, Now: func() time.Time { return testNow }}) {
		if err != nil || line.Err != nil {
			t.Fatal(err, line.Err)
		}
		got = line.Explained.Unmapped
	}
	want := []Member{{"a.rest", "2"}, {"c.1", "4"}, {`d\.e`, "null"}, {"items.0.y", "6"}, {"o", "{}"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A mapping that says nothing of the outcome must not make it a success.
func TestOutcomeIsNeverASuccessByItself(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string]string{
		"": "1 unknown",
		"outcome: {path: r, lookup: {ok: success}}":                   "1 refused outcome has no value",
		"outcome: {path: r, match: [{pattern: x, value: y}]}":         `1 refused outcome "fail" is not an outcome`,
		"outcome: {path: r, lookup: {ok: success}, default: unknown}": "1 unknown",
	} {
		m := mappingOf(t, "{}", "{const: d}\n  "+rule)
		var got string
		for line, err := range Lines(strings.NewReader(`{"r":"fail"}`), Options{Mapping: m, Now: func() time.Time { return testNow }}) {
			if err != nil {
				t.Fatal(err)
			}
			got = line.Place() + " " + string(line.Event.Outcome)
			if line.Err != nil {
				problem, _, _ := strings.Cut(line.Err.Error(), ": ")
				got = line.Place() + " refused " + problem
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", rule, got, want)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add("[{\"n\":1}]", "{}")
	f.Add("{\n\"Records\":[{}]}", "{records: Records}")
	f.Add("a,b\n1,\"2", "{format: csv}")
	f.Add("<34>1 - - - - - [a b=\"c\"] d", "{format: syslog, repeated: list}")
	f.Add("a='b' c", "{format: keyvalue, repeated: list}")
	f.Fuzz(func(t *testing.T, text, input string) {
		m, err := Parse("fuzz", []byte("input: "+input+required))
		if err != nil {
			return
		}
		last := 0
		for line, err := range Lines(strings.NewReader(text), Options{Mapping: m, Explain: true}) {
			if err != nil {
				return
			}
			if line.Number < last {
				t.Errorf("record %d comes after %d", line.Number, last)
			}
			last = line.Number
			if x := line.Explained; x != nil && !json.Valid([]byte(x.Record)) {
				t.Errorf("the record is not JSON: %s", x.Record)
			}
		}
	})
}
