package pipeline_test

// Debian's nginx in front of a running system: first with a bare proxy_pass, then with the lines of deploy/README.md.

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// bareLocation is what many people write, and no more.
const bareLocation = "location / {\n    proxy_pass http://127.0.0.1:8080;\n}\n"

// documentedLocation is the nginx configuration that deploy/README.md tells operators to use.
func documentedLocation(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindSubmatch(text)
	if m == nil || !strings.Contains(string(m[1]), "proxy_pass http://127.0.0.1:8080;") {
		t.Fatalf("deploy/README.md has no nginx configuration with proxy_pass http://127.0.0.1:8080: %s", m)
	}
	return string(m[1])
}

// startNginx starts nginx in front of a system and returns its URL. It ends with the test.
func startNginx(t *testing.T, s *pipeline.System, location string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // often not in PATH
	}
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kansa-nginx-") //nolint:usetesting // nginx's workers are another user, whom t.TempDir keeps out
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	location = strings.ReplaceAll(location, "http://127.0.0.1:8080", s.API.URL())
	text := "daemon off;\npid nginx.pid;\nerror_log stderr error;\nworker_processes 1;\nevents { worker_connections 512; }\nhttp {\naccess_log off;\n"
	for _, of := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		text += fmt.Sprintf("%s_temp_path %s;\n", of, of)
	}
	text += "server {\nlisten " + address + ";\n" + location + "}\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start nginx: %v: apt-get install nginx-light", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := await.Receive(t, await.Limit, "nginx to end", ended); err != nil {
			t.Errorf("nginx ends: %v", err)
		}
	})
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		select {
		case err := <-ended:
			t.Fatalf("nginx ended: %v\n%s", err, text)
		default:
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil, err
	})
	return "http://" + address
}

// caller is a client at an address of its own, who comes through a proxy.
type caller struct {
	base, key string
	client    *http.Client
}

func newCaller(t *testing.T, base, ip, key string) caller {
	t.Helper()
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return caller{base, key, &http.Client{Transport: transport}}
}

func (c caller) request(t *testing.T, method, path, body string, header ...string) *http.Request {
	t.Helper()
	return newRequest(t, method, c.base+path, c.key, body, header...)
}

func (c caller) open(t *testing.T, method, path, body string, header ...string) *http.Response {
	t.Helper()
	res, err := c.client.Do(c.request(t, method, path, body, header...))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (c caller) do(t *testing.T, method, path, body string, header ...string) (status int, text string, h http.Header) {
	t.Helper()
	res, data := answered(t, c.client, c.request(t, method, path, body, header...))
	return res.StatusCode, string(data), res.Header
}

func (c caller) signIn(t *testing.T, name, password string, header ...string) (int, http.Header) {
	t.Helper()
	status, _, h := c.do(t, http.MethodPost, "/api/v1/session", fmt.Sprintf(`{"name":%q,"password":%q}`, name, password), header...)
	return status, h
}

// untilLimited sends requests until one is refused for being too many. Many go at once: limits are refilled all the time, and a busy
// machine checks few passwords in a minute.
func (c caller) untilLimited(t *testing.T, count int, request func(n int) (method, path, body string), header ...string) {
	t.Helper()
	pipelinetest.Until(t, 3*time.Minute, func() (bool, any) {
		var limited atomic.Bool
		var all sync.WaitGroup
		for n := range count {
			method, path, body := request(n)
			req := c.request(t, method, path, body, header...)
			all.Go(func() {
				res, err := c.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_ = res.Body.Close()
				if res.StatusCode == http.StatusTooManyRequests {
					limited.Store(true)
				}
			})
		}
		all.Wait()
		return limited.Load(), "not limited"
	})
}

// addresses waits until the trail has events of a code by an actor, and returns the addresses they came from.
func addresses(t *testing.T, operator client, organization, code, actor string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		for _, e := range operator.events(t, "source=kansa&organization="+organization+"&event="+code+"&userId="+actor) {
			all[e.Context.IP] = true
		}
		return len(all) > 0, code + " of " + actor
	})
	return all
}

