package pipeline_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/oidc/oidctest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
)

// browser follows redirects and keeps cookies, and remembers where it was led.
type browser struct {
	http.Client
	s  *pipeline.System
	at []string
}

func newBrowser(t *testing.T, s *pipeline.System) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{s: s}
	b.Jar = jar
	b.CheckRedirect = func(r *http.Request, _ []*http.Request) error { b.at = append(b.at, r.URL.String()); return nil }
	return b
}

// open opens a page, and returns where that led and the status there.
func (b *browser) open(t *testing.T, address string) (at string, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return strings.TrimPrefix(res.Request.URL.String(), b.s.API.URL()), res.StatusCode
}

func (b *browser) signIn(t *testing.T) (at string) {
	t.Helper()
	b.at = nil
	at, _ = b.open(t, b.s.API.URL()+"/api/v1/session/openid")
	return at
}

// who is who is signed in; nobody is empty.
func (b *browser) who(t *testing.T) (p access.Principal) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.s.API.URL()+"/api/v1/session", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		if p.UID == "" {
			t.Errorf("%+v has no id", p)
		}
		p.UID = "" // which is random
	}
	return p
}

// said is a log that can be looked through.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.text.Write(p) }

func startOpenID(t *testing.T, p *oidctest.Provider, change func(*config.OIDC)) (*pipeline.System, *said) {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(p.ClientSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := pipelinetest.Config(t)
	c.API.SignInsPerMinute = 0
	o := &c.API.OIDC
	o.Issuer, o.ClientID, o.ClientSecret = p.URL, p.ClientID, config.Secret{File: secret}
	change(o)
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	log := &said{}
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: c, Roles: pipeline.Roles, EngineCommand: pipelinetest.EngineCommand(t), Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the system: %v", err)
		}
	})
	return s, log
}

