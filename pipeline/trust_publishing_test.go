package pipeline_test

// Publishers as attackers: each test plays one, against a running system, and fails without the defence that it is about.

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// shown is an event as the API shows it.
type shown struct {
	schema.Event
	RecordedBy string `json:"recorded_by"`
}

func (c client) events(t *testing.T, query string) []shown {
	t.Helper()
	var page struct{ Events []shown }
	c.json(t, "/api/v1/audit/events?limit=500&"+query, &page)
	return page.Events
}

func eventOf(organization, source string) string {
	return fmt.Sprintf(`{"id":%q,"occurred_at":"2026-11-22T04:05:06Z","organization":%q,"trail":"activity","source":%q,"event":"signin.allowed","action":"signin"}`,
		uuid.New(), organization, source)
}

// pubAck is what the broker, or the relay, answers to a message.
type pubAck struct {
	Seq       uint64
	Duplicate bool
	Error     *struct {
		Code        int
		Description string
	}
}

func (a *natsApp) request(t *testing.T, m *nats.Msg) pubAck {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := a.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		t.Fatalf("publish on %s: %v", m.Subject, err)
	}
	var ack pubAck
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		t.Fatalf("publish on %s: answered %q", m.Subject, answer.Data)
	}
	return ack
}

func message(subject, contentType, body string, header ...string) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: []byte(body), Header: nats.Header{schema.HeaderContentType: {contentType}}}
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	return m
}

// Row 7: nothing is published without a key, on loopback and through a proxy that names no client.
func TestNothingIsPublishedWithoutKey(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	upstream, err := url.Parse(s.API.URL())
	if err != nil {
		t.Fatal(err)
	}
	bare := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(upstream) }}) // adds no header
	t.Cleanup(bare.Close)
	for _, base := range []string{s.API.URL(), bare.URL} {
		res, err := http.Post(base+"/api/v1/events", codec.ContentJSON, strings.NewReader(eventOf("acme", "reports")))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", base, res.StatusCode)
		}
	}
	if nc, err := nats.Connect(s.NATSURL()); err == nil {
		nc.Close()
		t.Error("NATS: a client without a key was let in")
	}
}

// gateway.anonymous opens publishing to this machine, and nothing else: neither reading, nor settings, nor the names of the system.
func TestAnonymousProgramsOnlyPublish(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Gateway.Anonymous = "loopback"
	s := pipelinetest.Start(t, c)
	if res, text := (client{s, ""}).do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "reports")); res.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	app := logIn(t, s.NATSURL())
	if ack := app.request(t, message("audit.events.acme.activity", codec.ContentJSON, eventOf("acme", "reports"))); ack.Error != nil {
		t.Fatalf("%+v", ack.Error)
	}
	for _, subject := range []string{"kansa.trails.switch", "kansa.organization.save", "kansa.export.ask", "$JS.API.STREAM.DELETE.AUDIT", "$KV.kansa_settings.x", "audit.deadletter.acme", "audit.events.kansa.access"} {
		if err := app.nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		app.untilRefused(t, "publish on "+subject)
	}
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	reader.untilRead(t, "/api/v1/audit/events?source=reports", 2)
	for _, e := range reader.events(t, "source=reports") {
		if e.RecordedBy != schema.RecordedByAnonymous {
			t.Errorf("recorded by %q", e.RecordedBy)
		}
	}
}

// Row 6: two organizations may use the same message ids. The same organization's second message with an id is a duplicate.
func TestMessageIdsOfOrganizationsDoNotCollide(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	for _, c := range []struct {
		organization string
		duplicate    bool
	}{{"acme", false}, {"globex", false}, {"acme", true}} {
		name := fmt.Sprint(c.organization, "-", c.duplicate)
		app := logIn(t, s.NATSURL(), nats.Token(newClient(t, s, name, c.organization, access.Publisher).key))
		ack := app.request(t, message("audit.events."+c.organization+".activity", codec.ContentJSON, eventOf(c.organization, "orders"), nats.MsgIdHdr, "order-17"))
		if ack.Error != nil || ack.Duplicate != c.duplicate {
			t.Errorf("%+v: %+v", c, ack)
		}
	}
	for _, organization := range []string{"acme", "globex"} {
		newClient(t, s, "reader-"+organization, organization, access.Auditor).untilRead(t, "/api/v1/audit/events?source=orders", 1)
	}
}

