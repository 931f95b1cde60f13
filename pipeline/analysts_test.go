package pipeline_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// analystAsks sends a statement as an analyst.
func analystAsks(t *testing.T, c *analyst.Added, query string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.Address+"/", strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(c.Username, c.Password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

// works waits until an account does, and says for how long that was.
func works(t *testing.T, c *analyst.Added) time.Duration {
	t.Helper()
	began := time.Now()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		status, body := analystAsks(t, c, "SELECT 1")
		return status == http.StatusOK, body
	})
	return time.Since(began)
}

// TestAnalystSeesOneOrganization follows an account from its making to its removal: what it sees,
// what it is refused, what the trail says of it, and that its queries end with it.
func TestAnalystSeesOneOrganization(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	mine, theirs := qlik(1), qlik(2)
	theirs.ID, theirs.Organization = uuid.New(), "globex"
	publishAll(t, s, mine, theirs)
	operator := newClient(t, s, "operator", "", access.Admin)
	for _, of := range []string{"acme", "globex"} {
		operator.untilRead(t, "/api/v1/audit/events?source=audit&organization="+of, 1)
	}
	admin := newClient(t, s, "admin", "acme", access.Admin)
	res, data := admin.do(t, http.MethodPost, "/api/v1/organizations/acme/analysts", `{"name":"ann"}`)
	var ann analyst.Added
	if err := json.Unmarshal(data, &ann); err != nil || res.StatusCode != http.StatusCreated || ann.Username != "acme.ann" || len(ann.Password) < 50 {
		t.Fatalf("%d %s, %v", res.StatusCode, data, err)
	}
	all, err := analyst.Client{NC: s.Client.NC, By: "cli:test"}.Add(t.Context(), "", "root", 1)
	if err != nil {
		t.Fatal(err)
	}
	if took := works(t, &ann); took > time.Second {
		t.Logf("the account worked after %s", took)
	}
	works(t, all)
	for query, want := range map[string][2]string{
		"SELECT DISTINCT organization FROM kansa.audit_events WHERE source = 'audit' ORDER BY 1": {"acme\n", "acme\nglobex\n"}, "SELECT sum(events) FROM audit_event_counts WHERE source = 'audit'": {"1\n", "2\n"}, "SHOW TABLES": {"audit_event_counts\naudit_events\n", "audit_event_counts\naudit_events\n"},
	} {
		for i, c := range []*analyst.Added{&ann, all} {
			if status, body := analystAsks(t, c, query); body != want[i] {
				t.Errorf("%s as %s: %d %s", query, c.Username, status, body)
			}
		}
	}
	for _, query := range []string{
		"SELECT * FROM kansa_migrations", "SELECT * FROM audit_event_counts_view", "SELECT * FROM file('../../seal.key', 'LineAsString')", "SYSTEM SHUTDOWN", "ALTER TABLE audit_events DELETE WHERE 1",
		"SELECT * FROM (SELECT * FROM audit_events SETTINGS additional_table_filters = {})",
	} {
		for _, c := range []*analyst.Added{&ann, all} {
			if status, body := analystAsks(t, c, query); status != http.StatusForbidden {
				t.Errorf("%s as %s: %d %s", query, c.Username, status, body)
			}
		}
	}
	for range 2 { // of the same statement, one event
		analystAsks(t, &ann, "SELECT 'told once'")
	}
	analystAsks(t, &ann, "SELECT 'told last'")
	type event struct {
		Event, Outcome string
		Actor          struct{ Type, ID string }
		Attributes     map[string]string
	}
	var page struct{ Events []event }
	read := func(path string) []event { page.Events = nil; admin.json(t, path, &page); return page.Events }
	const queries = "/api/v1/audit/events?organization=acme&trail=access&event=analyst.query&limit=500"
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		return slices.ContainsFunc(read(queries), func(e event) bool { return e.Attributes["statement"] == "SELECT 'told last'" }), page
	})
	once, denied := 0, 0
	for _, e := range page.Events {
		if e.Actor.ID != "acme.ann" || e.Actor.Type != "analyst" {
			t.Errorf("%+v", e)
		}
		if e.Attributes["statement"] == "SELECT 'told once'" && e.Outcome == "success" && e.Attributes["rows"] == "1" {
			once++
		}
		if e.Outcome == "denied" && e.Attributes["statement"] == "SYSTEM SHUTDOWN" {
			denied++
		}
	}
	if once != 1 || denied != 1 {
		t.Errorf("%d and %d events: %+v", once, denied, page.Events)
	}
	admin.untilRead(t, "/api/v1/audit/events?organization=acme&trail=activity&event=analyst.created", 1)

	began, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		close(began)
		_, body := analystAsks(t, &ann, "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))")
		ended <- body
	}()
	await.Receive(t, await.Limit, "the analyst's query to begin", began)
	ask := analyst.Client{NC: s.Client.NC, By: "cli:test"}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		running, err := ask.Queries(t.Context(), "acme")
		return err == nil && len(running) == 1 && running[0].Organization == "acme", err
	})
	removed := time.Now()
	if res, data := admin.do(t, http.MethodDelete, "/api/v1/organizations/acme/analysts/ann", ""); res.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", res.StatusCode, data)
	}
	if body := await.Receive(t, await.Limit, "the query of a removed analyst to end", ended); !strings.Contains(body, "Code: 516.") {
		t.Errorf("the query of a removed analyst: %s", body)
	}
	t.Logf("the query ended %s after its analyst was removed", time.Since(removed))
	if status, body := analystAsks(t, &ann, "SELECT 1"); status != http.StatusForbidden {
		t.Errorf("a removed analyst: %d %s", status, body)
	}
	admin.untilRead(t, "/api/v1/audit/events?organization=acme&trail=activity&event=analyst.deleted", 1)
	if data := admin.get(t, http.StatusOK, "/api/v1/organizations/acme/analysts"); string(data) != "[]\n" {
		t.Errorf("%s", data)
	}
}

