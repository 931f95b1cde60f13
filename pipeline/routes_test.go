package pipeline_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

var update = flag.Bool("update", false, "write deploy/ACCESS.md anew")

// route is how a route of the API is asked, about an organization and one of its things.
type route struct {
	// body, with {organization} and {id}; query is joined to the path.
	query, body string
	// thing makes one that is there, and names it; absent names one that is not.
	thing  func(t *testing.T) string
	absent string
	header func(t *testing.T) []string
	// also is an answer that says no more than that the thing can't be at the moment.
	also int
	// open is for those who have not signed in.
	open bool
}

const who = "Who may do what by the API"

// askers are the columns of the table. All ask about acme.
var askers = []struct {
	title        string
	organization string
	role         access.Role
}{
	{"nobody", "", ""},
	{"publisher", "acme", access.Publisher},
	{"auditor", "acme", access.Auditor},
	{"admin", "acme", access.Admin},
	{"admin of another organization", "globex", access.Admin},
	{"operator's publisher", "", access.Publisher},
	{"operator's auditor", "", access.Auditor},
	{"operator's admin", "", access.Admin},
}

// Requirements Q3, Q10, issue 6: every route of the API, asked by everybody, answers as deploy/ACCESS.md says, and tells
// nobody of another organization whether there is what he asks for. A route that is not tried here fails.
func TestEveryRouteAsEverybody(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.API.RequestsPerSecond, c.API.AddressRequestsPerSecond, c.API.SignInsPerMinute = 0, 0, 0
	s := pipelinetest.Start(t, c)
	e := qlik(1)
	publishAll(t, s, e)
	// Letters that come back when they are replayed.
	for n := range 20 {
		if _, err := s.Client.JS.Publish(t.Context(), "audit.events.acme.activity", []byte(line(n, `"action":"do"`, `"action":"DO"`))); err != nil {
			t.Fatal(err)
		}
	}
	maker := newClient(t, s, "maker", "", access.Admin)
	maker.untilRead(t, "/api/v1/audit/events?organization=acme&trail=activity&source=audit", 1)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		res, data := maker.do(t, http.MethodGet, "/api/v1/audit/events/"+e.ID.String()+"/proof?organization=acme", "")
		return res.StatusCode == http.StatusOK, string(data)
	})
	routes := everyRoute(t, s, maker, e.ID.String())

	var document struct {
		Paths map[string]map[string]struct {
			Summary string `json:"summary"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(client{s, ""}.get(t, http.StatusOK, "/openapi.json"), &document); err != nil {
		t.Fatal(err)
	}
	type op struct{ method, path, summary string }
	all := []op{{http.MethodPost, "/api/v1/events", "Publish events"}} // the gateway's
	for path, methods := range document.Paths {
		for method, o := range methods {
			all = append(all, op{strings.ToUpper(method), path, o.Summary})
		}
	}
	slices.SortFunc(all, func(a, b op) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method)) })

	keys := make([]client, len(askers))
	for i, a := range askers {
		keys[i] = client{s, ""}
		if a.role != "" {
			keys[i] = newClient(t, s, fmt.Sprint("asker-", i), a.organization, a.role)
		}
	}
	others := []client{newClient(t, s, "other-publisher", "globex", access.Publisher), newClient(t, s, "other-auditor", "globex", access.Auditor)}
	var table strings.Builder
	fmt.Fprintf(&table, "# %s\n\n%s\n\n| route | what |", who, strings.TrimSpace(whoText))
	for _, a := range askers {
		fmt.Fprintf(&table, " %s |", a.title)
	}
	table.WriteString("\n|---|---|" + strings.Repeat("---|", len(askers)) + "\n")
	for _, o := range all {
		r, ok := routes[o.method+" "+o.path]
		if !ok {
			t.Errorf("%s %s is in /openapi.json and is not tried here: who may ask it?", o.method, o.path)
			continue
		}
		delete(routes, o.method+" "+o.path)
		fmt.Fprintf(&table, "| `%s %s` | %s |", o.method, o.path, o.summary)
		for i, a := range askers {
			status, text := r.ask(t, keys[i], o.method, o.path, "acme", r.id(t))
			cell := strconv.Itoa(status)
			switch {
			case status < 300, status == r.also && r.also != 0:
				cell = "yes"
			case status != http.StatusUnauthorized && status != http.StatusForbidden && status != http.StatusNotFound:
				t.Errorf("%s %s as %s: %d %.300s", o.method, o.path, a.title, status, text)
			}
			fmt.Fprintf(&table, " %s |", cell)
			if a.organization != "globex" || r.open {
				continue
			}
			for _, c := range append(others, keys[i]) {
				r.shows(t, c, o.method, o.path)
			}
		}
		table.WriteString("\n")
	}
	for name := range routes {
		t.Errorf("%s is tried here, and is not in /openapi.json", name)
	}
	file := filepath.Join("..", "deploy", "ACCESS.md")
	if *update {
		if err := os.WriteFile(file, []byte(table.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != table.String() {
		t.Errorf("deploy/ACCESS.md is not what the API does (%v): look at the difference, and write it with go test ./pipeline -run EveryRoute -update\n%s", err, table.String())
	}
}

const whoText = `
Each route of the API as everybody asks it about the organization acme: someone who has not signed in; a key or user of acme; one of
another organization, whose other roles get no more; and an operator's, which belongs to none. ` + "`yes`" + ` is an answer, a number the status of the refusal: 401 without a key or session that is known, 403 where the role is not enough
or the organization another one, 404 where it could be told from the answer that there is something. What one of another organization is answered is the same whether there
is what he asks for or not. The routes of OpenID are a 404 for everybody where it is not configured. Names of users and keys are of the whole system: a name that somebody else has is a 409 to who wants it. ` + "`TestEveryRouteAsEverybody`" + ` writes this page.
`

func (r *route) id(t *testing.T) string {
	t.Helper()
	if r.thing == nil {
		return ""
	}
	return r.thing(t)
}

func (r *route) ask(t *testing.T, c client, method, path, organization, id string) (status int, body string) {
	t.Helper()
	fill := strings.NewReplacer("{organization}", organization, "{id}", id, "{name}", id, "{seq}", id).Replace
	var header []string
	if r.header != nil {
		header = r.header(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.s.API.URL()+fill(path)+fill(r.query), strings.NewReader(fill(r.body)))
	if err != nil {
		t.Fatal(err)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if r.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	if res.Header.Get("Content-Type") == "text/event-stream" { // it does not end
		return res.StatusCode, ""
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, string(text)
}

var requestID = regexp.MustCompile(`"request_id":"[^"]*"`)

// shows fails if somebody of another organization is answered one thing about what there is, and another about what there is not.
func (r *route) shows(t *testing.T, c client, method, path string) {
	t.Helper()
	id := r.id(t)
	status, there := r.ask(t, c, method, path, "acme", id)
	none, absent := r.ask(t, c, method, path, "nowhere", r.absent)
	clean := func(text, organization, id string) string {
		text = strings.ReplaceAll(requestID.ReplaceAllString(text, ""), organization, "ORGANIZATION")
		if id != "" {
			text = strings.ReplaceAll(text, id, "ID")
		}
		return text
	}
	if a, b := clean(there, "acme", id), clean(absent, "nowhere", r.absent); status != none || a != b {
		t.Errorf("%s %s shows that there is something:\n%d %s\n%d %s", method, path, status, a, none, b)
	}
}

// everyRoute says how each is asked.
func everyRoute(t *testing.T, s *pipeline.System, maker client, event string) map[string]*route {
	n := 0
	fresh := func(t *testing.T) string { t.Helper(); n++; return fmt.Sprint("thing-", n) }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const org = "/api/v1/organizations/{organization}"
	const bucket = `{"name":"{id}","organization":"acme","sftp":{"host":"127.0.0.1","port":1,"user":"u","password":"p"}}`
	destination := func(t *testing.T) string {
		name := fresh(t)
		if res, text := maker.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/"+name+"?force=true", strings.ReplaceAll(bucket, "{id}", name)); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		return name
	}
	export := func(t *testing.T) string {
		id, ends := fresh(t), time.Now().Add(time.Hour)
		must(t, s.States.Put(t.Context(), exporter.Export{Request: exporter.Request{ID: id, Organization: "acme"}, Expires: &ends}))
		return id
	}
	letter := func(t *testing.T) (seq string) {
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			var page struct{ Letters []struct{ Seq uint64 } }
			maker.json(t, "/api/v1/deadletters?organization=acme", &page)
			if len(page.Letters) > 0 {
				seq = strconv.FormatUint(page.Letters[0].Seq, 10)
			}
			return seq != "", page
		})
		return seq
	}
	user := func(t *testing.T) string {
		name := fresh(t)
		must(t, s.Access.SetUser(t.Context(), access.User{Name: name, Organization: "acme", Role: access.Auditor}, "a long password"))
		return name
	}
	key := func(t *testing.T) string {
		name := fresh(t)
		_, err := s.Access.CreateKey(t.Context(), &access.Key{Name: name, Organization: "acme", Role: access.Auditor, Expires: time.Now().Add(time.Hour)})
		must(t, err)
		return name
	}
	analyst := func(t *testing.T) string {
		name := fresh(t)
		if res, text := maker.do(t, http.MethodPost, "/api/v1/organizations/acme/analysts", `{"name":"`+name+`"}`); res.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		return name
	}
	tag := func(path string) func(t *testing.T) []string {
		return func(t *testing.T) []string {
			res, _ := maker.do(t, http.MethodGet, path, "")
			return []string{"If-Match", res.Header.Get("ETag")}
		}
	}
	signIn := user(t)
	hours := "?trail=activity&from=" + time.Now().Add(-time.Minute).UTC().Format(time.RFC3339) + "&to=" + time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	mended := base64.StdEncoding.EncodeToString([]byte(line(1, `"action":"do"`, `"action":"DO"`)))
	of := "?organization={organization}"
	one := func() string { return event }
	return map[string]*route{
		"POST /api/v1/events": {body: `{"occurred_at":"2026-11-22T04:05:06Z","organization":"{organization}","trail":"activity","source":"test","event":"thing.done","action":"do"}`},

		"GET /api/v1/audit/logs":              {query: of},
		"GET /api/v1/audit/events":            {query: of},
		"GET /api/v1/audit/events/{id}":       {query: of, thing: func(*testing.T) string { return one() }, absent: "018f3a5e-0000-7000-8000-000000000000"},
		"GET /api/v1/audit/events/{id}/proof": {query: of, thing: func(*testing.T) string { return one() }, absent: "018f3a5e-0000-7000-8000-000000000000"},
		"GET /api/v1/audit/histogram":         {query: of},
		"GET /api/v1/audit/catalogue":         {query: of},
		"GET /api/v1/audit/tail":              {query: of},

		"GET /api/v1/organizations":                {},
		"GET " + org:                               {},
		"PUT " + org:                               {body: `{"name":"{organization}","exports_per_day":1000,"retention_days":30}`, header: tag("/api/v1/organizations/acme")},
		"GET " + org + "/trails":                   {},
		"PUT " + org + "/trails":                   {body: `{"activity":true}`, header: tag("/api/v1/organizations/acme/trails")},
		"GET " + org + "/integrity":                {},
		"GET " + org + "/integrity/hours":          {query: hours},
		"POST " + org + "/integrity/verifications": {body: `{}`, also: http.StatusConflict},

		"GET " + org + "/destinations":                {},
		"PUT " + org + "/destinations/{name}":         {query: "?force=true", body: bucket, thing: fresh, absent: "absent"},
		"DELETE " + org + "/destinations/{name}":      {thing: destination, absent: "absent"},
		"POST " + org + "/destinations/{name}/pause":  {thing: destination, absent: "absent"},
		"POST " + org + "/destinations/{name}/resume": {thing: destination, absent: "absent"},
		"POST " + org + "/destinations/{name}/test":   {thing: destination, absent: "absent"},

		"GET " + org + "/exports":              {},
		"POST " + org + "/exports":             {body: `{"destination":"{id}"}`, thing: destination, absent: "absent"},
		"POST " + org + "/exports/estimate":    {body: `{"destination":"{id}"}`, thing: destination, absent: "absent"},
		"GET " + org + "/exports/{id}":         {thing: export, absent: "absent"},
		"POST " + org + "/exports/{id}/revoke": {thing: export, absent: "absent"},

		"GET " + org + "/analysts":           {},
		"POST " + org + "/analysts":          {body: `{"name":"{id}"}`, thing: fresh, absent: "absent"},
		"GET " + org + "/analysts/{name}":    {thing: analyst, absent: "absent"},
		"DELETE " + org + "/analysts/{name}": {thing: analyst, absent: "absent"},

		"GET /api/v1/deadletters":                {query: of},
		"GET /api/v1/deadletters/causes":         {query: of},
		"GET /api/v1/deadletters/{seq}":          {thing: letter, absent: "999999999"},
		"GET /api/v1/deadletters/{seq}/data":     {thing: letter, absent: "999999999"},
		"POST /api/v1/deadletters/{seq}/replay":  {thing: letter, absent: "999999999", body: `{"data":"` + mended + `"}`},
		"POST /api/v1/deadletters/{seq}/discard": {thing: letter, absent: "999999999", body: `{"why":"a test"}`},
		"POST /api/v1/deadletters/discard":       {body: `{"organization":"{organization}","reason":"no such reason","why":"a test"}`},
		"POST /api/v1/deadletters/replay":        {body: `{"organization":"{organization}","reason":"action"}`},

		"GET /api/v1/users":           {query: of},
		"PUT /api/v1/users/{name}":    {thing: fresh, absent: "absent", body: `{"organization":"{organization}","role":"auditor","password":"a long password"}`},
		"DELETE /api/v1/users/{name}": {thing: user, absent: "absent"},
		"GET /api/v1/keys":            {query: of},
		"POST /api/v1/keys":           {thing: fresh, absent: "absent", body: `{"name":"{id}","organization":"{organization}","role":"auditor"}`},
		"DELETE /api/v1/keys/{name}":  {thing: key, absent: "absent"},

		"POST /api/v1/session":                {body: `{"name":"` + signIn + `","password":"a long password"}`, open: true},
		"GET /api/v1/session":                 {},
		"DELETE /api/v1/session":              {},
		"GET /api/v1/session/ways":            {open: true},
		"GET /api/v1/session/openid":          {open: true, also: http.StatusNotFound},
		"GET /api/v1/session/openid/callback": {open: true, also: http.StatusNotFound},
		"POST /api/v1/first":                  {body: `{"token":"wrong","name":"first","password":"a long password"}`, open: true},
	}
}

// What an admin of one organization wants for himself and another one has is a name that is taken, and no more.
func TestNamesOfOthers(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	acme, globex := newClient(t, s, "acme-admin", "acme", access.Admin), newClient(t, s, "globex-admin", "globex", access.Admin)
	const body = `{"organization":"acme","role":"admin","password":"a long password"}`
	if res, text := acme.do(t, http.MethodPut, "/api/v1/users/ann", body); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	res, text := globex.do(t, http.MethodPut, "/api/v1/users/ann", strings.ReplaceAll(body, "acme", "globex"))
	if res.StatusCode != http.StatusConflict || strings.Contains(string(text), "acme") {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	if _, p, err := s.Access.SignIn(t.Context(), "ann", "a long password"); err != nil || p.Organization != "acme" {
		t.Errorf("%+v, %v", p, err)
	}
	var list []struct{ Name string }
	globex.json(t, "/api/v1/organizations", &list)
	if len(list) != 1 || list[0].Name != "globex" {
		t.Errorf("globex sees %v", list)
	}
}
