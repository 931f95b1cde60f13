package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

const longPassword = "correct horse battery"

// person is a person's: it keeps cookies, and says where its pages are from.
type person struct {
	s      *pipeline.System
	client *http.Client
}

func newPerson(t *testing.T, s *pipeline.System) person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return person{s, &http.Client{Jar: jar}}
}

func (b person) do(t *testing.T, method, path, body string, header ...string) (answer, string) {
	t.Helper()
	res, text := answered(t, b.client, newRequest(t, method, b.s.API.URL()+path, "", body, header...))
	return res, string(text)
}

func (b person) signIn(t *testing.T, name, password string, header ...string) (answer, string) {
	t.Helper()
	return b.do(t, http.MethodPost, "/api/v1/session", fmt.Sprintf(`{"name":%q,"password":%q}`, name, password), header...)
}

func setAnn(t *testing.T, s *pipeline.System, organization string, role access.Role) {
	t.Helper()
	if err := s.Access.SetUser(t.Context(), access.User{Name: "ann", Organization: organization, Role: role}, longPassword); err != nil {
		t.Fatal(err)
	}
}

// untilTold waits for an event of the system about an organization and returns it.
func untilTold(t *testing.T, operator client, organization, code string) (e schema.Event) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var page struct{ Events []schema.Event }
		operator.json(t, "/api/v1/audit/events?organization="+organization+"&event="+code, &page)
		if len(page.Events) > 0 {
			e = page.Events[0]
		}
		return len(page.Events) > 0, code
	})
	return e
}

// Issue 13, row 5: the cookie of a user who was removed does not open the account of a later user of the same name, and a session ends with
// the password that began it. Each change is an event with what was before and after.
func TestOldSessionDoesNotOpenNewUserOfSameName(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	operator := newClient(t, s, "operator", "", access.Admin)
	put := func(organization, role, password string) {
		t.Helper()
		if res, text := operator.do(t, http.MethodPut, "/api/v1/users/ann", fmt.Sprintf(`{"organization":%q,"role":%q,"password":%q}`, organization, role, password)); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
	}
	put("acme", "auditor", longPassword)
	ann := newPerson(t, s)
	if res, text := ann.signIn(t, "ann", longPassword); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	if res, text := operator.do(t, http.MethodDelete, "/api/v1/users/ann", ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	put("globex", "admin", longPassword)
	if res, text := ann.do(t, http.MethodGet, "/api/v1/session", ""); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the old cookie is %d %s", res.StatusCode, text)
	}

	other := newPerson(t, s)
	if res, text := other.signIn(t, "ann", longPassword); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	put("globex", "admin", "another long password")
	if res, text := other.do(t, http.MethodGet, "/api/v1/session", ""); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("after a change of the password: %d %s", res.StatusCode, text)
	}
	for code, organization := range map[string]string{"user.created": "acme", "user.deleted": "acme", "user.updated": "globex", "session.ended": "globex"} {
		e := untilTold(t, operator, organization, code)
		text := string(e.Before) + string(e.After)
		if strings.Contains(text, "hash") || strings.Contains(text, "password\":\"a") {
			t.Errorf("%s has a secret: %s", code, text)
		}
		if code == "user.updated" && (!strings.Contains(string(e.Before), `"role":"admin"`) || len(e.After) == 0 || e.Attributes["password"] != "set") {
			t.Errorf("%s: before %s, after %s, %v", code, e.Before, e.After, e.Attributes)
		}
	}
}

// Issue 13, row 13: the link, posted eight times at once, makes one admin; the others get the reason.
func TestFirstAdminLinkMakesOneAdmin(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.SignInsPerMinute = 100
	s := pipelinetest.Start(t, c)
	token, err := s.Access.First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if res, text := newPerson(t, s).do(t, http.MethodPost, "/api/v1/first", fmt.Sprintf(`{"token":%q,"name":"not a name","password":%q}`, token, longPassword)); res.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a name that is none: %d %s", res.StatusCode, text)
	}
	answers := make(chan string, 8)
	var all sync.WaitGroup
	for n := range cap(answers) {
		all.Go(func() {
			body := fmt.Sprintf(`{"token":%q,"name":"eve-%d","password":%q}`, token, n, longPassword)
			res, err := http.Post(s.API.URL()+"/api/v1/first", "application/json", strings.NewReader(body))
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			text, _ := io.ReadAll(res.Body)
			answers <- fmt.Sprint(res.StatusCode, " ", string(text))
		})
	}
	await.Return(t, await.Limit, "all requests to be answered", all.Wait)
	close(answers)
	made := 0
	for a := range answers {
		switch {
		case strings.HasPrefix(a, "200 "):
			made++
		case strings.HasPrefix(a, "429 "): // its network's turn
		case !strings.HasPrefix(a, "401 ") || !strings.Contains(a, "this link makes no admin"):
			t.Error(a)
		}
	}
	users, err := s.Access.Users(t.Context(), "")
	if err != nil || made != 1 || len(users) != 1 {
		t.Errorf("%d were made: %+v, %v", made, users, err)
	}
	operator := newClient(t, s, "operator", "", access.Admin)
	untilTold(t, operator, "kansa", "user.first")
}

