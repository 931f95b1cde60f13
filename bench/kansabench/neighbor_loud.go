package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// loudSettings are what a tenant's admin can have: many keys, and an analyst.
type loudSettings struct {
	tenant
	NATS      string   `json:"nats"`
	Publisher []string `json:"publishers"`
	Auditor   []string `json:"auditors"`
	Admin     string   `json:"admin"`
	Analyst   struct {
		Address  string `json:"address"`
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"analyst"`
	Only []string `json:"only"` // ways to attack; all if empty
}

// loud is the tenant that does its worst.
type loud struct {
	loudSettings
	bodies [][]byte
	ssh    string // the port of a slow SSH server

	mu      sync.Mutex
	answers map[string]map[string]uint64 // by way and answer
}

func (l *loud) got(way string, status any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answers[way] == nil {
		l.answers[way] = map[string]uint64{}
	}
	l.answers[way][fmt.Sprint(status)]++
}

// ask sends one request and counts the answer.
func (l *loud) ask(ctx context.Context, way, method, path, key string, body []byte) {
	kind := ""
	if body != nil {
		kind = codec.ContentJSON
	}
	status, _, err := l.do(ctx, method, path, key, kind, body)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		l.got(way, "no answer")
	default:
		l.got(way, status)
	}
}

// ways are the attacks, each with how many do it at once.
var ways = []struct {
	name string
	many int
	run  func(l *loud, ctx context.Context, n int)
}{
	{"publish over HTTP", 16, (*loud).publish},
	{"publish over NATS", 16, (*loud).publishNATS},
	{"logs not read", 24, (*loud).unread},
	{"live tails", 300, (*loud).tailing},
	{"analyst SQL", 8, (*loud).sql},
	{"exports", 4, (*loud).exporting},
	{"connection tests", 16, (*loud).testing},
	{"sign-ins and unknown keys", 16, (*loud).guessing},
	{"bad events", 8, (*loud).malformed},
	{"destinations changed", 4, (*loud).changing},
	{"searches", 32, (*loud).searching},
}

// loudPart attacks until its input ends, and reports the answers.
func loudPart(ctx context.Context, s *session) (r report, err error) {
	l := &loud{answers: map[string]map[string]uint64{}}
	if err := s.in.Decode(&l.loudSettings); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	l.open()
	if l.bodies, err = l.batches(64, 1000); err != nil {
		return r, err
	}
	var lc net.ListenConfig
	slow, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return r, fmt.Errorf("listen: %w", err)
	}
	_, l.ssh, _ = net.SplitHostPort(slow.Addr().String())
	ctx = s.untilTold(ctx, nil)
	var all sync.WaitGroup
	all.Go(func() { silent(slow, &all) })
	context.AfterFunc(ctx, func() { _ = slow.Close() })
	s.say(r)
	for _, w := range ways {
		if len(l.Only) > 0 && !slices.Contains(l.Only, w.name) {
			continue
		}
		for n := range w.many {
			all.Go(func() {
				for turn := n; ctx.Err() == nil; turn += w.many {
					w.run(l, ctx, turn)
				}
			})
		}
	}
	all.Wait()
	text, err := json.Marshal(l.answers)
	r.Answers = string(text)
	return r, err
}

// silent accepts connections, greets as an SSH server, and says no more.
func silent(listener net.Listener, all *sync.WaitGroup) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		open = append(open, c)
		all.Go(func() { _, _ = io.WriteString(c, "SSH-2.0-slow\r\n") })
	}
}

func pick[T any](all []T, n int) T { return all[n%len(all)] }

func (l *loud) publish(ctx context.Context, n int) {
	status, _, err := l.do(ctx, http.MethodPost, "/api/v1/events", pick(l.Publisher, n), codec.ContentNDJSON, pick(l.bodies, n))
	if err == nil {
		l.got("publish over HTTP", status)
	} else if ctx.Err() == nil {
		l.got("publish over HTTP", "no answer")
	}
}

// publishNATS publishes over one connection until it is refused or ctx ends.
func (l *loud) publishNATS(ctx context.Context, n int) {
	const way = "publish over NATS"
	nc, err := nats.Connect(l.NATS, nats.Token(pick(l.Publisher, n)), nats.NoReconnect(), nats.CustomInboxPrefix("_INBOX"))
	if err != nil {
		l.got(way, "not connected")
		return
	}
	defer nc.Close()
	for ; ctx.Err() == nil && nc.IsConnected(); n++ {
		m := &nats.Msg{Subject: "audit.events." + l.Organization + ".activity", Data: pick(l.bodies, n), Header: nats.Header{schema.HeaderContentType: {codec.ContentNDJSON}}}
		waiting, cancel := context.WithTimeout(ctx, 10*time.Second)
		answer, err := nc.RequestMsgWithContext(waiting, m)
		cancel()
		var ack struct{ Error *struct{ Code int } }
		switch {
		case ctx.Err() != nil:
		case err != nil:
			l.got(way, "no answer")
		case json.Unmarshal(answer.Data, &ack) == nil && ack.Error != nil:
			l.got(way, ack.Error.Code)
		default:
			l.got(way, "acknowledged")
		}
	}
}

// unread asks for the whole trail and reads the status line alone.
func (l *loud) unread(ctx context.Context, n int) {
	const way = "logs not read"
	u, err := url.Parse(l.URL)
	if err != nil {
		return
	}
	c, err := l.dial(ctx, "tcp", u.Host)
	if err != nil {
		l.got(way, "not connected")
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	fmt.Fprintf(c, "GET /api/v1/audit/logs?format=ndjson HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n", pick(l.Auditor, n))
	line, err := bufio.NewReaderSize(c, 16).ReadSlice('\n')
	_, status, _ := strings.Cut(string(line), " ")
	status, _, _ = strings.Cut(status, " ")
	if ctx.Err() != nil {
		return
	}
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		l.got(way, "no answer")
		return
	}
	l.got(way, strings.TrimSpace(status))
	if status == "200" {
		<-ctx.Done()
	}
}

func (l *loud) tailing(ctx context.Context, n int) {
	res, err := l.request(ctx, http.MethodGet, "/api/v1/audit/tail", l.Auditor[0], "", nil)
	if err != nil {
		return
	}
	defer res.Body.Close()
	l.got("live tails", res.StatusCode)
	_, _ = io.Copy(io.Discard, res.Body)
}

var statements = []string{
	"SELECT uniqExact(cityHash64(a.id, b.id)) FROM audit_events a CROSS JOIN (SELECT id FROM audit_events LIMIT 10000) b",
	"SELECT actor_id, uniqExact(id), groupArray(description) FROM audit_events GROUP BY actor_id ORDER BY length(description) DESC",
	"SELECT * FROM audit_events ORDER BY sipHash64(description, data) LIMIT 1000000",
	"SELECT count() FROM audit_events WHERE match(concat(description, data, before, after), '(a.*b.*c.*d.*e.*f){3}')",
}

func (l *loud) sql(ctx context.Context, n int) {
	if l.Analyst.Address == "" {
		<-ctx.Done()
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.Analyst.Address, strings.NewReader(pick(statements, n)))
	if err != nil {
		return
	}
	req.SetBasicAuth(l.Analyst.Username, l.Analyst.Password)
	res, err := l.http.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	l.got("analyst SQL", res.StatusCode)
}

func (l *loud) of(path string) string { return "/api/v1/organizations/" + l.Organization + path }

func (l *loud) destination(name string) []byte {
	return fmt.Appendf(nil, `{"name":%q,"organization":%q,"sftp":{"host":"127.0.0.1","port":%s,"user":"loud","password":"x"},"schedule":{"every":"1h","period":"1h"}}`, name, l.Organization, l.ssh)
}

func (l *loud) exporting(ctx context.Context, n int) {
	body := fmt.Appendf(nil, `{"destination":"slow-0","from":"2026-01-%02dT00:00:00Z"}`, n%28+1)
	l.ask(ctx, "exports", http.MethodPost, l.of("/exports"), l.Admin, body)
	l.ask(ctx, "exports estimated", http.MethodPost, l.of("/exports/estimate"), l.Admin, body)
}

func (l *loud) testing(ctx context.Context, n int) {
	name := fmt.Sprintf("slow-%d", n%16)
	if n < 16 {
		l.ask(ctx, "destinations saved", http.MethodPut, l.of("/destinations/"+name)+"?force=true", l.Admin, l.destination(name))
	}
	l.ask(ctx, "connection tests", http.MethodPost, l.of("/destinations/"+name+"/test"), l.Admin, nil)
}

func (l *loud) guessing(ctx context.Context, n int) {
	if n%2 == 0 {
		l.ask(ctx, "sign-ins", http.MethodPost, "/api/v1/session", "", fmt.Appendf(nil, `{"name":"user-%d","password":"a wrong password"}`, n))
		return
	}
	l.ask(ctx, "unknown keys", http.MethodGet, "/api/v1/audit/events", fmt.Sprint("kansa_unknown_", n), nil)
}

func (l *loud) malformed(ctx context.Context, n int) {
	switch n % 3 {
	case 0:
		l.ask(ctx, "bad events over HTTP", http.MethodPost, "/api/v1/events", pick(l.Publisher, n), fmt.Appendf(nil, `{"organization":%q,"trail":"activity","action":"NOT ALLOWED"}`, l.Organization))
	case 1:
		l.ask(ctx, "events of others", http.MethodPost, "/api/v1/events", pick(l.Publisher, n), []byte(`{"organization":"quiet","trail":"activity","source":"x","event":"a.b","action":"do","occurred_at":"2026-01-01T00:00:00Z"}`))
	case 2:
		l.deadLetters(ctx, n)
	}
}

// deadLetters publishes what cannot be stored, and on the subject of another organization.
func (l *loud) deadLetters(ctx context.Context, n int) {
	nc, err := nats.Connect(l.NATS, nats.Token(pick(l.Publisher, n)), nats.NoReconnect())
	if err != nil {
		return
	}
	defer nc.Close()
	for i := range 200 {
		m := &nats.Msg{Subject: "audit.events." + l.Organization + ".activity", Data: []byte("not an event"), Header: nats.Header{schema.HeaderContentType: {codec.ContentJSON}}}
		waiting, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := nc.RequestMsgWithContext(waiting, m)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.got("dead letters", "no answer")
			return
		}
		l.got("dead letters", "answered")
		if i%10 == 0 {
			_ = nc.Publish("audit.events.quiet.activity", m.Data)
		}
	}
}

func (l *loud) changing(ctx context.Context, n int) {
	name := fmt.Sprintf("changing-%d", n%4)
	path := l.of("/destinations/" + name)
	l.ask(ctx, "destinations changed", http.MethodPut, path+"?force=true", l.Admin, l.destination(name))
	l.ask(ctx, "destinations removed", http.MethodDelete, path, l.Admin, nil)
}

func (l *loud) searching(ctx context.Context, n int) {
	filter := fmt.Sprintf("?text=nothing-has-%d", n)
	if n%2 == 0 {
		l.ask(ctx, "pages by text", http.MethodGet, "/api/v1/audit/events"+filter+"&limit=1000", pick(l.Auditor, n), nil)
		return
	}
	l.ask(ctx, "histograms by text", http.MethodGet, "/api/v1/audit/histogram"+filter+"&bars=500&start=2020-01-01T00:00:00Z", pick(l.Auditor, n), nil)
}