// tailed reads an open tail until an event of a source comes.
func tailed(t *testing.T, in io.Reader, source string) {
	t.Helper()
	seen := make(chan error, 1)
	go func() {
		lines := bufio.NewReader(in)
		for {
			line, err := lines.ReadString('\n')
			if err != nil || strings.Contains(line, `"source":"`+source+`"`) {
				seen <- err
				return
			}
		}
	}()
	select {
	case err := <-seen:
		if err != nil {
			t.Errorf("the tail ended without the event of %s: %v", source, err)
		}
	case <-time.After(time.Minute):
		t.Errorf("the tail has no event of %s after a minute", source)
	}
}

// readsThroughProxy checks that a tail is live and that a long reading is whole through the proxy.
func readsThroughProxy(t *testing.T, s *pipeline.System, base string) {
	t.Helper()
	source := sample.New(7, nil)
	all := make([]schema.Event, 8000)
	for i := range all {
		all[i] = source.Next()
		all[i].Organization, all[i].Trail, all[i].Description = "acme", schema.Activity, strings.Repeat("a long description ", 40)
	}
	publishAll(t, s, all...)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		rows, _, err := pipelinetest.Stored(t, s.Store)
		return rows >= uint64(len(all)), []any{rows, err}
	})
	reader, publisher := newClient(t, s, "proxied-reader", "acme", access.Auditor), newClient(t, s, "proxied-app", "acme", access.Publisher)
	c := newCaller(t, base, "127.0.0.9", reader.key)
	tail := c.open(t, http.MethodGet, "/api/v1/audit/tail", "")
	defer tail.Body.Close()
	if tail.StatusCode != http.StatusOK {
		t.Fatalf("the tail: %d", tail.StatusCode)
	}
	app := newCaller(t, base, "127.0.0.9", publisher.key)
	if status, text, _ := app.do(t, http.MethodPost, "/api/v1/events", eventOf("acme", "through-nginx")); status != http.StatusAccepted {
		t.Errorf("publish: %d %s", status, text)
	}
	tailed(t, tail.Body, "through-nginx")
	logs := c.open(t, http.MethodGet, "/api/v1/audit/logs?format=ndjson", "")
	defer logs.Body.Close()
	n, events := bufio.NewScanner(logs.Body), 0
	n.Buffer(nil, 1<<20)
	for n.Scan() {
		if !json.Valid(n.Bytes()) {
			t.Fatalf("line %d of the reading: %.200s", events+1, n.Bytes())
		}
		events++
	}
	if err := n.Err(); err != nil || logs.StatusCode != http.StatusOK || events < 8000 {
		t.Errorf("the reading: %d, %d events, %v", logs.StatusCode, events, err)
	}
}

