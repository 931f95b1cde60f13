package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// client asks the API of a system with a key.
type client struct {
	s   *pipeline.System
	key string
}

func newClient(t *testing.T, s *pipeline.System, name, organization string, role access.Role) client {
	t.Helper()
	key, err := s.Access.CreateKey(t.Context(), &access.Key{Name: name, Organization: organization, Role: role, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return client{s, key}
}

// answer is one that was read to its end.
type answer struct {
	StatusCode int
	Header     http.Header
}

// newRequest is one to the API: with a key, if it is not empty, and a body of JSON. header is names and values in turn.
func newRequest(t *testing.T, method, url, key, body string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// answered sends a request and reads its answer to the end.
func answered(t *testing.T, by *http.Client, req *http.Request) (answer, []byte) {
	t.Helper()
	res, err := by.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header}, data
}

func (c client) do(t *testing.T, method, path, body string, header ...string) (answer, []byte) {
	t.Helper()
	return answered(t, http.DefaultClient, newRequest(t, method, c.s.API.URL()+path, c.key, body, header...))
}

func (c client) get(t *testing.T, want int, path string) []byte {
	t.Helper()
	res, data := c.do(t, http.MethodGet, path, "")
	if res.StatusCode != want {
		t.Errorf("GET %s: %d, want %d: %.300s", path, res.StatusCode, want, data)
	}
	return data
}

func (c client) json(t *testing.T, path string, to any) {
	t.Helper()
	if err := json.Unmarshal(c.get(t, http.StatusOK, path), to); err != nil {
		t.Errorf("GET %s: %v", path, err)
	}
}

// qlik is an event with a value of its own in every field that requirement Q7 filters by.
func qlik(n int) schema.Event {
	return schema.Event{
		ID: uuid.New(), OccurredAt: time.Date(2020, 10, 9, 14, 53, 30+n, 0, time.UTC), Organization: "acme", Trail: schema.Activity, Source: "audit", Event: "report.published",
		Action: "create", Outcome: schema.Success, Actor: schema.Actor{ID: fmt.Sprintf("user-%d", n), Name: "Ann\tBlythe"}, Target: schema.Target{Type: fmt.Sprintf("NewsstandReport%d", n), ID: fmt.Sprintf("b6ae90de-%d", n), Name: "\"quoted\",\r\n"},
		AppID: fmt.Sprintf("ab53ef11-%d", n), Context: schema.Context{IP: fmt.Sprintf("10.0.0.%d", n)}, Description: "=1+1 \\t \\N 監査 \u2028", Data: []byte(`{"a":"x\ty"}`),
		DataType: fmt.Sprintf("SettingsAudit%d", n),
	}
}

func publishAll(t *testing.T, s *pipeline.System, events ...schema.Event) {
	t.Helper()
	p, err := producers.New(s.Client.JS, producers.Config{Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// untilRead waits until an organization has so many events.
func (c client) untilRead(t *testing.T, path string, want int) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var p struct {
			Events []json.RawMessage `json:"events"`
		}
		c.json(t, path, &p)
		return len(p.Events) == want, len(p.Events)
	})
}

// Requirements Q6, Q7, Q8: the calls of the original, the 14 columns, each filter by itself, and a 400 that names what
// is not known. Requirements Q10, Z12, B5: who may read, and that reading is told.
func TestAuditLogs(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	other := qlik(3)
	other.Organization = "globex"
	publishAll(t, s, qlik(1), qlik(2), other)
	c := newClient(t, s, "reader", "acme", access.Auditor)
	c.untilRead(t, "/api/v1/audit/events?trail=activity", 2)

	rows := func(path string) [][]string {
		r := csv.NewReader(bytes.NewReader(c.get(t, http.StatusOK, path)))
		r.Comma = '\t'
		all, err := r.ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return all
	}
	all := rows("/api/v1/audit/logs?trail=activity")
	if want := "EventTime,Source,Event,Target,TargetId,TargetName,Action,AppId,UserId,UserName,IpAddress,Description,Data,DataType"; len(all) != 3 || strings.Join(all[0], ",") != want {
		t.Fatalf("got %q", all)
	}
	e := qlik(1)
	// A reader of CSV takes CRLF within a value for LF; ours is the value's own.
	name := strings.ReplaceAll(e.Target.Name, "\r\n", "\n")
	want := []string{
		"2020-10-09T14:53:31.000000Z", e.Source, e.Event, e.Target.Type, e.Target.ID, name, e.Action, e.AppID, e.Actor.ID, e.Actor.Name, e.Context.IP, e.Description, string(e.Data), e.DataType,
	}
	if !slices.Equal(all[1], want) {
		t.Errorf("got  %q\nwant %q", all[1], want)
	}
	for _, q := range []string{
		"start=2020-10-09T14:53:32Z", "end=2020-10-09T14:53:32Z", "target=NewsstandReport2", "targetId=b6ae90de-2", "appId=ab53ef11-2", "userId=user-2", "dataType=SettingsAudit2", "ip=10.0.0.2",
		"userId=user-1&targetId=b6ae90de-1",
	} {
		if got := rows("/api/v1/audit/logs?trail=activity&" + q); len(got) != 2 {
			t.Errorf("%s chooses %d rows, want 1", q, len(got)-1)
		}
	}
	for _, q := range []string{"userId=USER-2", "action=Create", "trail=access", "text=nowhere", "source=x'%20OR%20'1'='1"} {
		if got := rows("/api/v1/audit/logs?target=NewsstandReport1&" + q); len(got) != 1 {
			t.Errorf("%s chooses %d rows, want none", q, len(got)-1)
		}
	}
	if got := rows("/api/v1/audit/logs?text=" + url.QueryEscape("監査")); len(got) != 3 {
		t.Errorf("a text: %d rows", len(got)-1)
	}
	for _, q := range []string{"Start=2020-10-09T14:53:32Z", "start=yesterday", "userID=user-1", "trail=audit", "outcome=good", "limit=1", "start=2021-01-01T00:00:00Z&end=2020-01-01T00:00:00Z"} {
		name, _, _ := strings.Cut(q, "=")
		if q[:5] == "start" && strings.Contains(q, "end") {
			name = "end"
		}
		if text := c.get(t, http.StatusBadRequest, "/api/v1/audit/logs?"+q); !strings.Contains(string(text), name) {
			t.Errorf("%s: the answer does not name it: %s", q, text)
		}
	}
	// The other forms say the same.
	res, text := c.do(t, http.MethodGet, "/api/v1/audit/logs?trail=activity", "", "Accept", "application/x-ndjson")
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var line schema.Event
	if err := json.Unmarshal(lines[0], &line); err != nil || len(lines) != 2 || res.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%v in %s", err, text)
	}
	if got := qlikOf(line); got != qlikOf(e) {
		t.Errorf("NDJSON has\n%s\nwant\n%s", got, qlikOf(e))
	}
	if r, err := csv.NewReader(bytes.NewReader(c.get(t, http.StatusOK, "/api/v1/audit/logs?trail=activity&format=csv"))).ReadAll(); err != nil || len(r) != 3 {
		t.Errorf("CSV: %d rows, %v", len(r), err)
	}
	res, text = c.do(t, http.MethodGet, "/api/v1/audit/logs?trail=activity&format=cef", "")
	cef := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(cef) != 2 || !strings.HasPrefix(cef[0], "CEF:0|Kansa|Kansa|1|report.published|Create NewsstandReport1|3|rt=") || !strings.Contains(cef[0], " externalId=") ||
		!strings.Contains(cef[0], " suid=user-1 suser=Ann\tBlythe src=10.0.0.1 ") || res.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("CEF of type %s:\n%s", res.Header.Get("Content-Type"), text)
	}
	if text := c.get(t, http.StatusOK, "/api/v1/audit/logs?format=cef&userId=nobody"); len(text) != 0 {
		t.Errorf("CEF of nothing: %q", text)
	}
	if res, _ := c.do(t, http.MethodGet, "/api/v1/audit/logs", "", "Accept", "image/png"); res.StatusCode != http.StatusNotAcceptable {
		t.Errorf("an image: %d", res.StatusCode)
	}

	c.get(t, http.StatusForbidden, "/api/v1/audit/logs?organization=globex")
	client{s, ""}.get(t, http.StatusUnauthorized, "/api/v1/audit/logs")
	client{s, "kansa_wrong"}.get(t, http.StatusUnauthorized, "/api/v1/audit/logs")
	newClient(t, s, "app", "acme", access.Publisher).get(t, http.StatusForbidden, "/api/v1/audit/logs")
	operator := newClient(t, s, "operator", "", access.Admin)
	operator.get(t, http.StatusBadRequest, "/api/v1/audit/logs")
	operator.get(t, http.StatusOK, "/api/v1/audit/logs?organization=globex")
	for code, organization := range map[string]string{"events.read": "acme", "access.refused": "acme", "signin.refused": owntrail.Organization} {
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			var p struct {
				Events []schema.Event `json:"events"`
			}
			data := operator.get(t, http.StatusOK, "/api/v1/audit/events?organization="+organization+"&event="+code)
			err := json.Unmarshal(data, &p)
			return err == nil && len(p.Events) > 0 && p.Events[0].Context.IP == "127.0.0.1", err
		})
	}
}

