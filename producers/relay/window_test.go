package relay

import (
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// One credential can have so much on its way, by number and by size; acknowledgements make room, and so does time.
func TestUnacknowledgedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	w, now := newWindow(), time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	var tokens []string
	for range mostUnacked {
		token, ok := w.take("acme", "a", 10, now)
		if !ok {
			t.Fatalf("refused after %d", len(tokens))
		}
		tokens = append(tokens, token)
	}
	if _, ok := w.take("acme", "a", 10, now); ok {
		t.Error("one too many was taken")
	}
	if _, ok := w.take("acme", "b", mostUnackedBytes+1, now); !ok {
		t.Error("another credential's first message was refused")
	}
	if _, ok := w.take("acme", "b", 1, now); ok {
		t.Error("more bytes than the bound were taken")
	}
	for _, token := range []string{tokens[0], tokens[0], "nonsense!", "zzz"} { // once, and what is not on its way
		w.give(token)
	}
	if _, ok := w.take("acme", "a", 10, now); !ok {
		t.Error("an acknowledgement made no room")
	}
	if _, ok := w.take("acme", "a", 10, now); ok {
		t.Error("one acknowledgement made room for two")
	}
	now = now.Add(forgotten + 2*time.Second)
	if _, ok := w.take("acme", "a", 10, now); !ok {
		t.Error("acknowledgements that never came hold the room")
	}
	if len(w.sent) != 1 || len(w.of) != 1 {
		t.Errorf("%d messages of %d credentials are remembered, want 1 of 1", len(w.sent), len(w.of))
	}
}

// Only so many bytes of one organization are at the stream. Its other messages wait in their order, and delay no other
// organization.
func TestOrganizationsWaitForThemselves(t *testing.T) {
	t.Parallel()
	w, now := newWindow(), time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	send := func(organization, credential, name string, bytes int) (string, []string) {
		t.Helper()
		token, ok := w.take(organization, credential, bytes, now)
		if !ok {
			t.Fatalf("%s was refused", name)
		}
		return token, names(w.forward(token, &nats.Msg{Subject: name}))
	}
	want := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v are forwarded, want %v", what, got, want)
		}
	}
	first, got := send("loud", "a", "1", mostAtStream-10)
	want("the first", got, "1")
	_, got = send("loud", "b", "2", 20)
	want("beyond the bound", got)
	third, got := send("loud", "a", "3", 5)
	want("behind one that waits", got)
	_, got = send("quiet", "c", "4", 2*mostAtStream)
	want("another organization's, however large", got, "4")
	want("acknowledged while it waits", names(w.give(third)))
	_, got = send("loud", "a", "5", 5)
	want("behind two", got)
	want("acknowledged", names(w.give(first)), "2", "5")
	_, got = send("quiet", "c", "6", 1)
	want("while the large one is at the stream", got)
	now = now.Add(overdue + 2*time.Second)
	_, got = send("quiet", "c", "7", 1)
	want("after acknowledgements that are overdue", got, "6", "7")
	now = now.Add(forgotten + 2*time.Second)
	send("quiet", "c", "8", 1)
	if len(w.sent) != 1 || len(w.at) != 1 {
		t.Errorf("%d messages of %d organizations are remembered, want 1 of 1", len(w.sent), len(w.at))
	}
}

func names(messages []*nats.Msg) (all []string) {
	for _, m := range messages {
		all = append(all, m.Subject)
	}
	return all
}