// tail opens a live tail and waits until it has begun.
func openTail(ctx context.Context, t *testing.T, c client, header ...string) *bufio.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.s.API.URL()+"/api/v1/audit/tail", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("the tail: %d", res.StatusCode)
	}
	lines := bufio.NewReader(res.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return lines
}

// endsWithin fails if a tail goes on for longer than a second after what ends it.
func endsWithin(t *testing.T, lines *bufio.Reader, what string) {
	t.Helper()
	began, ended := time.Now(), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := lines.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: the tail ended after %s", what, took)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s: the tail goes on", what)
	}
}

// Issue 13, row 14: what a credential opened ends with it, within a second: by a key, by a session that signs out or whose user changes.
func TestRevokedKeyEndsOpenTail(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	operator := newClient(t, s, "operator", "", access.Admin)
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	lines := openTail(t.Context(), t, reader)
	if res, text := operator.do(t, http.MethodDelete, "/api/v1/keys/reader", ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	endsWithin(t, lines, "a revoked key")

	setAnn(t, s, "acme", access.Auditor)
	for what, end := range map[string]func(cookie string){
		"sign-out": func(cookie string) {
			if res, text := (client{s, ""}).do(t, http.MethodDelete, "/api/v1/session", "", "Cookie", cookie); res.StatusCode != http.StatusNoContent {
				t.Fatalf("%d %s", res.StatusCode, text)
			}
		},
		"a change of role": func(string) {
			if err := s.Access.SetUser(t.Context(), access.User{Name: "ann", Organization: "acme", Role: access.Admin}, ""); err != nil {
				t.Fatal(err)
			}
		},
	} {
		token, _, err := s.Access.SignIn(t.Context(), "ann", longPassword)
		if err != nil {
			t.Fatal(err)
		}
		cookie := "kansa_session=" + token
		lines := openTail(t.Context(), t, client{s, ""}, "Cookie", cookie)
		end(cookie)
		endsWithin(t, lines, what)
	}
}

// A tail that is open when its key expires ends then.
func TestExpiredKeyEndsOpenTail(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	expires := time.Now().Add(3 * time.Second)
	secret, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "brief", Organization: "acme", Role: access.Auditor, Expires: expires})
	if err != nil {
		t.Fatal(err)
	}
	lines := openTail(t.Context(), t, client{s, secret})
	<-time.After(time.Until(expires))
	endsWithin(t, lines, "an expired key")
}

// Issue 13, row 14: a publisher that is active loses the gateway with its key, within a second.
func TestRevokedKeyPublishesNothingMore(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	app := newClient(t, s, "app", "acme", access.Publisher)
	event := `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"test","event":"thing.done","action":"do"}`
	for range 3 {
		if res, text := app.do(t, http.MethodPost, "/api/v1/events", event); res.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
	}
	if _, err := s.Access.RevokeKey(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		res, text := app.do(t, http.MethodPost, "/api/v1/events", event)
		return res.StatusCode == http.StatusUnauthorized, string(text)
	})
	if took := time.Since(began); took > time.Second {
		t.Errorf("it published for %s more", took)
	}
}

// A request whose body is under way when its key is revoked publishes nothing.
func TestKeyRevokedDuringUploadPublishesNothing(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	app := newClient(t, s, "app", "acme", access.Publisher)
	body, send := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.API.URL()+"/api/v1/events", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+app.key)
	req.Header.Set("Content-Type", "application/json")
	answered := make(chan int, 1)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			answered <- 0
			return
		}
		_ = res.Body.Close()
		answered <- res.StatusCode
	}()
	if _, err := io.WriteString(send, `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity",`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Access.RevokeKey(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		res, _ := app.do(t, http.MethodPost, "/api/v1/events", "{}")
		return res.StatusCode == http.StatusUnauthorized, res.StatusCode
	})
	if _, err := io.WriteString(send, `"source":"test","event":"thing.done","action":"do"}`); err != nil {
		t.Fatal(err)
	}
	_ = send.Close()
	if code := await.Receive(t, await.Limit, "the answer to the request of a revoked key", answered); code == http.StatusAccepted {
		t.Error("it was accepted")
	}
}