// qlikOf is an event to be compared, but for its id.
func qlikOf(e schema.Event) string {
	e.ID = uuid.Nil
	text, err := json.Marshal(e)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Requirements Q9, B4: who follows the cursor while events arrive from all sides gets each once.
func TestCursor(t *testing.T) {
	t.Parallel()
	const publishers, each = 4, 3000
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	c := newClient(t, s, "reader", "acme", access.Auditor)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	published := make(chan error, publishers)
	for n := range publishers {
		go func() {
			p, err := producers.New(s.Client.JS, producers.Config{MaxEvents: 7 + 30*n, Logger: pipelinetest.Logger(t)})
			if err != nil {
				published <- err
				return
			}
			source := sample.New(uint64(n), nil)
			for range each {
				e := source.Next()
				e.Organization, e.ID = "acme", uuid.New()
				if _, err := p.PublishAsync(ctx, e); err != nil {
					published <- err
					return
				}
			}
			published <- p.Close(ctx)
		}()
	}
	seen := map[uuid.UUID]bool{}
	path := "/api/v1/audit/events?order=recorded&limit=333"
	cursor, repeated := "", 0
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		var p struct {
			Events []struct {
				ID     uuid.UUID
				Source string
			}
			Next string
		}
		at := path
		if cursor != "" {
			at += "&cursor=" + cursor
		}
		c.json(t, at, &p)
		for _, e := range p.Events {
			if e.Source == owntrail.Source { // that this reads
				continue
			}
			if seen[e.ID] {
				repeated++
			}
			seen[e.ID] = true
		}
		if p.Next != "" {
			cursor = p.Next
		}
		return len(seen) >= publishers*each, len(seen)
	})
	for range publishers {
		if err := await.Receive(t, await.Limit, "a publisher to end", published); err != nil {
			t.Error(err)
		}
	}
	if repeated > 0 || len(seen) != publishers*each {
		t.Errorf("%d events, %d of them again; want %d once", len(seen), repeated, publishers*each)
	}
	c.get(t, http.StatusBadRequest, "/api/v1/audit/events?cursor=nonsense")

	// Requirement B6: the live tail goes on from where it was broken off.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.API.URL()+"/api/v1/audit/tail?trail=activity", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Last-Event-ID", cursor)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	e := qlik(1)
	publishAll(t, s, e)
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if !strings.Contains(data, e.ID.String()) {
				t.Errorf("the tail has %s", data)
			}
			break
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
}

