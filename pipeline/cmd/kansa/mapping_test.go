package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/producers/mapping"
)

func TestMappingList(t *testing.T) {
	code, out, _ := kansa(t, "", "mapping", "list")
	for _, name := range mapping.Builtin() {
		if code != 0 || !strings.Contains(out, "\n"+name+" ") {
			t.Errorf("%d: %s is not listed:\n%s", code, name, out)
		}
	}
}

// A built-in mapping that is printed works as a file.
func TestMappingShowGivesAMappingFile(t *testing.T) {
	for _, name := range mapping.Builtin() {
		code, text, stderr := kansa(t, "", "mapping", "show", name)
		if code != 0 {
			t.Fatal(stderr)
		}
		if _, err := mapping.Parse(name, []byte(text)); err != nil {
			t.Error(err)
		}
	}
	if code, _, stderr := kansa(t, "", "mapping", "show", "nothing"); code == 0 || !strings.Contains(stderr, `"nothing" is not built in: use auditd, cloudtrail`) {
		t.Errorf("%d %s", code, stderr)
	}
}

func TestMappingTestShowsRecordsNextToEvents(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mine.yaml")
	text := `
input: {each: items, skip: [{kind: '^ping$'}]}
fields:
  occurred_at: t
  organization: {const: acme}
  trail: {const: activity}
  source: {const: shop}
  event: {template: 'order.${kind}'}
  action: {const: update}
  outcome: {path: status, lookup: {ok: success, bad: failure}}
  target.id: '@item.id'
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	input := `{"t":"2026-11-22T04:05:06Z","kind":"shipped","status":"ok","items":[{"id":1,"price":9.90},{"id":2}],"rest":{"a":null}}
{"kind":"ping"}
{"t":"2026-11-22T04:05:07Z","kind":"shipped","status":"new"}
`
	code, out, _ := kansa(t, input, "mapping", "test", file, "--input", "-")
	for _, want := range []string{
		`line 1: {"t":"2026-11-22T04:05:06Z"`, "event 1 of 2", "event order.shipped", "target.id 2", "- items.0.price 9.90", "- rest.a null",
		"line 2: {\"kind\":\"ping\"} skipped by the mapping", "line 3: ", "refused: outcome has no value",
		"3 records: 2 events (2 success), 1 refused, 1 skipped",
	} {
		if code != 1 || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("%d: no %q in\n%s", code, want, out)
		}
	}
	code, out, stderr := kansa(t, input, "mapping", "test", file, "--input", "-", "--json", "--limit", "1")
	var record mappedRecord
	if err := json.Unmarshal([]byte(out), &record); err != nil || code != 1 || record.Number != 1 || len(record.Events) != 2 || string(record.Unmapped["items.0.price"]) != "9.90" {
		t.Errorf("%d, %v: %s", code, err, out)
	}
	if !strings.Contains(stderr, "… and 2 more records") {
		t.Errorf("%s", stderr)
	}
}