// unread opens a response and does not read it.
func unread(t *testing.T, c client, path string) net.Conn {
	t.Helper()
	u, err := url.Parse(c.s.API.URL())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, c.key)
	return conn
}

// fill publishes so much that a reading of it does not fit into the buffers of a connection.
func fill(t *testing.T, s *pipeline.System, organizations ...string) {
	t.Helper()
	source := sample.New(7, nil)
	var events []schema.Event
	for _, organization := range organizations {
		for range 8000 {
			e := source.Next()
			e.Organization, e.Trail, e.Description = organization, schema.Activity, strings.Repeat("a long description ", 40)
			events = append(events, e)
		}
	}
	publishAll(t, s, events...)
	pipelinetest.UntilStored(t, s.Store, uint64(len(events)), 2*time.Minute)
}

// Issue 13, row 4: an auditor who opens eight readings and reads none has two of them, the others are answered 429, another organization
// and the pages go on, and the unread responses are closed.
func TestUnreadResponsesAreClosed(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	// Long enough for the next request to find both responses open, however busy the machine is.
	c.API.WriteTimeout = 15 * time.Second
	s := pipelinetest.Start(t, c)
	fill(t, s, "acme", "globex")
	greedy, other := newClient(t, s, "greedy", "acme", access.Auditor), newClient(t, s, "other", "globex", access.Auditor)
	for range 2 {
		unread(t, greedy, "/api/v1/audit/logs")
	}
	refused := func() bool {
		res, text := greedy.do(t, http.MethodGet, "/api/v1/audit/logs?userId=nobody", "")
		if res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") == "" {
			t.Errorf("without Retry-After: %s", text)
		}
		return res.StatusCode == http.StatusTooManyRequests
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return refused(), "not refused" })
	other.get(t, http.StatusOK, "/api/v1/audit/events")
	if text := other.get(t, http.StatusOK, "/api/v1/audit/logs?format=ndjson"); strings.Count(string(text), "\n") < 8000 {
		t.Errorf("another organization reads %d bytes", len(text))
	}
	greedy.get(t, http.StatusOK, "/api/v1/audit/events")
	// Unread responses are closed, and there is room again.
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return !refused(), "the responses are open" })
	operator := newClient(t, s, "operator", "", access.Auditor)
	if text := operator.get(t, http.StatusOK, "/metrics"); !strings.Contains(string(text), `kansa_limits_refused_total{limit="logs_each"}`) {
		t.Errorf("the metric is missing in\n%s", text)
	}
}

// Issue 13, row 4: a key has a few tails, an organization some more, and others have theirs.
func TestTailsOfOneKeyAreBounded(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.Tails.Each, c.API.Tails.Organization = 3, 5
	s := pipelinetest.Start(t, c)
	one, two, other := newClient(t, s, "one", "acme", access.Auditor), newClient(t, s, "two", "acme", access.Auditor), newClient(t, s, "other", "globex", access.Auditor)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 3 {
		openTail(ctx, t, one)
	}
	res, text := one.do(t, http.MethodGet, "/api/v1/audit/tail", "")
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "of this key or person") {
		t.Errorf("the fourth: %d %s", res.StatusCode, text)
	}
	for range 2 {
		openTail(ctx, t, two)
	}
	if res, text := two.do(t, http.MethodGet, "/api/v1/audit/tail", ""); res.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(text), "of this organization") {
		t.Errorf("the sixth of the organization: %d %s", res.StatusCode, text)
	}
	openTail(ctx, t, other)
	cancel()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.API.URL()+"/api/v1/audit/tail", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+one.key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, err
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK, res.StatusCode
	})
}