// Requirements Q9, Q12, N3: one event, its proof, the histogram and the catalogue.
func TestOneEvent(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	e := qlik(1)
	publishAll(t, s, e, qlik(2))
	c := newClient(t, s, "reader", "acme", access.Auditor)
	c.untilRead(t, "/api/v1/audit/events?trail=activity", 2)
	data := c.get(t, http.StatusOK, "/api/v1/audit/events/"+e.ID.String())
	var raw map[string]any
	if err := json.Unmarshal(data, &raw); err != nil || raw["id"] != e.ID.String() || raw["stream_seq"] == nil {
		t.Errorf("%s, %v", data, err)
	}
	c.get(t, http.StatusNotFound, "/api/v1/audit/events/"+uuid.NewString())
	c.get(t, http.StatusBadRequest, "/api/v1/audit/events/nonsense")
	var proof []byte
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		res, data := c.do(t, http.MethodGet, "/api/v1/audit/events/"+e.ID.String()+"/proof", "")
		proof = data
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusConflict {
			t.Fatalf("%d %s", res.StatusCode, data)
		}
		return res.StatusCode == http.StatusOK, string(data)
	})
	file := filepath.Join(t.TempDir(), "event.proof")
	if err := os.WriteFile(file, proof, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := verify.Path(t.Context(), file, verify.Options{Key: s.Keys.Public()}); err != nil || !r.OK {
		t.Errorf("the proof: %+v, %v", r, err)
	}
	var h struct {
		Bars []struct {
			Start  time.Time
			Events int
		}
	}
	c.json(t, "/api/v1/audit/histogram?start=2020-10-09T14:53:00Z&end=2020-10-09T14:54:00Z", &h)
	if len(h.Bars) != 2 || h.Bars[0].Events != 1 {
		t.Errorf("histogram %+v", h)
	}
	var seen []struct {
		Event  string
		Events int
	}
	c.json(t, "/api/v1/audit/catalogue", &seen)
	of := func(event string) int {
		for _, s := range seen {
			if s.Event == event {
				return s.Events
			}
		}
		return 0
	}
	if of("report.published") != 2 || of("events.read") == 0 {
		t.Errorf("catalogue %+v", seen)
	}
}