// Row 8: no publisher can create what looks like a record of the system, at any entry point and in any encoding, and every event says
// which credential published it.
func TestPublishersCannotForgeSystemRecords(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	tenant, all := newClient(t, s, "billing", "acme", access.Publisher), newClient(t, s, "all-apps", "", access.Publisher)
	app, everywhere := logIn(t, s.NATSURL(), nats.Token(tenant.key)), logIn(t, s.NATSURL(), nats.Token(all.key))
	block := func(organization, source string) string {
		var e schema.Event
		if err := json.Unmarshal([]byte(eventOf(organization, source)), &e); err != nil {
			t.Fatal(err)
		}
		b := codec.NewBlock()
		b.Append(&e)
		return string(b.AppendNative(nil))
	}
	cloudEvent := `{"specversion":"1.0","id":"1","source":"kansa","type":"signin.allowed","time":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity"}`

	// Over HTTP it is refused at once.
	for name, c := range map[string]struct {
		who                      client
		query, contentType, body string
	}{
		"JSON":           {tenant, "", codec.ContentJSON, eventOf("acme", "kansa")},
		"upper case":     {tenant, "", codec.ContentJSON, eventOf("acme", " KANSA ")},
		"NDJSON":         {tenant, "", codec.ContentNDJSON, eventOf("acme", "kansa") + "\n"},
		"block":          {tenant, "?organization=acme&trail=activity", codec.ContentBlock, block("acme", "kansa")},
		"CloudEvent":     {tenant, "", "application/cloudevents+json", cloudEvent},
		"organization":   {all, "", codec.ContentJSON, eventOf("kansa", "reports")},
		"Organization":   {all, "", codec.ContentJSON, eventOf("Kansa", "reports")},
		"its own column": {tenant, "", codec.ContentJSON, strings.Replace(eventOf("acme", "reports"), "{", `{"recorded_by":"kansa",`, 1)},
	} {
		if res, text := c.who.do(t, http.MethodPost, "/api/v1/events"+c.query, c.body, "Content-Type", c.contentType); res.StatusCode != http.StatusUnprocessableEntity && res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, res.StatusCode, text)
		}
	}
	// The SDK refuses it, too.
	p, err := producers.New(app.js, producers.Config{RecordedBy: "forged"})
	if err != nil {
		t.Fatal(err)
	}
	forged := qlik(1)
	forged.Source = "kansa"
	if err := p.Publish(t.Context(), forged); err == nil || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("SDK: %v", err)
	}
	// The name that an application gives itself does not count.
	honest := qlik(2)
	honest.Source = "honest"
	if err := p.Publish(t.Context(), honest); err != nil {
		t.Errorf("SDK: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	// Over NATS it is a dead letter with any headers.
	forgeries := 0
	for _, header := range [][]string{nil, {schema.HeaderRecordedBy, schema.RecordedBySystem}, {"Nats-Request-Info", `{"acc":"$G","user":"kansa"}`}, {schema.HeaderMark, "1"}} {
		for _, m := range []*nats.Msg{
			message("audit.events.acme.activity", codec.ContentJSON, eventOf("acme", "kansa"), header...),
			message("audit.events.acme.activity", codec.ContentBlock, block("acme", "kansa"), header...),
		} {
			forgeries++
			if ack := app.request(t, m); ack.Error != nil {
				t.Errorf("%v: %+v", m.Header, ack.Error)
			}
		}
		if ack := everywhere.request(t, message("audit.events.KANSA.activity", codec.ContentJSON, eventOf("KANSA", "reports"), header...)); ack.Error == nil || !strings.Contains(ack.Error.Description, "reserved") {
			t.Errorf("organization KANSA: %+v", ack)
		}
	}
	operator := newClient(t, s, "console", "", access.Admin)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var letters struct {
			Letters []struct{ Reason, RecordedBy string }
		}
		operator.json(t, "/api/v1/deadletters?organization=acme", &letters)
		return len(letters.Letters) == forgeries, letters
	})
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	if res, text := tenant.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "over-http")); res.StatusCode != http.StatusAccepted {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	reader.untilRead(t, "/api/v1/audit/events?source=over-http", 1)
	reader.untilRead(t, "/api/v1/audit/events?source=honest", 1)
	for _, e := range reader.events(t, "") {
		want := "key:billing"
		if e.Source == "kansa" {
			want = schema.RecordedBySystem
		}
		if e.RecordedBy != want || e.Event.Event == "signin.allowed" && e.Source == "kansa" && e.Actor.ID == "" {
			t.Errorf("%s of %s is recorded by %q, want %q", e.Event.Event, e.Source, e.RecordedBy, want)
		}
	}
	// No key can be made for the system's own organization.
	if _, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "system", Organization: "kansa", Role: access.Publisher, Expires: time.Now().Add(time.Hour)}); err == nil {
		t.Error("a key of a publisher for organization kansa was made")
	}
}

