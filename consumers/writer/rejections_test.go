package writer

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers"
)

// An organization whose messages are all rejected has one line a minute, with the count, and
// another one's first line is not delayed.
func TestRejectionsAreLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	r := rejections{now: func() time.Time { return now }}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	letter := func(organization string, n int) []consumers.DeadLetter {
		return []consumers.DeadLetter{{Reason: fmt.Errorf("reason %d", n), Subject: "audit.events." + organization + ".activity"}, {Reason: errors.New("other")}}
	}
	for i := range 600 { // ten minutes
		r.note(letter("acme", i), log)
		if i == 90 {
			r.note(letter("globex", i), log)
		}
		r.flush(false, log)
		now = now.Add(time.Second)
	}
	r.flush(true, log)
	text := out.String()
	if n := strings.Count(text, "organization=acme"); n < 10 || n > 12 {
		t.Errorf("%d lines of acme in ten minutes:\n%s", n, text)
	}
	if strings.Count(text, "organization=globex") != 1 || !strings.Contains(text, `organization=globex count=2 subject=audit.events.globex.activity`) {
		t.Errorf("globex:\n%s", text)
	}
	counted := 0
	for line := range strings.Lines(text) {
		var n int
		if _, after, ok := strings.Cut(line, "organization=acme count="); ok {
			if _, err := fmt.Sscanf(after, "%d", &n); err != nil {
				t.Fatal(err)
			}
			counted += n
		}
	}
	if counted != 1200 || !strings.Contains(text, "last_reason=\"reason 599\"") {
		t.Errorf("%d events are counted, want 1200:\n%s", counted, text)
	}
	for i := range 2 * mostRejecting {
		r.note(letter(fmt.Sprint("o", i), 1), log)
	}
	if len(r.of) > mostRejecting+1 {
		t.Errorf("%d organizations are counted apart", len(r.of))
	}
}
