package pipeline_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

func line(n int, change ...string) string {
	l := fmt.Sprintf(`{"occurred_at":"2026-11-22T04:05:06.789Z","organization":"acme","trail":"activity","source":"test","event":"thing.done","action":"do","description":"%d"}`, n)
	return strings.NewReplacer(change...).Replace(l)
}

// inSlotOf tells whether a subject is another one with a slot behind it, which the stream adds.
func inSlotOf(subject, of string) bool {
	slot, ok := strings.CutPrefix(subject, of+".")
	_, err := strconv.Atoi(slot)
	return ok && err == nil
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
	pipelinetest.UntilStored(t, s.Store, good, time.Minute)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
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
		if !bytes.Equal(l.Data, want) || !strings.Contains(l.Reason, c.reason) || index != c.index || !inSlotOf(l.Subject, c.subject) {
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
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		found := false
		err := deadletter.Each(t.Context(), s.Client.JS, "acme", func(l deadletter.Letter) bool { letter, found = l, true; return false })
		return found, err
	})
	if _, err := deadletter.Replay(t.Context(), s.Client.JS, letter, deadletter.Change{Data: []byte(line(1))}, "test"); err != nil {
		t.Fatal(err)
	}
	pipelinetest.UntilStored(t, s.Store, 1, time.Minute)
	if n, err := deadletter.Count(t.Context(), s.Client.JS); n != 0 || err != nil {
		t.Errorf("%d letters, %v; want none", n, err)
	}
}

