package pipeline_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

func line(n int, change ...string) string {
	l := fmt.Sprintf(`{"occurred_at":"2026-11-22T04:05:06.789Z","organization":"acme","trail":"activity","source":"test","event":"thing.done","action":"do","description":"%d"}`, n)
	return strings.NewReplacer(change...).Replace(l)
}

// Bad input stops nobody: each bad event is counted and in DEADLETTER with its bytes and its reason, all
// else is stored (design, section 4).
func TestBadInputIsDeadLettered(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	noise := make([]byte, 5000)
	r := rand.New(rand.NewPCG(7, 7))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	long := line(3, `"description":"3"`, `"description":"`+strings.Repeat("x", 1<<20)+`"`)
	cases := []struct {
		name, subject, contentType string
		body                       []byte
		good                       uint64 // neighbours that are stored
		bad                        []byte // nil: the whole body
		reason                     string
		index                      string
	}{
		{"malformed JSON", "audit.events.acme.activity", codec.ContentJSON, []byte(`{"occurred_at": nonsense`), 0, []byte(`{"occurred_at": nonsense`), "not JSON at byte", "0"},
		{"among good ones", "audit.events.acme.activity", codec.ContentNDJSON, []byte(line(1) + "\n{]\n" + line(2) + "\n"), 2, []byte("{]"), "not JSON at byte 2", "1"},
		{"a line of 1 MB", "audit.events.acme.activity", codec.ContentNDJSON, []byte(line(4) + "\n" + long + "\n" + line(5)), 2, []byte(long), "keep an event under 262144 bytes", "1"},
		{"invalid UTF-8", "audit.events.acme.activity", codec.ContentJSON, []byte(line(6, "test", "te\xffst")), 0, []byte(line(6, "test", "te\xffst")), "not valid UTF-8", "0"},
		{"a missing field", "audit.events.acme.activity", codec.ContentJSON, []byte("[" + line(7) + "," + line(8, `"action":"do",`, "") + "]"), 1, []byte(line(8, `"action":"do",`, "")), "action is missing", "1"},
		{"another organization", "audit.events.globex.activity", codec.ContentJSON, []byte(line(9)), 0, nil, `organization "acme" disagrees with the subject, which says "globex"`, "0"},
		{"another trail", "audit.events.acme.access", codec.ContentJSON, []byte(line(10)), 0, nil, `trail "activity" disagrees`, "0"},
		{"no such trail", "audit.events.acme.nonsense", codec.ContentJSON, []byte(line(11)), 0, nil, `trail "nonsense" is no trail`, ""},
		{"a bad organization", "audit.events.a$b.activity", codec.ContentJSON, []byte(line(12)), 0, nil, `organization "a$b" is no name`, ""},
		{"random bytes as a block", "audit.events.acme.activity", codec.ContentBlock, noise, 0, nil, "malformed message", ""},
		{"random bytes as zstd", "audit.events.acme.activity", "zstd", noise, 0, nil, "decompress", ""},
		{"unknown content", "audit.events.acme.activity", "text/plain", []byte("hello"), 0, nil, `content type "text/plain" is not known`, ""},
		{"the far future", "audit.events.acme.activity", codec.ContentJSON, []byte(line(13, "2026-11-22", time.Now().AddDate(0, 0, 3).Format(time.DateOnly))), 0, nil, "more than 24 hours in the future", "0"},
	}
	good, expect := uint64(0), map[string]int{}
	for i, c := range cases {
		msg := nats.NewMsg(c.subject)
		msg.Data = c.body
		msg.Header.Set(schema.HeaderContentType, c.contentType)
		if c.contentType == "zstd" {
			msg.Header.Set(schema.HeaderContentType, codec.ContentBlock)
			msg.Header.Set(schema.HeaderContentEncoding, codec.EncodingZstd)
		}
		ack, err := s.Client.JS.PublishMsg(t.Context(), msg)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		good += c.good
		expect[fmt.Sprint(ack.Sequence)] = i
	}
	pipelinetest.UntilStored(t, s.Store, good, 30*time.Second)
	pipelinetest.Until(t, 30*time.Second, func() (bool, any) {
		n, err := deadletter.Count(t.Context(), s.Client.JS)
		return n == uint64(len(cases)) && err == nil, []any{n, err}
	})
	err := deadletter.Each(t.Context(), s.Client.JS, "", func(l deadletter.Letter) bool {
		c := cases[expect[fmt.Sprint(l.StreamSeq)]]
		delete(expect, fmt.Sprint(l.StreamSeq))
		want := c.bad
		if want == nil {
			want = c.body
		}
		index := ""
		if l.BatchIndex != nil {
			index = fmt.Sprint(*l.BatchIndex)
		}
		if !bytes.Equal(l.Data, want) || !strings.Contains(l.Reason, c.reason) || index != c.index || l.Subject != c.subject {
			t.Errorf("%s: subject %s, index %q, reason %q, %d bytes; want %s, %q, %q, %d bytes", c.name, l.Subject, index, l.Reason, len(l.Data),
				c.subject, c.index, c.reason, len(want))
		}
		return true
	})
	if err != nil || len(expect) > 0 {
		t.Errorf("%v; no letter for %v", err, expect)
	}
	if got := s.Writer.Stats().Rejected; got != uint64(len(cases)) {
		t.Errorf("%d rejections counted, want %d", got, len(cases))
	}
}

// A letter that is mended and replayed is stored, and is a letter no more.
func TestDeadLetterIsReplayed(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	bad := line(1, `"action":"do"`, `"action":"DO"`)
	if _, err := s.Client.JS.Publish(t.Context(), "audit.events.acme.activity", []byte(bad)); err != nil {
		t.Fatal(err)
	}
	var letter deadletter.Letter
	pipelinetest.Until(t, 30*time.Second, func() (bool, any) {
		found := false
		err := deadletter.Each(t.Context(), s.Client.JS, "acme", func(l deadletter.Letter) bool { letter, found = l, true; return false })
		return found, err
	})
	if err := deadletter.Replay(t.Context(), s.Client.JS, letter, []byte(line(1))); err != nil {
		t.Fatal(err)
	}
	pipelinetest.UntilStored(t, s.Store, 1, 30*time.Second)
	if n, err := deadletter.Count(t.Context(), s.Client.JS); n != 0 || err != nil {
		t.Errorf("%d letters, %v; want none", n, err)
	}
}