// Row 19: one publisher cannot use up what others need, and each learns when to go on.
func TestPublishersHaveFairShares(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Limits.KeyBytesPerSecond, c.Limits.OrganizationBytesPerSecond, c.Limits.NewOrganizationsPerDay = 10_000, 15_000, 3
	s := pipelinetest.Start(t, c)
	greedy, second, other := newClient(t, s, "greedy", "acme", access.Publisher), newClient(t, s, "second", "acme", access.Publisher), newClient(t, s, "other", "globex", access.Publisher)
	large := strings.Replace(eventOf("acme", "greedy"), "{", `{"description":"`+strings.Repeat("x", 50_000)+`",`, 1)
	if res, text := greedy.do(t, http.MethodPost, "/api/v1/events", large); res.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	res, text := greedy.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "greedy"))
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("beyond its share: %d %s", res.StatusCode, text)
	}
	if ack := logIn(t, s.NATSURL(), nats.Token(greedy.key)).request(t, message("audit.events.acme.activity", codec.ContentJSON, eventOf("acme", "greedy"))); ack.Error == nil || ack.Error.Code != http.StatusTooManyRequests {
		t.Errorf("over NATS: %+v", ack)
	}
	if res, text := second.do(t, http.MethodPost, "/api/v1/events", strings.ReplaceAll(large, "greedy", "second")); res.StatusCode != http.StatusAccepted {
		t.Errorf("another key of the organization: %d %s", res.StatusCode, text)
	}
	if res, text := other.do(t, http.MethodPost, "/api/v1/events", eventOf("globex", "other")); res.StatusCode != http.StatusAccepted {
		t.Errorf("another organization: %d %s", res.StatusCode, text)
	}
	// New organizations of one key.
	var lines strings.Builder
	for n := range 20 {
		lines.WriteString(eventOf(fmt.Sprintf("new-%d", n), "new") + "\n")
	}
	var answer struct {
		Accepted, Rejected int
	}
	res, text = newClient(t, s, "all-apps", "", access.Publisher).do(t, http.MethodPost, "/api/v1/events", lines.String(), "Content-Type", codec.ContentNDJSON)
	if err := json.Unmarshal(text, &answer); err != nil || res.StatusCode != http.StatusMultiStatus || answer.Accepted != 3 || answer.Rejected != 17 || !strings.Contains(string(text), "new_organizations_per_day") {
		t.Errorf("new organizations: %d %.500s", res.StatusCode, text)
	}
	if res.Header.Get("Retry-After") == "" || !strings.Contains(string(text), `"status":429`) {
		t.Errorf("new organizations: Retry-After %q, %.500s", res.Header.Get("Retry-After"), text)
	}
	// The organization's share is used up by now: a key with a share left gets a 429 too, not a permanent refusal.
	third := newClient(t, s, "third", "acme", access.Publisher)
	res, text = third.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "third"))
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("an organization beyond its share: %d %s", res.StatusCode, text)
	}
}

