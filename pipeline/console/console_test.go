package console_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go/jetstream"
	cryptossh "golang.org/x/crypto/ssh"

	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/console"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

func TestMain(m *testing.M) {
	pipelinetest.Main()
	m.Run()
}

func server(t *testing.T) *httptest.Server {
	t.Helper()
	routes, err := console.Routes()
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.Handle(pattern, h)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// answered is what a server said.
type answered struct {
	code   int
	header http.Header
	text   string
}

func get(t *testing.T, url string, header ...string) answered {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{answer.StatusCode, answer.Header, string(text)}
}

// Both languages have every message; every message that the modules name is there, and none that they don't.
func TestMessages(t *testing.T) {
	text, err := os.ReadFile("messages.json")
	if err != nil {
		t.Fatal(err)
	}
	var messages map[string]map[string]string
	if err := json.Unmarshal(text, &messages); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"en":`); n != len(messages) {
		t.Errorf("%d messages under %d keys: one is there twice", n, len(messages))
	}
	var code strings.Builder
	modules, err := filepath.Glob("static/*.js")
	if err != nil || len(modules) < 5 {
		t.Fatal(modules, err)
	}
	for _, m := range modules {
		js, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(js)
	}
	all := code.String()
	names := regexp.MustCompile(`\{\w+\}`)
	var prefixes []string
	for _, m := range regexp.MustCompile(`\bt\('([a-z.]+)' \+|\bword\('([a-z]+)'`).FindAllStringSubmatch(all, -1) {
		prefixes = append(prefixes, strings.TrimSuffix(m[1]+m[2], ".")+".")
	}
	prefixes = append(prefixes, "trail.", "outcome.") // word(k, v)
	for key, m := range messages {
		en, ja := names.FindAllString(m["en"], -1), names.FindAllString(m["ja"], -1)
		slices.Sort(en)
		slices.Sort(ja)
		if m["en"] == "" || m["ja"] == "" || len(m) != 2 || !slices.Equal(en, ja) {
			t.Errorf("%s: %q and %q", key, m["en"], m["ja"])
		}
		if !strings.Contains(all, "'"+key+"'") && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			t.Errorf("%s is nowhere used", key)
		}
	}
	for _, m := range regexp.MustCompile(`\b(?:t|f)\((?:'\w+', )?'([a-zA-Z0-9_.]+)'(?:,|\))`).FindAllStringSubmatch(all, -1) {
		if messages[m[1]] == nil {
			t.Errorf("%s is used, and there is no such message", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\bt\([^'()]*\? '([a-z.]+)' : '([a-z.]+)'`).FindAllStringSubmatch(all, -1) {
		if messages[m[1]] == nil || messages[m[2]] == nil {
			t.Errorf("%s or %s is used, and there is no such message", m[1], m[2])
		}
	}
}

// A page loads nothing but our own files, each of which is there, and has no script of its own.
func TestPages(t *testing.T) {
	s := server(t)
	for _, p := range console.Pages {
		answer := get(t, s.URL+strings.TrimSuffix(p, "{$}"))
		text, policy := answer.text, answer.header.Get("Content-Security-Policy")
		if answer.code != http.StatusOK || !strings.Contains(policy, "script-src 'self';") || strings.Contains(policy, "unsafe") || answer.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%s: %d %v", p, answer.code, answer.header)
		}
		if strings.Contains(text, "://") || regexp.MustCompile(`<script(?:[^>]*)>[^<]|<style| style=| on\w+=`).MatchString(text) {
			t.Errorf("%s has a script or a style of its own, or goes to another host:\n%s", p, text)
		}
		for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(text, -1) {
			if file := get(t, s.URL+m[1]); file.code != http.StatusOK || !strings.Contains(file.header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %s: %d", p, m[1], file.code)
			}
		}
	}
	for accept, want := range map[string]string{"ja,en;q=0.5": "ja", "fr, en-GB;q=0.8": "en", "": "en", "de": "en"} {
		if page := get(t, s.URL+"/", "Accept-Language", accept); !strings.Contains(page.text, `<html lang="`+want+`">`) {
			t.Errorf("Accept-Language %q: not %s", accept, want)
		}
	}
	if page := get(t, s.URL+"/", "Cookie", `kansa_lang=ja; kansa_theme="><script>`); !strings.Contains(page.text, `<html lang="ja">`) {
		t.Error(page.text[:100])
	}
}

func TestNextRuns(t *testing.T) {
	s := server(t)
	for query, want := range map[string]string{
		"every=1h":                               `"runs":["`,
		"cron=0+15+1+*+*+*&time_zone=Asia/Tokyo": `T01:15:00+09:00"`,
		"cron=nonsense":                          `"error":"cron`,
		"every=1ns":                              `"error":"every`,
		"cron=0+0+0+30+2+*":                      `"runs":[]`,
		"cron=0+15+1+*+*+*&time_zone=Mars":       `"error":"time zone`,
	} {
		if answer := get(t, s.URL+"/console/schedule?"+query); answer.code != http.StatusOK || !strings.Contains(answer.text, want) {
			t.Errorf("%s: %d %s", query, answer.code, answer.text)
		}
	}
}

// TestConsole has a browser work with a whole system.
func TestConsole(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	driver := filepath.Join("..", "..", "build", "browser", "node_modules")
	if err == nil {
		_, err = os.Stat(driver)
	}
	if err == nil {
		_, err = os.Stat("assets/uPlot.esm.js")
	}
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skipf("make console browser test-tools brings what this needs: %v", err)
	}
	post, err := smtpd.Start(t.Context(), smtpd.Options{Dir: t.TempDir(), NoTLS: true})
	if err != nil {
		t.Fatal(err)
	}
	defer post.Close()
	archives := t.TempDir()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authorized, err := cryptossh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := cryptossh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	ssh, err := sshd.Start(t.Context(), sshd.Options{
		Dir: archives, User: "kansa", Password: "archive-password", AuthorizedKey: string(cryptossh.MarshalAuthorizedKey(authorized)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()

	c := pipelinetest.Config(t)
	c.Rollup.Hour = 2 * time.Second
	c.Mail = &mail.Config{Host: "127.0.0.1", Port: post.Port(), TLS: "none", From: "kansa@example.com"}
	s := pipelinetest.Start(t, c)
	publish(t, s.Client.JS)
	for _, bad := range []string{`{"occurred_at":"yesterday","organization":"acme"}`, "<script>alert(1)</script>\x00\u202e", "\xff\xfe\x00"} {
		if _, err := s.Client.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte(bad)); err != nil {
			t.Fatal(err)
		}
	}
	reader, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	publisherKey, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "live", Organization: "acme", Role: access.Publisher, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Access.First(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	shots, err := filepath.Abs("screenshots")
	if err == nil {
		err = os.MkdirAll(shots, 0o750)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// A module finds what it imports beside itself.
	script, err := os.ReadFile("browser/drive.mjs")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(driver, "..", "drive.mjs")
	if err := os.WriteFile(copied, script, 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(ssh.Addr(), ":")
	cmd := exec.CommandContext(ctx, "node", copied)
	cmd.Env = append(os.Environ(), "URL="+s.API.URL(), "TOKEN="+token, "PUBLISHER_KEY="+publisherKey, "SHOTS="+shots, "CHROMIUM="+chromium,
		"SFTP_HOST="+host, "SFTP_PORT="+port,
		"PRIVATE_KEY="+string(pem.EncodeToMemory(block)), "AGE="+reader.Recipient().String())
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(post.Mails()); n == 0 {
		t.Error("no link was mailed")
	}
}

// publish has recorded and made-up events in the trail, over the last day.
func publish(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	p, err := producers.New(js, producers.Config{Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(e schema.Event) {
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	const n = 6000
	begin := time.Now().Add(-23 * time.Hour)
	i := 0
	source := sample.New(7, func() time.Time { return begin.Add(time.Duration(i) * 22 * time.Hour / n) })
	for ; i < n; i++ {
		put(source.Next())
	}
	if path, ok := pipelinetest.DataFile(t, "cloudtrail.ndjson"); ok {
		m, err := mapping.Load("cloudtrail")
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for line, err := range mapping.Lines(f, mapping.Options{Mapping: m, Organization: "acme"}) {
			if err = errors.Join(err, line.Err); err != nil {
				t.Fatal(fmt.Errorf("cloudtrail.ndjson: %w", err))
			}
			put(line.Event)
		}
	}
	if err := errors.Join(p.Flush(t.Context()), p.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
}