// Issue 13, row 7: behind a proxy_pass that sets no header, nothing is published, read or shown without a key. All clients share nginx's
// address, so that one client's failed sign-ins delay the sign-ins of others, as deploy/README.md says, and nothing else.
func TestBareNginxOpensNothing(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.SignInsPerMinute = 20
	s := pipelinetest.Start(t, c)
	base := startNginx(t, s, bareLocation)
	stranger := newCaller(t, base, "127.0.0.2", "")
	for _, header := range [][]string{nil, {"X-Forwarded-For", "127.0.0.1", "Forwarded", "for=127.0.0.1", "X-Real-IP", "127.0.0.1"}} {
		for _, o := range []struct{ method, path, body string }{
			{http.MethodPost, "/api/v1/events", eventOf("acme", "stranger")},
			{http.MethodGet, "/api/v1/audit/events?organization=acme", ""},
			{http.MethodGet, "/api/v1/audit/logs?organization=acme", ""},
			{http.MethodGet, "/api/v1/audit/tail?organization=acme", ""},
			{http.MethodGet, "/api/v1/keys", ""},
			{http.MethodGet, "/metrics", ""},
		} {
			if status, text, _ := stranger.do(t, o.method, o.path, o.body, header...); status != http.StatusUnauthorized {
				t.Errorf("%s %s with %v: %d %.200s", o.method, o.path, header, status, text)
			}
		}
		for _, path := range []string{"/readyz", "/readyz?verbose=1"} {
			if status, text, _ := stranger.do(t, http.MethodGet, path, "", header...); status != http.StatusOK || text != "ready\n" {
				t.Errorf("%s: %d %s", path, status, text)
			}
		}
	}

	setAnn(t, s, "acme", access.Auditor)
	ann := newCaller(t, base, "127.0.0.3", "")
	status, h := ann.signIn(t, "ann", longPassword)
	if status != http.StatusOK {
		t.Fatalf("sign in: %d", status)
	}
	cookie, _, _ := strings.Cut(h.Get("Set-Cookie"), ";")
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	stranger.untilLimited(t, 30, func(n int) (string, string, string) {
		return http.MethodPost, "/api/v1/session", fmt.Sprintf(`{"name":"unknown-%d","password":"a wrong password"}`, n)
	}, "X-Forwarded-For", "198.51.100.1")
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // until keys are refused, too
		status, _, _ := stranger.do(t, http.MethodGet, "/api/v1/audit/events", "", "Authorization", "Bearer kansa_unknown")
		return status == http.StatusTooManyRequests, status
	})
	if status, text, _ := ann.do(t, http.MethodGet, "/api/v1/audit/events", "", "Cookie", cookie); status != http.StatusOK {
		t.Errorf("a session while a stranger guesses: %d %s", status, text)
	}
	if status, text, _ := newCaller(t, base, "127.0.0.4", reader.key).do(t, http.MethodGet, "/api/v1/audit/events", ""); status != http.StatusOK {
		t.Errorf("a key while a stranger guesses: %d %s", status, text)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // the stranger pauses
		status, _ := ann.signIn(t, "ann", longPassword)
		return status == http.StatusOK, status
	})
	// The claims of clients are not recorded.
	operator := newClient(t, s, "operator", "", access.Admin)
	for _, code := range []string{"signin.refused", "request.limited"} {
		e := untilTold(t, operator, "kansa", code)
		if e.Context.IP != "127.0.0.1" {
			t.Errorf("%s is from %s", code, e.Context.IP)
		}
	}
	readsThroughProxy(t, s, base)
}