// Issue 6: people sign in by an OpenID provider, if an admin has made them so, and nobody in another's name, with what was signed for
// somebody else, another time or another place, or twice. Each is an event, and no secret is in the log.
func TestOpenID(t *testing.T) {
	t.Parallel()
	p := oidctest.Start(t, "kansa", "the secret of the client")
	s, log := startOpenID(t, p, func(*config.OIDC) {})
	admin := newClient(t, s, "admin", "", access.Admin)
	for _, u := range []string{"aiko", "ben", "cleo"} {
		if res, text := admin.do(t, http.MethodPut, "/api/v1/users/"+u, `{"organization":"acme","role":"auditor","sign_in":"openid"}`); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
	}
	if err := s.Access.SetUser(t.Context(), access.User{Name: "root", Role: access.Admin}, "a long password"); err != nil {
		t.Fatal(err)
	}
	var ways struct {
		Password bool
		OpenID   string
	}
	client{s, ""}.json(t, "/api/v1/session/ways", &ways)
	if !ways.Password || ways.OpenID != "OpenID" {
		t.Errorf("%+v", ways)
	}

	aiko := map[string]any{"sub": "1", "preferred_username": "aiko"}
	p.Is(aiko, nil)
	b := newBrowser(t, s)
	if at := b.signIn(t); at != "/" {
		t.Fatalf("led to %s by %s", at, b.at)
	}
	if who := b.who(t); who != (access.Principal{Kind: "user", ID: "aiko", Role: access.Auditor, Organization: "acme"}) {
		t.Errorf("signed in is %+v", who)
	}
	// The same answer again, in this browser and in another one.
	for _, again := range []*browser{b, newBrowser(t, s)} {
		if at, _ := again.open(t, b.at[1]); at != "/?sign-in=refused" {
			t.Errorf("the same again leads to %s", at)
		}
	}
	// An answer that was meant for another browser does not sign this one in.
	stranger, led := newBrowser(t, s), newBrowser(t, s)
	stranger.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), s.API.URL()) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.API.URL()+"/api/v1/session/openid", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := stranger.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if at, _ := led.open(t, res.Header.Get("Location")); at != "/?sign-in=refused" || led.who(t).ID != "" {
		t.Errorf("another browser is led to %s", at)
	}

	for why, c := range map[string]struct {
		claims map[string]any
		change func(claims map[string]any)
		also   func()
	}{
		"the nonce is another one":                 {claims: aiko, change: func(c map[string]any) { c["nonce"] = "another" }},
		"expected audience":                        {claims: aiko, change: func(c map[string]any) { c["aud"] = "another" }},
		"token is expired":                         {claims: aiko, change: func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() }},
		"issued by a different provider":           {claims: aiko, change: func(c map[string]any) { c["iss"] = "https://another.example" }},
		"failed to verify signature":               {claims: aiko, also: p.Forge},
		"the provider did not let him":             {claims: aiko, also: p.Deny},
		"there is no user of this name":            {claims: map[string]any{"sub": "2", "preferred_username": "nobody"}},
		"the user signs in by password":            {claims: map[string]any{"sub": "3", "preferred_username": "root"}},
		"the name belonged to another person":      {claims: map[string]any{"sub": "4", "preferred_username": "aiko"}},
		"is no name of a user":                     {claims: map[string]any{"sub": "5", "preferred_username": "a b"}},
		"preferred_username, which is to be the n": {claims: map[string]any{"sub": "6"}},
	} {
		p.Is(c.claims, c.change)
		if c.also != nil {
			c.also()
		}
		b := newBrowser(t, s)
		if at := b.signIn(t); at != "/?sign-in=refused" || b.who(t).ID != "" {
			t.Errorf("%s: led to %s as %+v", why, at, b.who(t))
		}
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			for _, organization := range []string{"kansa", "acme"} {
				var page struct{ Events []schema.Event }
				admin.json(t, "/api/v1/audit/events?event=signin.refused&limit=500&organization="+organization, &page)
				for _, e := range page.Events {
					if strings.HasPrefix(e.Description, "OpenID: ") && strings.Contains(e.Description, why) {
						return true, nil
					}
				}
			}
			return false, why
		})
	}
	// Nobody comes by a password to who has none, and who is removed is out.
	if _, _, err := s.Access.SignIn(t.Context(), "ben", ""); err == nil {
		t.Error("ben came by an empty password")
	}
	if _, err := s.Access.RemoveUser(t.Context(), "aiko"); err != nil {
		t.Fatal(err)
	}
	if who := b.who(t); who.ID != "" {
		t.Errorf("removed, and still %+v", who)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var page struct{ Events []schema.Event }
		admin.json(t, "/api/v1/audit/events?event=signin.allowed&organization=acme", &page)
		return len(page.Events) == 1 && page.Events[0].Actor.ID == "aiko" && page.Events[0].Description == "OpenID" && page.Events[0].Context.IP == "127.0.0.1", page
	})
	log.mu.Lock()
	defer log.mu.Unlock()
	home, err := url.Parse(s.API.URL())
	if err != nil {
		t.Fatal(err)
	}
	secrets := p.Secrets()
	for _, c := range b.Jar.Cookies(home) {
		secrets = append(secrets, c.Value)
	}
	for _, secret := range secrets {
		if strings.Contains(log.text.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// What the groups give holds from sign-in to sign-in, and makes users, if so configured; who is in none is refused.
func TestOpenIDGroups(t *testing.T) {
	t.Parallel()
	p := oidctest.Start(t, "kansa", "the secret of the client")
	s, _ := startOpenID(t, p, func(o *config.OIDC) {
		o.NameClaim, o.Create = "nickname", true
		o.Roles = []config.GroupRole{{Group: "audit-admins", Role: "admin"}, {Group: "acme-auditors", Role: "auditor", Organization: "acme"}}
	})
	for _, c := range []struct {
		groups any
		want   access.Principal
	}{
		{[]string{"others", "acme-auditors"}, access.Principal{Kind: "user", ID: "dora", Role: access.Auditor, Organization: "acme"}},
		{[]string{"acme-auditors", "audit-admins"}, access.Principal{Kind: "user", ID: "dora", Role: access.Admin}},
		{"acme-auditors", access.Principal{Kind: "user", ID: "dora", Role: access.Auditor, Organization: "acme"}},
		{[]string{"others"}, access.Principal{}},
		{nil, access.Principal{}},
	} {
		p.Is(map[string]any{"sub": "9", "nickname": "dora", "groups": c.groups}, nil)
		b := newBrowser(t, s)
		b.signIn(t)
		if who := b.who(t); who != c.want {
			t.Errorf("groups %v: %+v, want %+v", c.groups, who, c.want)
		}
	}
	// A provider that is away is said to be, and can be there later.
	away := newBrowser(t, s)
	q, _ := startOpenID(t, &oidctest.Provider{URL: "http://127.0.0.1:1", ClientID: "kansa", ClientSecret: "x"}, func(*config.OIDC) {})
	away.s = q
	if at, status := away.open(t, q.API.URL()+"/api/v1/session/openid"); status != http.StatusServiceUnavailable {
		t.Errorf("led to %s: %d", at, status)
	}
}