// Nobody can lock a user out: an attacker who guesses from many addresses holds up new addresses, and neither the one that the user signed
// in from before nor who has a session.
func TestAttackerDoesNotLockUserOut(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.SignInsPerMinute, c.API.TrustedProxies = 2, []string{"127.0.0.1"}
	s := pipelinetest.Start(t, c)
	setAnn(t, s, "acme", access.Auditor)
	home, session := newPerson(t, s), newPerson(t, s)
	for b, from := range map[person]string{home: "192.0.2.1", session: "192.0.2.2"} {
		if res, text := b.signIn(t, "ann", longPassword, "X-Forwarded-For", from); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
	}
	limited := 0
	for n := range 30 {
		res, _ := newPerson(t, s).signIn(t, "ann", "a wrong password", "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", n))
		if res.StatusCode == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited < 20 {
		t.Errorf("of 30 guesses from 30 addresses, %d are refused", limited)
	}
	if res, text := newPerson(t, s).signIn(t, "ann", longPassword, "X-Forwarded-For", "192.0.2.1"); res.StatusCode != http.StatusOK {
		t.Errorf("from the user's own address: %d %s", res.StatusCode, text)
	}
	if res, text := session.signIn(t, "ann", longPassword, "X-Forwarded-For", "203.0.113.9"); res.StatusCode != http.StatusOK {
		t.Errorf("with a session, from a new address: %d %s", res.StatusCode, text)
	}
	// From one address, the guesses of the others do not count, and its own do.
	for range 5 {
		_, _ = newPerson(t, s).signIn(t, "ben", "a wrong password", "X-Forwarded-For", "198.51.100.200")
	}
	if res, _ := newPerson(t, s).signIn(t, "cid", "a wrong password", "X-Forwarded-For", "198.51.100.200"); res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("many guesses from one address: %d", res.StatusCode)
	}
	if res, _ := newPerson(t, s).signIn(t, "cid", "a wrong password", "X-Forwarded-For", "198.51.100.201"); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a guess from another: %d", res.StatusCode)
	}
	e := untilTold(t, newClient(t, s, "operator", "", access.Admin), "acme", "signin.allowed")
	if !strings.HasPrefix(e.Context.IP, "192.0.2.") && e.Context.IP != "203.0.113.9" {
		t.Errorf("the trail has address %s", e.Context.IP)
	}
}

// Without a trusted proxy, a client's claim about its address is ignored.
func TestClaimedAddressIsIgnored(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.SignInsPerMinute = 2
	s := pipelinetest.Start(t, c)
	codes := map[int]int{}
	for n := range 10 {
		res, _ := newPerson(t, s).signIn(t, fmt.Sprint("nobody-", n), "a wrong password", "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", n), "X-Forwarded-Proto", "https")
		codes[res.StatusCode]++
	}
	if codes[http.StatusTooManyRequests] < 5 {
		t.Errorf("answers %v", codes)
	}
	setAnn(t, s, "acme", access.Auditor)
	e := untilTold(t, newClient(t, s, "operator", "", access.Admin), "kansa", "signin.refused")
	if e.Context.IP != "127.0.0.1" {
		t.Errorf("the trail has address %s", e.Context.IP)
	}
}

// Issue 13, row 15: without a key, metrics are not served and readiness has no reasons; with an operator's they have no names of tenants.
func TestHealthHasNoNamesOfTenants(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	if _, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "secret-tenant-key", Organization: "secret-tenant", Role: access.Auditor, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	none, tenant, operator := client{s, ""}, newClient(t, s, "tenant", "acme", access.Admin), newClient(t, s, "operator", "", access.Auditor)
	for who, c := range map[string]client{"nobody": none, "a tenant": tenant, "a wrong key": {s, "kansa_wrong"}} {
		c.get(t, http.StatusUnauthorized, "/metrics")
		if text := string(c.get(t, http.StatusOK, "/readyz")); text != "ready\n" {
			t.Errorf("%s is answered %s", who, text)
		}
	}
	var full []string
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		_, public := get(t, s.Health.URL()+"/readyz", "")
		_, figures := get(t, s.Health.URL()+"/metrics", "")
		full = []string{public, figures, string(operator.get(t, http.StatusOK, "/readyz")), string(operator.get(t, http.StatusOK, "/metrics"))}
		return strings.Contains(full[0], "API keys have expired or will soon") && strings.Contains(full[2], "API keys"), full[0]
	})
	for _, text := range full {
		if strings.Contains(text, "secret-tenant") {
			t.Errorf("a name of a tenant is in\n%s", text)
		}
	}
	if !strings.Contains(full[1], "kansa_api_key_expiry_timestamp_seconds") || !strings.Contains(full[3], "kansa_panics_total 0") {
		t.Errorf("metrics are missing in\n%s", full[1])
	}
}