// TestUnreadDownloadsDoNotStopTheWriter holds all slots of reads by clients that do not read. The
// store's reads wait then, and the writer goes on.
func TestUnreadDownloadsDoNotStopTheWriter(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	ctx, cancel := context.WithCancel(t.Context())
	var unread sync.WaitGroup
	defer await.Return(t, await.Limit, "the unread downloads to end", unread.Wait)
	defer cancel()
	reads := func() engine.SlotUse {
		all, err := s.Engine.Slots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all[slices.IndexFunc(all, func(u engine.SlotUse) bool { return u.Purpose == "read" })]
	}
	for range reads().Size {
		unread.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Engine.URL(), strings.NewReader("SELECT number, repeat('x', 1000) FROM numbers(100000000)"))
			if err != nil {
				t.Error(err)
				return
			}
			req.SetBasicAuth(s.Engine.Username(), s.Engine.Password())
			req.Header.Set(engine.PurposeHeader, engine.PurposeRead)
			if res, err := http.DefaultClient.Do(req); err == nil {
				<-ctx.Done()
				_ = res.Body.Close()
			}
		})
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { u := reads(); return u.Used == int64(u.Size), u })
	unread.Go(func() {
		if _, err := s.Store.Organizations(ctx); err == nil {
			t.Error("a read of the API got a slot though all are held")
		}
	})
	pipelinetest.Until(t, time.Minute, func() (bool, any) { u := reads(); return u.Waiting == 1, u })
	publishAll(t, s, qlik(1))
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var n uint64
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events WHERE source = 'audit'").Scan(&n)
		return err == nil && n == 1, err
	})
}

// TestAnalystsUseClickHouseClient runs ClickHouse's client for Node as an analyst.
func TestAnalystsUseClickHouseClient(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("find node: %v; install it, the client of analysts is tested with it", err)
	}
	modules, err := filepath.Abs(filepath.Join("..", "build", "analyst"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "node_modules", "@clickhouse", "client")); err != nil {
		t.Fatalf("find @clickhouse/client: %v; run \"make analyst-client\"", err)
	}
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.Roles...)
	publishAll(t, s, qlik(1))
	newClient(t, s, "operator", "", access.Admin).untilRead(t, "/api/v1/audit/events?source=audit&organization=acme", 1)
	ann, err := analyst.Client{NC: s.Client.NC, By: "cli:test"}.Add(t.Context(), "acme", "ann", 1)
	if err != nil {
		t.Fatal(err)
	}
	works(t, ann)
	cmd := exec.CommandContext(t.Context(), node, filepath.Join(modules, "client.mjs"))
	cmd.Env = append(os.Environ(), "KANSA_ADDRESS="+ann.Address, "KANSA_USER="+ann.Username, "KANSA_PASSWORD="+ann.Password, "KANSA_DATABASE="+ann.Database)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all passed") {
		t.Errorf("%v: %s", err, out)
	}
}
