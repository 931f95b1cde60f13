package schema_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC)

func validEvent() schema.Event {
	return schema.Event{
		ID: uuid.MustParse("0193500b-7c00-7abc-8def-0123456789ab"), OccurredAt: now,
		Organization: "acme", Trail: schema.Activity, Source: "reports", Event: "report.published", Action: "publish",
		Outcome: schema.Success,
		Actor:   schema.Actor{Type: "user", ID: "u-1", Name: "佐藤 花子"},
		Target:  schema.Target{Type: "report", ID: "r-1", Name: "Q3"},
		AppID:   "app-1",
		Context: schema.Context{IP: "2001:db8::1", UserAgent: "curl", SessionID: "s", TraceID: "t", Location: "Tokyo"},
		Before:  json.RawMessage(`null`), After: json.RawMessage(`{"a":[1,2]}`), Data: json.RawMessage(`"text"`),
		Description: "two\r\nlines, \"quoted\"", DataType: "v1",
		Attributes: map[string]string{"pipeline_id": "p-1", "empty": ""},
	}
}

// bad has one event for each thing that can be wrong, and what is wrong with it.
var bad = []struct {
	name   string
	spoil  func(*schema.Event)
	inJSON bool // JSON Schema can say it
}{
	{"no organization", func(e *schema.Event) { e.Organization = "" }, true},
	{"organization of 65", func(e *schema.Event) { e.Organization = strings.Repeat("o", 65) }, true},
	{"organization with a dot", func(e *schema.Event) { e.Organization = "a.b" }, true},
	{"organization with a wildcard", func(e *schema.Event) { e.Organization = "*" }, true},
	{"organization with a slash", func(e *schema.Event) { e.Organization = "../etc" }, true},
	{"organization outside ASCII", func(e *schema.Event) { e.Organization = "監査" }, true},
	{"organization that is a device", func(e *schema.Event) { e.Organization = "Com7" }, true},
	{"organization where the keys are", func(e *schema.Event) { e.Organization = "keys" }, true},
	{"no trail", func(e *schema.Event) { e.Trail = "" }, true},
	{"unknown trail", func(e *schema.Event) { e.Trail = "Activity" }, true},
	{"no time", func(e *schema.Event) { e.OccurredAt = time.Time{} }, false},
	{"before 1900", func(e *schema.Event) { e.OccurredAt = schema.MinOccurredAt.Add(-time.Microsecond) }, false},
	{"beyond 24 hours ahead", func(e *schema.Event) { e.OccurredAt = now.Add(schema.MaxClockAhead + time.Microsecond) }, false},
	{"no source", func(e *schema.Event) { e.Source = "" }, true},
	{"source with a line break", func(e *schema.Event) { e.Source = "a\nb" }, true},
	{"source with DEL", func(e *schema.Event) { e.Source = "a\x7f" }, true},
	{"no event", func(e *schema.Event) { e.Event = "" }, true},
	{"event with a blank", func(e *schema.Event) { e.Event = "report published" }, true},
	{"no action", func(e *schema.Event) { e.Action = "" }, true},
	{"action in upper case", func(e *schema.Event) { e.Action = "Create" }, true},
	{"action with a tab", func(e *schema.Event) { e.Action = "cre\tate" }, true},
	{"unknown outcome", func(e *schema.Event) { e.Outcome = "ok" }, true},
	{"not UTF-8", func(e *schema.Event) { e.Description = "caf\xe9" }, false},
	{"before is no JSON", func(e *schema.Event) { e.Before = json.RawMessage("plain text") }, false},
	{"after is cut off", func(e *schema.Event) { e.After = json.RawMessage(`{"a":`) }, false},
	{"data is two values", func(e *schema.Event) { e.Data = json.RawMessage(`1 2`) }, false},
	{"257 attributes", func(e *schema.Event) { e.Attributes = attributes(schema.MaxAttributes + 1) }, true},
	{"attribute without a name", func(e *schema.Event) { e.Attributes[""] = "x" }, true},
	{"attribute with a long name", func(e *schema.Event) { e.Attributes[strings.Repeat("k", schema.MaxAttributeKey+1)] = "x" }, true},
	{"attribute with a long value", func(e *schema.Event) { e.Attributes["k"] = strings.Repeat("v", schema.MaxAttributeValue+1) }, true},
	{"attribute not UTF-8", func(e *schema.Event) { e.Attributes["k"] = "\xff" }, false},
	{"attribute name not UTF-8", func(e *schema.Event) { e.Attributes["\xff"] = "v" }, false},
	{"too large in all", func(e *schema.Event) { e.Description = strings.Repeat("d", schema.MaxEventBytes) }, false},
}