// Issue 13, build 11: a page of another site does nothing by a person's session, bodies are JSON and say so, and no answer is kept or
// taken for something else.
func TestPagesOfOtherSitesDoNothing(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	setAnn(t, s, "", access.Admin)
	ann := newPerson(t, s)
	if res, text := ann.signIn(t, "ann", longPassword, "Origin", s.API.URL(), "Sec-Fetch-Site", "same-origin"); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	const user = `{"role":"auditor","password":"a long password"}`
	for name, c := range map[string]struct {
		method, path, body string
		header             []string
		want               int
	}{
		"foreign origin":             {http.MethodPut, "/api/v1/users/eve", user, []string{"Origin", "https://evil.example"}, http.StatusForbidden},
		"no origin of its own":       {http.MethodPut, "/api/v1/users/eve", user, []string{"Origin", "null"}, http.StatusForbidden},
		"another port":               {http.MethodPut, "/api/v1/users/eve", user, []string{"Origin", "http://127.0.0.1:1"}, http.StatusForbidden},
		"with a stray Authorization": {http.MethodPut, "/api/v1/users/eve", user, []string{"Origin", "https://evil.example", "Authorization", "Basic eDp5"}, http.StatusForbidden},
		"cross-site":                 {http.MethodPut, "/api/v1/users/eve", user, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		"another host of the domain": {http.MethodPut, "/api/v1/users/eve", user, []string{"Sec-Fetch-Site", "same-site"}, http.StatusForbidden},
		"a form":                     {http.MethodPost, "/api/v1/keys", `{"name":"k","role":"admin"}`, []string{"Content-Type", "text/plain"}, http.StatusUnsupportedMediaType},
		"no type":                    {http.MethodPost, "/api/v1/keys", `{"name":"k","role":"admin"}`, []string{"Content-Type", ""}, http.StatusUnsupportedMediaType},
		"sign-in":                    {http.MethodPost, "/api/v1/session", `{"name":"ann","password":"x"}`, []string{"Origin", "https://evil.example"}, http.StatusForbidden},
		"sign-out":                   {http.MethodDelete, "/api/v1/session", "", []string{"Origin", "https://evil.example"}, http.StatusForbidden},
		"first admin":                {http.MethodPost, "/api/v1/first", `{"token":"x","name":"ann","password":"a long password"}`, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		"a link to the trail":        {http.MethodGet, "/api/v1/audit/logs?organization=acme", "", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, http.StatusForbidden},
		"a link to OpenID":           {http.MethodGet, "/api/v1/session/openid", "", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, http.StatusForbidden},
		"our own page":               {http.MethodGet, "/api/v1/session", "", []string{"Origin", s.API.URL(), "Sec-Fetch-Site", "same-origin"}, http.StatusOK},
		"an address typed in":        {http.MethodGet, "/api/v1/session", "", []string{"Sec-Fetch-Site", "none"}, http.StatusOK},
	} {
		res, text := ann.do(t, c.method, c.path, c.body, c.header...)
		if res.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", name, res.StatusCode, text, c.want)
		}
	}
	// Programs with a key are none of a person's pages.
	if res, text := newClient(t, s, "operator", "", access.Admin).do(t, http.MethodGet, "/api/v1/session", "", "Origin", "https://bi.example"); res.StatusCode != http.StatusOK {
		t.Errorf("a key with an origin: %d %s", res.StatusCode, text)
	}
	for _, path := range []string{"/api/v1/session", "/api/v1/nothing", "/api/v1/audit/events?organization=acme", "/api/v1/audit/events", "/download/x/y", "/healthz", "/readyz", "/metrics", "/openapi.json", "/nothing"} {
		res, _ := ann.do(t, http.MethodGet, path, "")
		if !strings.Contains(res.Header.Get("Cache-Control"), "no-store") || res.Header.Get("X-Content-Type-Options") != "nosniff" ||
			!strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %d %v", path, res.StatusCode, res.Header)
		}
	}
}

// A key of another admin's that is revoked in the middle of its own request is answered, and opens nothing then.
func TestWhoEndsTheirOwnCredentialIsAnswered(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	for n := range 20 {
		own := newClient(t, s, fmt.Sprint("own-", n), "acme", access.Admin)
		if res, text := own.do(t, http.MethodDelete, "/api/v1/keys/own-"+fmt.Sprint(n), ""); res.StatusCode != http.StatusNoContent {
			t.Errorf("%d %s", res.StatusCode, text)
		}
	}
}