// Admins look at what could not be stored, and have it tried again: one mended, the others by their reason; nobody sees
// another organization's, and each replay is an event.
func TestDeadLettersByTheAPI(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	type letter struct {
		Seq                uint64
		Organization, Kind string
		Bytes              int
		Data               []byte
		Text, Cut          bool
	}
	type page struct {
		Letters []letter
		Next    uint64
	}
	bad := func(n int) string { return line(n, `"action":"do"`, `"action":"DO"`) }
	for n := range 5 {
		if _, err := s.Client.JS.Publish(t.Context(), "audit.events.acme.activity", []byte(bad(n))); err != nil {
			t.Fatal(err)
		}
	}
	noise := append([]byte("<script>\x00\xff"), bytes.Repeat([]byte{0xfe}, 100<<10)...)
	if _, err := s.Client.JS.Publish(t.Context(), "audit.events.globex.activity", noise); err != nil {
		t.Fatal(err)
	}
	operator, acme := newClient(t, s, "operator", "", access.Admin), newClient(t, s, "acme-admin", "acme", access.Admin)
	var all page
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		operator.json(t, "/api/v1/deadletters", &all)
		return len(all.Letters) == 6, all
	})
	var census deadletter.Census
	operator.json(t, "/api/v1/deadletters/causes", &census)
	if len(census.Causes) != 2 || census.Causes[0].Letters != 5 || census.Looked != 6 || census.More {
		t.Errorf("causes: %+v", census)
	}
	kind := census.Causes[0].Kind
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		res, err := http.Get(s.Health.URL() + "/metrics")
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return strings.Contains(string(text), fmt.Sprintf("kansa_dead_letters_by_reason{reason=%q} 5", kind)) &&
			strings.Contains(string(text), `kansa_dead_letters_dropped_total{bound="size"} 0`), []any{string(text), err}
	})
	var first, rest page
	acme.json(t, "/api/v1/deadletters?limit=2", &first)
	acme.json(t, fmt.Sprintf("/api/v1/deadletters?from=%d&reason=%s", first.Next, url.QueryEscape(kind)), &rest)
	if len(first.Letters) != 2 || len(rest.Letters) != 3 || rest.Next != 0 || first.Letters[0].Kind != kind || first.Letters[0].Data != nil || first.Letters[0].Bytes != len(bad(0)) {
		t.Errorf("pages: %+v, %+v", first, rest)
	}
	var foreign letter
	for _, l := range all.Letters {
		if l.Organization == "globex" {
			foreign = l
		}
	}
	var shown letter
	operator.json(t, fmt.Sprintf("/api/v1/deadletters/%d", foreign.Seq), &shown)
	if !shown.Cut || shown.Text || shown.Bytes != len(noise) || !bytes.Equal(shown.Data, noise[:64<<10]) {
		t.Errorf("shown: %d bytes of %d, %t, %t", len(shown.Data), shown.Bytes, shown.Cut, shown.Text)
	}
	res, data := operator.do(t, http.MethodGet, fmt.Sprintf("/api/v1/deadletters/%d/data", foreign.Seq), "")
	if !bytes.Equal(data, noise) || res.Header.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(res.Header.Get("Content-Disposition"), "attachment") {
		t.Errorf("%d bytes, %v", len(data), res.Header)
	}

	acme.get(t, http.StatusForbidden, "/api/v1/deadletters?organization=globex")
	acme.get(t, http.StatusNotFound, fmt.Sprintf("/api/v1/deadletters/%d", foreign.Seq))
	auditor := newClient(t, s, "auditor", "acme", access.Auditor)
	auditor.get(t, http.StatusForbidden, "/api/v1/deadletters")
	auditor.get(t, http.StatusForbidden, fmt.Sprintf("/api/v1/deadletters/%d", first.Letters[0].Seq))
	post := func(c client, want int, path, body string) {
		t.Helper()
		if res, data := c.do(t, http.MethodPost, path, body); res.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, res.StatusCode, data, want)
		}
	}
	one := fmt.Sprintf("/api/v1/deadletters/%d/replay", first.Letters[0].Seq)
	post(auditor, http.StatusForbidden, one, "")
	post(acme, http.StatusNotFound, fmt.Sprintf("/api/v1/deadletters/%d/replay", foreign.Seq), "")
	post(acme, http.StatusForbidden, "/api/v1/deadletters/replay", `{"organization":"globex","reason":"x"}`)

	// One is mended; the others come back as they were, four new letters.
	post(acme, http.StatusOK, one, `{"data":"`+base64.StdEncoding.EncodeToString([]byte(line(7)))+`"}`)
	post(acme, http.StatusNotFound, one, "")
	pipelinetest.UntilStored(t, s.Store, 1, time.Minute)
	last := all.Letters[len(all.Letters)-1].Seq
	var outcome struct {
		Replayed int
		CameBack int `json:"came_back"`
		Causes   []deadletter.Cause
	}
	res, data = acme.do(t, http.MethodPost, "/api/v1/deadletters/replay", `{"reason":`+strconv.Quote(kind)+`}`)
	if err := json.Unmarshal(data, &outcome); err != nil || res.StatusCode != http.StatusOK || outcome.Replayed != 4 || outcome.CameBack != 4 || len(outcome.Causes) != 1 || outcome.Causes[0].Kind != kind {
		t.Errorf("%d %s: %v", res.StatusCode, data, err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var again page
		acme.json(t, "/api/v1/deadletters", &again)
		back := 0
		for _, l := range again.Letters {
			if l.Seq > last {
				back++
			}
		}
		return back == 4 && len(again.Letters) == 4, again
	})
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var told struct{ Events []schema.Event }
		acme.json(t, "/api/v1/audit/events?event=deadletter.replayed&trail=activity", &told)
		return len(told.Events) == 5 && told.Events[0].Source == owntrail.Source && told.Events[0].Actor.ID == "acme-admin", told
	})

	// All of them are corrected at once; one that would go to another organization is refused.
	post(acme, http.StatusOK, "/api/v1/deadletters/replay", `{"reason":`+strconv.Quote(kind)+`,"to_organization":"globex"}`)
	acme.json(t, "/api/v1/deadletters", &rest)
	if len(rest.Letters) != 4 {
		t.Fatalf("%d letters are left after a replay to another organization, want 4", len(rest.Letters))
	}
	post(acme, http.StatusUnprocessableEntity, fmt.Sprintf("/api/v1/deadletters/%d/replay", rest.Letters[0].Seq), `{"data":"`+base64.StdEncoding.EncodeToString([]byte(line(7, "acme", "globex")))+`"}`)
	post(acme, http.StatusOK, "/api/v1/deadletters/replay", `{"reason":`+strconv.Quote(kind)+`,"set":{"action":"do"}}`)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var stored struct{ Events []schema.Event }
		acme.json(t, "/api/v1/audit/events?event=thing.done&trail=activity", &stored)
		return len(stored.Events) == 5, stored
	})
	post(acme, http.StatusNotFound, fmt.Sprintf("/api/v1/deadletters/%d/discard", foreign.Seq), `{"why":"not mine"}`)
	post(auditor, http.StatusForbidden, "/api/v1/deadletters/discard", `{"reason":"x","why":"y"}`)
	post(operator, http.StatusUnprocessableEntity, fmt.Sprintf("/api/v1/deadletters/%d/discard", foreign.Seq), `{"why":""}`)
	post(operator, http.StatusOK, fmt.Sprintf("/api/v1/deadletters/%d/discard", foreign.Seq), `{"why":"noise of a scanner"}`)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var told struct{ Events []schema.Event }
		operator.json(t, "/api/v1/audit/events?event=deadletter.discarded&trail=activity&organization=globex", &told)
		sum := sha256.Sum256(noise)
		return len(told.Events) == 1 && told.Events[0].Actor.ID == "operator" && told.Events[0].Attributes["why"] == "noise of a scanner" &&
			told.Events[0].Attributes["sha256"] == hex.EncodeToString(sum[:]), told
	})
	if n, err := deadletter.Count(t.Context(), s.Client.JS); n != 0 || err != nil {
		t.Errorf("%d letters are left, %v", n, err)
	}
}