func attributes(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("k%03d", i)] = "v"
	}
	return m
}

func TestValidateTellsOneFaultForEachThing(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	for _, c := range bad {
		e := validEvent()
		c.spoil(&e)
		err := e.Validate(now)
		var invalid *schema.ValidationError
		if !errors.As(err, &invalid) || !errors.Is(err, schema.ErrInvalid) || errors.Is(err, os.ErrExist) {
			t.Errorf("%s: %v is no ValidationError that answers to ErrInvalid", c.name, err)
			continue
		}
		if len(invalid.Faults) != 1 || !errors.Is(invalid.Faults[0], schema.ErrInvalid) {
			t.Errorf("%s: %d faults, want 1: %v", c.name, len(invalid.Faults), err)
		}
		fmt.Fprintf(&got, "%s: %v\n", c.name, err)
	}
	golden(t, "faults.txt", got.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got), -update rewrites it:\n%s", path, diff)
	}
}

func TestValidateTellsEverything(t *testing.T) {
	t.Parallel()
	e := schema.Event{Outcome: "?", Before: json.RawMessage("x")}
	err := e.Validate(now)
	var invalid *schema.ValidationError
	if !errors.As(err, &invalid) {
		t.Fatalf("got %v", err)
	}
	var fields []string
	for _, f := range invalid.Faults {
		fields = append(fields, f.Field)
	}
	want := []string{"organization", "trail", "occurred_at", "source", "event", "action", "outcome", "before"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("faulty fields (-want +got):\n%s", diff)
	}
}

// A reason travels in a header, of which the broker takes 64 KiB.
func TestValidateIsBriefHoweverMuchIsWrong(t *testing.T) {
	t.Parallel()
	e := validEvent()
	e.Attributes = map[string]string{}
	for i := range 900 {
		e.Attributes[fmt.Sprintf("%03d", i)+strings.Repeat("\xff", 280)] = "x"
	}
	err := e.Validate(now)
	if n := len(err.Error()); n > 32<<10 {
		t.Errorf("the sentence has %d bytes", n)
	}
	if !strings.HasSuffix(err.Error(), "; and 869 more") { // 900, the count and 900 too large: 32 of 901
		t.Errorf("it ends in %q", err.Error()[len(err.Error())-40:])
	}
	for range 20 { // a map has no order, the faults have
		if again := e.Validate(now); again.Error() != err.Error() {
			t.Fatalf("the faults differ:\n%v\n%v", err, again)
		}
	}
	long := &schema.Fault{Field: strings.Repeat("\x00", schema.MaxEventBytes), Value: strings.Repeat("é", schema.MaxEventBytes), Problem: "is wrong"}
	if n := len(long.Error()); n > 1024 {
		t.Errorf("one fault has %d bytes", n)
	}
}

