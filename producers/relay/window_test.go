package relay

import (
	"testing"
	"time"
)

// One credential can have so much on its way, by number and by size; acknowledgements make room, and so does time.
func TestUnacknowledgedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	w, now := newWindow(), time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	var tokens []string
	for range mostUnacked {
		token, ok := w.take("a", 10, now)
		if !ok {
			t.Fatalf("refused after %d", len(tokens))
		}
		tokens = append(tokens, token)
	}
	if _, ok := w.take("a", 10, now); ok {
		t.Error("one too many was taken")
	}
	if _, ok := w.take("b", mostUnackedBytes+1, now); !ok {
		t.Error("another credential's first message was refused")
	}
	if _, ok := w.take("b", 1, now); ok {
		t.Error("more bytes than the bound were taken")
	}
	for _, token := range []string{tokens[0], tokens[0], "nonsense!", "zzz"} { // once, and what is not on its way
		w.give(token)
	}
	if _, ok := w.take("a", 10, now); !ok {
		t.Error("an acknowledgement made no room")
	}
	if _, ok := w.take("a", 10, now); ok {
		t.Error("one acknowledgement made room for two")
	}
	now = now.Add(forgotten + 2*time.Second)
	if _, ok := w.take("a", 10, now); !ok {
		t.Error("acknowledgements that never came hold the room")
	}
	if len(w.sent) != 1 || len(w.of) != 1 {
		t.Errorf("%d messages of %d credentials are remembered, want 1 of 1", len(w.sent), len(w.of))
	}
}