// Formulas in the API's tables are marked when a spreadsheet is to open them.
func TestLogsMarkFormulas(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	publishAll(t, s, qlik(1))
	c := newClient(t, s, "reader", "acme", access.Auditor)
	c.untilRead(t, "/api/v1/audit/events?trail=activity", 1)
	for _, format := range []string{"csv", "tsv"} {
		plain, safe := string(c.get(t, http.StatusOK, "/api/v1/audit/logs?trail=activity&format="+format)), string(c.get(t, http.StatusOK, "/api/v1/audit/logs?trail=activity&spreadsheet_safe=true&format="+format))
		if !strings.Contains(plain, `"=1+1`) || strings.Contains(safe, `"=1+1`) || !strings.Contains(safe, `"'=1+1`) {
			t.Errorf("%s: %s\n%s", format, plain, safe)
		}
	}
}

// Plain HTTP beyond this machine is refused at the start, with what to do, and a proxy that is trusted makes up for it.
func TestPlainHTTPBeyondThisMachineIsRefused(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"0.0.0.0:8080", ":8080", "[::]:8080", "192.0.2.1:8080"} {
		c := pipelinetest.Config(t)
		c.API.Listen = listen
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), "api.tls_cert_file") || !strings.Contains(err.Error(), "api.trusted_proxies") {
			t.Errorf("%s: %v", listen, err)
		}
		c.API.TrustedProxies = []string{"10.0.0.0/8"}
		if err := c.Check(); err != nil {
			t.Errorf("%s behind a proxy: %v", listen, err)
		}
	}
	for _, listen := range []string{"127.0.0.1:8080", "localhost:8080", "[::1]:8080"} {
		c := pipelinetest.Config(t)
		c.API.Listen = listen
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
}

// The API never answers 5xx, with any query parameter.
func FuzzQueryParameters(f *testing.F) {
	for _, seed := range [][2]string{
		{"start", "yesterday"},
		{"cursor", "AAAA"},
		{"offset", "-1"},
		{"limit", "99999999999999999999"},
		{"text", "\x00"},
		{"format", "cef"},
		{"bars", "0"},
		{"end", "9999-12-31T23:59:59Z"},
		{"start", "-0001-01-01T00:00:00Z"},
		{"ip", "%"},
		{"targetId", "\\'"},
		{"order", "recorded"},
		{"organization", "../.."},
		{"text", "%%%"},
		{"userId", "'; DROP TABLE audit_events"},
	} {
		f.Add(seed[0], seed[1])
	}
	config := pipelinetest.Config(f)
	config.API.RequestsPerSecond, config.API.AddressRequestsPerSecond = 0, 0
	s := pipelinetest.Start(f, config)
	key, err := s.Access.CreateKey(f.Context(), &access.Key{Name: "fuzz", Role: access.Auditor, Expires: time.Now().Add(24 * time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	c := client{s, key}
	f.Fuzz(func(t *testing.T, name, value string) {
		for _, path := range []string{"logs", "events", "histogram", "catalogue"} {
			q := url.Values{"organization": {"acme"}}
			q.Set(name, value)
			res, text := c.do(t, http.MethodGet, "/api/v1/audit/"+path+"?"+q.Encode(), "")
			if res.StatusCode >= http.StatusInternalServerError {
				t.Errorf("%s %q=%q: %d %s", path, name, value, res.StatusCode, text)
			}
		}
	})
}

// One organization's searches wait for their own turns, and beyond its queue they are answered 429. Another organization's pages go on.
func TestSearchesOfOneOrganizationLeaveTurnsToOthers(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.Queries.Organization, c.API.Queries.Waiting = 1, 1
	s := pipelinetest.Start(t, c)
	fill(t, s, "acme")
	loud, quiet := newClient(t, s, "loud", "acme", access.Auditor), newClient(t, s, "quiet", "globex", access.Auditor)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer await.Return(t, await.Limit, "the loud organization's requests to end", all.Wait)
	defer stop()
	refused := make(chan string, 1)
	for n := range 8 {
		all.Go(func() {
			for ; ctx.Err() == nil; n += 8 {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/api/v1/audit/events?text=nothing-%d", s.API.URL(), n), http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+loud.key)
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					continue // it was stopped
				}
				_ = res.Body.Close()
				if res.StatusCode == http.StatusTooManyRequests {
					select {
					case refused <- res.Header.Get("Retry-After"):
					default:
					}
				}
			}
		})
	}
	select {
	case after := <-refused:
		if after == "" {
			t.Error("without Retry-After")
		}
	case <-time.After(time.Minute):
		t.Fatal("no search of eight at once was refused within a minute")
	}
	for range 20 {
		quiet.get(t, http.StatusOK, "/api/v1/audit/events")
	}
}