func TestValidateAtTheBounds(t *testing.T) {
	t.Parallel()
	for i := range schema.Fields {
		f := &schema.Fields[i]
		if f.MaxBytes == 0 || f.Name == "outcome" {
			continue
		}
		fill := func(n int) string {
			if f.Kind == schema.KindJSON {
				return `"` + strings.Repeat("x", n-2) + `"`
			}
			return strings.Repeat("x", n)
		}
		if f := f.CheckText(fill(f.MaxBytes)); f != nil {
			t.Errorf("at the bound: %v", f)
		}
		if got := f.CheckText(fill(f.MaxBytes + 1)); got == nil || got.Field != f.Name || !strings.Contains(got.Problem, "bytes") {
			t.Errorf("%s one byte beyond %d: %v", f.Name, f.MaxBytes, got)
		}
	}
	good := map[string]func(*schema.Event){
		"as it is":                 func(*schema.Event) {},
		"organization of 64":       func(e *schema.Event) { e.Organization = strings.Repeat("o", 64) },
		"organization of one":      func(e *schema.Event) { e.Organization = "-" },
		"24 hours ahead":           func(e *schema.Event) { e.OccurredAt = now.Add(24 * time.Hour) },
		"1970":                     func(e *schema.Event) { e.OccurredAt = time.Unix(0, 0) },
		"1900":                     func(e *schema.Event) { e.OccurredAt = schema.MinOccurredAt },
		"another zone":             func(e *schema.Event) { e.OccurredAt = now.In(time.FixedZone("JST", 9*3600)) },
		"256 attributes":           func(e *schema.Event) { e.Attributes = attributes(schema.MaxAttributes) },
		"attribute name of 256":    func(e *schema.Event) { e.Attributes[strings.Repeat("k", schema.MaxAttributeKey)] = "" },
		"attribute value of 16384": func(e *schema.Event) { e.Attributes["k"] = strings.Repeat("v", schema.MaxAttributeValue) },
		"no outcome":               func(e *schema.Event) { e.Outcome = "" },
		"controls in a text":       func(e *schema.Event) { e.Description = "\x00\x1f\x7f" },
		"JSON null":                func(e *schema.Event) { e.Data = json.RawMessage("null") },
		"256 KiB in all": func(e *schema.Event) {
			e.Description = strings.Repeat("d", schema.MaxEventBytes-sizeWithoutDescription())
		},
	}
	for name, change := range good {
		e := validEvent()
		change(&e)
		if err := e.Validate(now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := validEvent()
	e.Description = strings.Repeat("d", schema.MaxEventBytes-sizeWithoutDescription()+1)
	if err := e.Validate(now); err == nil {
		t.Error("an event of 256 KiB and a byte is accepted")
	}
}

func sizeWithoutDescription() int {
	e := validEvent()
	n := 0
	for i := range schema.Fields {
		if f := &schema.Fields[i]; (f.Kind == schema.KindText || f.Kind == schema.KindJSON) && f.Name != "description" {
			n += len(f.Text(&e))
		}
	}
	for k, v := range e.Attributes {
		n += len(k) + len(v)
	}
	return n
}

func TestComplete(t *testing.T) {
	t.Parallel()
	e := schema.Event{OccurredAt: time.Date(2026, 11, 22, 13, 5, 6, 123456789, time.FixedZone("JST", 9*3600))}
	e.Complete(time.Now())
	if e.ID.Version() != 7 || e.Outcome != schema.Success {
		t.Errorf("id %s, outcome %q", e.ID, e.Outcome)
	}
	if want := time.Date(2026, 11, 22, 4, 5, 6, 123456000, time.UTC); e.OccurredAt != want {
		t.Errorf("occurred_at %v, want %v", e.OccurredAt, want)
	}
	before := e
	e.Outcome = schema.Denied
	if e.Complete(time.Now()); e.ID != before.ID || e.Outcome != schema.Denied {
		t.Errorf("what is there is replaced: %+v", e)
	}
}

// Where a format has no column recorded_by, the source alone tells a record of the system.
func TestSourcesThatLookLikeTheSystemAreRefused(t *testing.T) {
	t.Parallel()
	for _, source := range []string{
		"kansa", "KANSA", " kansa\t", "kan\u200bsa", "\u2060kansa", "kansa\u00ad", "\u202ekansa", "kansa\ufe0f", "ka\u3164nsa", "k\u0430nsa", "\u043a\u0430nsa", "kan\u0455a",
		"\uff4b\uff41\uff4e\uff53\uff41", "\uff4bansa", "\u212aansa", "kan\u017fa", "\U0001d424\U0001d41a\U0001d427\U0001d42c\U0001d41a", "\u24da\u24d0\u24dd\u24e2\u24d0", "\u00a0kansa\u3000",
	} {
		if schema.CheckReserved("acme", source) == nil {
			t.Errorf("%q is accepted", source)
		}
	}
	for _, source := range []string{"", "k", "kansas", "ansa", "kans", "kansa-app", "my kansa", "監査", "kansa監査", "канса", "reports", "kanso", "\u200b"} {
		if f := schema.CheckReserved("acme", source); f != nil {
			t.Errorf("%q: %v", source, f)
		}
	}
}