// Events beyond the prompt share of an organization, over HTTP and NATS, wait in the bulk lane, and delay neither the events nor the live tails of others.
func TestBacklogOfOneOrganizationDelaysNoOther(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Limits.PromptBytesPerSecond = 1 << 10 // one message at once, and another after 8 seconds
	s := pipelinetest.Start(t, c)
	loud, quiet := newClient(t, s, "loud", "acme", access.Publisher), newClient(t, s, "quiet", "globex", access.Publisher)
	readers := map[string]client{"acme": newClient(t, s, "reader-a", "acme", access.Auditor), "globex": newClient(t, s, "reader-g", "globex", access.Auditor)}
	const path = "/api/v1/audit/events?trail=activity"
	// While its consumer is paused, the bulk lane is a backlog that does not end.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Client.JS.PauseConsumer(ctx, broker.StreamAudit, broker.ConsumerBulkWriter, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	app := logIn(t, s.NATSURL(), nats.Token(loud.key))
	for range 5 {
		if res, text := loud.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "loud")); res.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		if ack := app.request(t, message("audit.events.acme.activity", codec.ContentJSON, eventOf("acme", "loud"))); ack.Error != nil {
			t.Fatalf("%+v", ack.Error)
		}
	}
	tail := openTail(ctx, t, readers["globex"])
	if res, text := quiet.do(t, http.MethodPost, "/api/v1/events", eventOf("globex", "quiet")); res.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	readers["globex"].untilRead(t, path, 1)
	for {
		line, err := tail.ReadString('\n')
		if err != nil {
			t.Fatalf("the tail ended: %v", err)
		}
		if strings.HasPrefix(line, "data:") {
			break
		}
	}
	if n := len(readers["acme"].events(t, "trail=activity")); n >= 10 {
		t.Fatalf("all %d events of the loud organization are stored: nothing was in the bulk lane", n)
	}
	if _, err := s.Client.JS.ResumeConsumer(ctx, broker.StreamAudit, broker.ConsumerBulkWriter); err != nil {
		t.Fatal(err)
	}
	readers["acme"].untilRead(t, path, 10)
}

// Row 19: messages without data count as events, and their headers as bytes.
func TestEmptyMessagesAreLimited(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*config.Limits){
		"events": func(l *config.Limits) { l.KeyEventsPerSecond = 2 }, "bytes": func(l *config.Limits) { l.KeyBytesPerSecond = 20_000 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := pipelinetest.Config(t)
			limit(&c.Limits)
			s := pipelinetest.Start(t, c)
			nc := logIn(t, s.NATSURL(), nats.Token(newClient(t, s, "greedy", "acme", access.Publisher).key))
			for n := range 200 {
				m := message("audit.events.acme.activity", codec.ContentJSON, "")
				m.Header.Set("tracestate", strings.Repeat("x", 50_000))
				if ack := nc.request(t, m); ack.Error != nil && ack.Error.Code == http.StatusTooManyRequests {
					return
				} else if n == 199 {
					t.Errorf("%d empty messages were taken, the last with %+v", n+1, ack)
				}
			}
		})
	}
}

// Row 19: a publisher that sends without heeding refusals loses its connections, and holds up no other publisher.
func TestFloodOverNATSHoldsUpNobody(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Limits.KeyBytesPerSecond = 100_000
	s := pipelinetest.Start(t, c)
	key := newClient(t, s, "greedy", "acme", access.Publisher).key
	closed := make(chan struct{})
	nc, err := nats.Connect(s.NATSURL(), nats.Token(key), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m := message("audit.events.acme.activity", codec.ContentJSON, strings.Repeat("x", 100_000))
	for deadline := time.Now().Add(await.Limit); ; {
		if err := nc.PublishMsg(m); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a flood was taken for %s", await.Limit)
		}
	}
	await.Receive(t, await.Limit, "the connection of a flood to be closed", closed)
	if again, err := nats.Connect(s.NATSURL(), nats.Token(key)); err == nil {
		again.Close()
		t.Error("the key of a flood connects again at once")
	}
	other := logIn(t, s.NATSURL(), nats.Token(newClient(t, s, "other", "globex", access.Publisher).key))
	if ack := other.request(t, message("audit.events.globex.activity", codec.ContentJSON, eventOf("globex", "other"))); ack.Error != nil {
		t.Errorf("another organization: %+v", ack.Error)
	}
}

// Beyond the limit of an organization, each of its keys is answered 429 with when to publish again, and not that it may not.
func TestOrganizationBeyondItsLimitPublishesLater(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Limits.OrganizationBytesPerSecond = 10_000
	s := pipelinetest.Start(t, c)
	one, other := newClient(t, s, "one", "acme", access.Publisher), newClient(t, s, "two", "acme", access.Publisher)
	large := strings.Replace(eventOf("acme", "one"), "{", `{"description":"`+strings.Repeat("x", 50_000)+`",`, 1)
	if res, text := one.do(t, http.MethodPost, "/api/v1/events", large); res.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	if res, text := other.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "two")); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit: %d %v %s", res.StatusCode, res.Header, text)
	}
	if res, text := newClient(t, s, "three", "globex", access.Publisher).do(t, http.MethodPost, "/api/v1/events", eventOf("globex", "three")); res.StatusCode != http.StatusAccepted {
		t.Errorf("another organization: %d %s", res.StatusCode, text)
	}
}