// Issue 13, row 7: behind nginx as deploy/README.md sets it up, the trail has the clients' addresses, each client has its own limits, and no
// client can choose its address.
func TestNginxTellsAddressesOfClients(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.TrustedProxies, c.API.AddressRequestsPerSecond, c.API.SignInsPerMinute = []string{"127.0.0.1"}, 50, 6
	s := pipelinetest.Start(t, c)
	base := startNginx(t, s, documentedLocation(t))
	setAnn(t, s, "acme", access.Auditor)
	operator := newClient(t, s, "operator", "", access.Admin)

	// Readings and failed sign-ins are recorded from the address that the client has, in spite of its claims.
	claims := [][]string{
		nil,
		{"X-Forwarded-For", "203.0.113.7"},
		{"X-Forwarded-For", "127.0.0.1, 127.0.0.1"},
		{"X-Forwarded-For", "203.0.113.7, not an address"},
		{"Forwarded", "for=203.0.113.7"},
		{"X-Forwarded-For", "", "Forwarded", `for="127.0.0.1"`},
		{"X-Real-IP", "203.0.113.7", "X-Forwarded-Host", "evil.example"},
	}
	for n, claim := range claims {
		ip := fmt.Sprintf("127.0.1.%d", n+1)
		reader := newClient(t, s, fmt.Sprint("reader-", n), "acme", access.Auditor)
		visitor := newCaller(t, base, ip, reader.key)
		if status, text, _ := visitor.do(t, http.MethodGet, "/api/v1/audit/events", "", claim...); status != http.StatusOK {
			t.Errorf("%v: %d %s", claim, status, text)
		}
		if seen := addresses(t, operator, "acme", "events.read", fmt.Sprint("reader-", n)); len(seen) != 1 || !seen[ip] {
			t.Errorf("a reading from %s with %v is recorded from %v", ip, claim, seen)
		}
		visitor.key = ""
		name := fmt.Sprint("unknown-", n)
		if status, _ := visitor.signIn(t, name, "a wrong password", claim...); status != http.StatusUnauthorized {
			t.Errorf("%v: %d", claim, status)
		}
		if seen := addresses(t, operator, "kansa", "signin.refused", name); len(seen) != 1 || !seen[ip] {
			t.Errorf("a sign-in from %s with %v is recorded from %v", ip, claim, seen)
		}
	}

	// One client's guesses, and its requests, are limited in spite of its claims. Others are not.
	guesser, ann := newCaller(t, base, "127.0.0.2", ""), newCaller(t, base, "127.0.0.3", "")
	n := 0
	pipelinetest.Until(t, 3*time.Minute, func() (bool, any) {
		n++
		status, _ := guesser.signIn(t, fmt.Sprint("guess-", n), "a wrong password", "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", n%250), "Forwarded", "for=127.0.0.1")
		return status == http.StatusTooManyRequests, status
	})
	if n > 3*c.API.SignInsPerMinute {
		t.Errorf("%d guesses of one client were let through", n)
	}
	if status, _ := ann.signIn(t, "ann", longPassword); status != http.StatusOK {
		t.Errorf("another client cannot sign in: %d", status)
	}
	guesser.untilLimited(t, 100, func(int) (string, string, string) { return http.MethodGet, "/download/x/y", "" })
	if status, text, _ := ann.do(t, http.MethodGet, "/download/x/y", ""); status == http.StatusTooManyRequests {
		t.Errorf("another client: %d %s", status, text)
	}
	if seen := addresses(t, operator, "acme", "signin.allowed", "ann"); len(seen) != 1 || !seen["127.0.0.3"] {
		t.Errorf("ann's sign-in is recorded from %v", seen)
	}

	// A page that came by nginx may use its session; one of another site may not, under any host that it names.
	host := strings.TrimPrefix(base, "http://")
	if status, _, _ := ann.do(t, http.MethodGet, "/api/v1/session", "", "Origin", base); status != http.StatusUnauthorized {
		t.Errorf("our own page: %d", status) // it is let through, and has no session
	}
	if status, _, _ := ann.do(t, http.MethodGet, "/api/v1/session", "", "Origin", "http://evil.example", "X-Forwarded-Host", "evil.example"); status != http.StatusForbidden {
		t.Errorf("a page of another site that names its host (we are %s): %d", host, status)
	}

	// A batch beyond nginx's own default of 1 MiB.
	publisher := newClient(t, s, "app", "acme", access.Publisher)
	var batch strings.Builder
	for batch.Len() < 2<<20 {
		batch.WriteString(strings.Replace(eventOf("acme", "batch"), "{", `{"description":"`+strings.Repeat("x", 4000)+`",`, 1) + "\n")
	}
	if status, text, _ := newCaller(t, base, "127.0.0.5", publisher.key).do(t, http.MethodPost, "/api/v1/events", batch.String(), "Content-Type", codec.ContentNDJSON); status != http.StatusAccepted {
		t.Errorf("2 MiB of events: %d %.300s", status, text)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		got := len(operator.events(t, "organization=acme&source=batch"))
		return got == min(500, strings.Count(batch.String(), "\n")), got
	})
	readsThroughProxy(t, s, base)
}

// Without api.trusted_proxies, what nginx says of its clients is ignored.
func TestUntrustedNginxIsIgnored(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	base := startNginx(t, s, documentedLocation(t))
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	visitor := newCaller(t, base, "127.0.0.2", reader.key)
	if status, text, _ := visitor.do(t, http.MethodGet, "/api/v1/audit/events", "", "X-Forwarded-For", "203.0.113.7"); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	if seen := addresses(t, newClient(t, s, "operator", "", access.Admin), "acme", "events.read", "reader"); len(seen) != 1 || !seen["127.0.0.1"] {
		t.Errorf("recorded from %v", seen)
	}
}