// Every answer is what the API's own document says, and no request brings it down. KANSA_REQUESTS says how many are tried.
func TestAPIDocument(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	publishAll(t, s, qlik(1), qlik(2))
	admin := newClient(t, s, "operator", "", access.Admin)
	admin.untilRead(t, "/api/v1/audit/events?organization=acme&trail=activity", 2)
	text := client{s, ""}.get(t, http.StatusOK, "/openapi.json")
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	if err := compiler.AddResource("openapi.json", document); err != nil {
		t.Fatal(err)
	}
	n := 600
	if v, err := strconv.Atoi(os.Getenv("KANSA_REQUESTS")); err == nil {
		n = v
	}
	r := rand.New(rand.NewPCG(1, 2))
	var paths []operation
	for path, methods := range document.(map[string]any)["paths"].(map[string]any) {
		for method, op := range methods.(map[string]any) {
			if path != "/api/v1/audit/tail" { // it does not end
				paths = append(paths, operation{path, strings.ToUpper(method), op.(map[string]any)})
			}
		}
	}
	slices.SortFunc(paths, func(a, b operation) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	statuses := map[int]int{}
	for range n {
		op := paths[r.IntN(len(paths))]
		path, body := op.random(r)
		res, data := admin.do(t, op.method, path, body)
		statuses[res.StatusCode]++
		if res.StatusCode >= 500 {
			t.Fatalf("%s %s %s: %d %s", op.method, path, body, res.StatusCode, data)
		}
		where, ok := op.schemaOf(res)
		if !ok {
			continue
		}
		sch, err := compiler.Compile("openapi.json#" + where)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err == nil {
			err = sch.Validate(v)
		}
		if err != nil {
			t.Errorf("%s %s: the answer %.300s is not what the document says: %v", op.method, path, data, err)
		}
	}
	if statuses[http.StatusOK] == 0 || statuses[http.StatusBadRequest]+statuses[http.StatusUnprocessableEntity] == 0 {
		t.Errorf("answers by status: %v", statuses)
	}
	t.Logf("answers by status: %v", statuses)
}

type operation struct {
	path, method string
	op           map[string]any
}

// schemaOf is where the document has the schema of an answer.
func (o operation) schemaOf(res answer) (string, bool) {
	kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	responses := o.op["responses"].(map[string]any)
	for _, status := range []string{strconv.Itoa(res.StatusCode), "default"} {
		answer, ok := responses[status].(map[string]any)
		if !ok {
			continue
		}
		content, _ := answer["content"].(map[string]any)
		media, _ := content[kind].(map[string]any)
		if media["schema"] == nil {
			return "", false
		}
		escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace
		return "/paths/" + escape(o.path) + "/" + strings.ToLower(o.method) + "/responses/" + status + "/content/" + escape(kind) + "/schema", true
	}
	return "", false
}

// random is a request with some of the parameters, right and wrong ones.
func (o operation) random(r *rand.Rand) (path, body string) {
	values := []string{
		"acme", "globex", "kansa", "", "2020-10-09T14:53:32Z", "2026-11-22T04:00:00Z", "0", "1", "999", "-1", "99999999999", "activity", "access", "success", "newest", "recorded", "tsv", "csv", "ndjson", "cef",
		"user-1", "report.published", "'; DROP TABLE audit_events; --", "\\", "%", "\x00", "監査", strings.Repeat("x", 300), uuid.NewString(), "nonsense", "eyJ0IjoxLCJzIjoxLCJpIjoxfQ", "true",
	}
	some := func() string { return values[r.IntN(len(values))] }
	path = o.path
	query := url.Values{}
	parameters, _ := o.op["parameters"].([]any)
	for _, p := range parameters {
		p := p.(map[string]any)
		name := p["name"].(string)
		switch p["in"] {
		case "path":
			v := "acme"
			if name != "organization" || r.IntN(5) == 0 {
				v = some()
			}
			if v == "" {
				v = "x"
			}
			path = strings.ReplaceAll(path, "{"+name+"}", url.PathEscape(v))
		case "query":
			if name == "organization" && r.IntN(4) > 0 {
				query.Set(name, "acme")
			} else if r.IntN(6) == 0 {
				query.Set(name, some())
			}
		}
	}
	if r.IntN(20) == 0 {
		query.Set("unknown", some())
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if o.op["requestBody"] != nil {
		bodies := []string{
			"{}", "[]", "nonsense", `{"name":"x"}`, `{"name":"n","password":"p"}`, `{"role":"auditor","organization":"acme","password":"long enough a password"}`, `{"mail":["a@example.com"]}`,
			`{"sftp":{"host":"127.0.0.1","port":1,"user":"u","password":"p"}}`, `{"retention_days":10,"exports_per_day":1,"name":"acme"}`, `{"mail_to":["a@example.com"],"from":"2020-01-01T00:00:00Z"}`,
			`{"name":"k` + strconv.Itoa(r.IntN(1e6)) + `","role":"auditor","organization":"acme"}`, `{"destination":"x"}`,
		}
		body = bodies[r.IntN(len(bodies))]
	}
	return path, body
}

// A publisher's key opens the gateway for its organization, and no other role's does.
func TestPublishersKeys(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	event := func(org string) string {
		e := qlik(1)
		e.Organization, e.ID = org, uuid.New()
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	app, auditor := newClient(t, s, "app", "acme", access.Publisher), newClient(t, s, "auditor", "acme", access.Auditor)
	for _, c := range []struct {
		who  client
		org  string
		want int
	}{
		{app, "acme", http.StatusAccepted},
		{app, "acme", http.StatusAccepted},
		{app, "globex", http.StatusForbidden},
		{auditor, "acme", http.StatusForbidden},
		{client{s, "kansa_wrong"}, "acme", http.StatusUnauthorized},
		{client{s, ""}, "globex", http.StatusUnauthorized},
	} {
		res, data := c.who.do(t, http.MethodPost, "/api/v1/events", event(c.org))
		if res.StatusCode != c.want {
			t.Errorf("%s for %s: %d %s, want %d", c.who.key, c.org, res.StatusCode, data, c.want)
		}
	}
	if res, _ := (client{s, ""}).do(t, http.MethodPost, "/api/v1/events", event("acme"), "X-Forwarded-For", "192.0.2.1"); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("through a proxy without a key: %d", res.StatusCode)
	}
	if res, _ := app.do(t, http.MethodPost, "/api/v1/events", event("acme"), "X-Forwarded-For", "192.0.2.1"); res.StatusCode != http.StatusAccepted {
		t.Errorf("through a proxy with one: %d", res.StatusCode)
	}
}

// A request's id is in its answer, in the problem, and in the events it makes, those of another role, too.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	admin := newClient(t, s, "operator", "", access.Admin)
	var problem struct {
		Status    int
		Detail    string
		RequestID string `json:"request_id"`
	}
	res, data := admin.do(t, http.MethodGet, "/api/v1/audit/logs?organization=acme&nonsense=1", "", "X-Request-Id", "mine-1")
	if err := json.Unmarshal(data, &problem); err != nil || res.Header.Get("X-Request-Id") != "mine-1" || problem.RequestID != "mine-1" || problem.Status != http.StatusBadRequest {
		t.Errorf("%v %s", res.Header, data)
	}
	for _, path := range []string{"/api/v1/events", "/api/v1/session", "/api/v1/audit/events/nonsense", "/download/x/y", "/healthz"} {
		res, data := client{s, "kansa_wrong"}.do(t, http.MethodGet, path, "", "X-Request-Id", "not good")
		id := res.Header.Get("X-Request-Id")
		if id == "" || id == "not good" {
			t.Errorf("%s: id %q", path, id)
		}
		if res.Header.Get("Content-Type") == "application/problem+json" && !strings.Contains(string(data), `"request_id":"`+id+`"`) {
			t.Errorf("%s: id %s is not in the problem %s", path, id, data)
		}
	}
	res, data = admin.do(t, http.MethodPut, "/api/v1/organizations/acme", `{"name":"acme","exports_per_day":2,"retention_days":30}`, "X-Request-Id", "mine-2")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, data)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		data := admin.get(t, http.StatusOK, "/api/v1/audit/events?organization=acme&event=organization.updated")
		return strings.Contains(string(data), `"request_id":"mine-2"`), string(data)
	})
}

