package deadletter

import (
	"strings"
	"testing"
)

// Reasons that differ in values are of one kind; what always says the same stays.
func TestKind(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{
		`occurred_at "yes\"ter" is no time: use RFC 3339: 2026-11-22T04:05:06.789Z`: `occurred_at "…" is no time: use RFC 3339: 2026-11-22T04:05:06.789Z`,
		"the event is not JSON at byte 24: '<': give a JSON object":                 "the event is not JSON at byte …: '<': give a JSON object",
		"the event is not valid UTF-8: encode it as UTF-8":                          "the event is not valid UTF-8: encode it as UTF-8",
		strings.Repeat("監", 100):                                                    strings.Repeat("監", 53) + "…",
		"":                                                                          "",
	} {
		if got := Kind(reason); got != want {
			t.Errorf("%q: %q, want %q", reason, got, want)
		}
	}
	l := Letter{Reason: `action "DO" contains upper case: write do`}
	for reason, want := range map[string]bool{"": true, Kind(l.Reason): true, "upper case": true, "lower case": false} {
		if l.Like(reason) != want {
			t.Errorf("like %q: %t", reason, !want)
		}
	}
}