// Who asks too often is told when to ask again: a key, an address, and sooner who tries to sign in.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.RequestsPerSecond, c.API.AddressRequestsPerSecond, c.API.SignInsPerMinute = 1, 5, 3
	s := pipelinetest.Start(t, c)
	key := newClient(t, s, "reader", "acme", access.Auditor)
	until := func(what string, c client, method, path, body string, most int) {
		t.Helper()
		for n := range most + 1 {
			res, data := c.do(t, method, path, body)
			if res.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(data), what) {
				continue
			}
			wait, err := strconv.Atoi(res.Header.Get("Retry-After"))
			if err != nil || wait < 1 || wait > 60 {
				t.Errorf("%s: after %d: Retry-After %q, %s", what, n, res.Header.Get("Retry-After"), data)
			}
			return
		}
		t.Errorf("%s: more than %d are answered", what, most)
	}
	until("attempts to sign in", client{s, ""}, http.MethodPost, "/api/v1/session", `{"name":"nobody","password":"a long password"}`, 4)
	until("not known", client{s, "kansa_wrong"}, http.MethodGet, "/api/v1/session", "", 4)
	until("requests of reader", key, http.MethodGet, "/api/v1/session", "", 40)
	until("this address", key, http.MethodGet, "/api/v1/session", "", 2000)
}

// Of two who change a setting at once, one is told: 412. What there is not, is a 404.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	admin := newClient(t, s, "admin", "acme", access.Admin)
	const path = "/api/v1/organizations/acme"
	res, body := admin.do(t, http.MethodGet, path, "")
	if res.StatusCode != http.StatusOK || res.Header.Get("ETag") == "" {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	put := func(tag string) int {
		res, _ := admin.do(t, http.MethodPut, path, `{"name":"acme","exports_per_day":2,"retention_days":30}`, "If-Match", tag)
		return res.StatusCode
	}
	if first, second := put(res.Header.Get("ETag")), put(res.Header.Get("ETag")); first != http.StatusOK || second != http.StatusPreconditionFailed {
		t.Errorf("%d, %d", first, second)
	}
	if res, _ := admin.do(t, http.MethodPost, path+"/destinations/none/test", ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("a destination that there is not: %d", res.StatusCode)
	}
}
