package deploy_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) {
	pipelinetest.Main()
	m.Run()
}

// find returns a program, or skips the test where it is not installed.
func find(t *testing.T, program, debian string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("no %s: apt-get install %s", program, debian)
	}
	return path
}

func TestRulesAreGood(t *testing.T) {
	t.Parallel()
	promtool := find(t, "promtool", "prometheus")
	for _, args := range [][]string{
		{"check", "rules", "kansa.rules.yml"}, {"check", "config", "prometheus.yml"}, {"test", "rules", "kansa.rules.test.yml"},
	} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests, err := os.ReadFile(filepath.Join("prometheus", "kansa.rules.test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts(t) {
		name := strings.TrimPrefix(a.where, "alert ")
		fires := fmt.Sprintf("alertname: %s\n    exp_alerts:", name)
		if !strings.Contains(string(tests), fires) {
			t.Errorf("no test shows that %s fires", name)
		}
	}
}

// Every query of the board and of the alerts is put to a real Prometheus that asks a real Kansa, and every
// panel shows something.
func TestQueriesAgainstPrometheus(t *testing.T) {
	t.Parallel()
	program := find(t, "prometheus", "prometheus")
	cfg := pipelinetest.Config(t)
	cfg.Streams.AuditMaxBytes = 1 << 30
	s := pipelinetest.Start(t, cfg)

	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`global: {scrape_interval: 500ms}
scrape_configs:
- {job_name: kansa, static_configs: [{targets: [%q]}]}
`, strings.TrimPrefix(s.Health.URL(), "http://"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	cmd := exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	// Events that are stored, and one that can't be.
	p, err := producers.New(s.Client.JS, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		err := p.Publish(t.Context(), schema.Event{
			OccurredAt: time.Now(), Organization: "acme", Trail: schema.Activity, Source: "test", Event: "thing.done", Action: "do",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte("no event")); err != nil {
		t.Fatal(err)
	}

	// A request, and a key that expires one day.
	event := fmt.Sprintf(`{"occurred_at":%q,"organization":"acme","trail":"activity","source":"test","event":"thing.done","action":"do"}`, time.Now().UTC().Format(time.RFC3339))
	res, err := http.Post(s.API.URL()+gateway.Path, "application/json", strings.NewReader(event))
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "bi", Role: access.Auditor, By: "a test", Expires: time.Now().AddDate(0, 3, 0)}); err != nil {
		t.Fatal(err)
	}

	ask := func(query string) (series int, err error) {
		r, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(query))
		if err != nil {
			return 0, err
		}
		defer r.Body.Close()
		var answer struct {
			Status, Error string
			Data          struct{ Result []any }
		}
		if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
			return 0, err
		}
		if answer.Status != "success" {
			return 0, fmt.Errorf("%s", answer.Error)
		}
		return len(answer.Data.Result), nil
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		n, err := ask("kansa_dead_letters > 0 and on() kansa_writer_events_stored_total > 2 and on() kansa_rollup_partitions_total > 0")
		return n > 0, err
	})
	variables := strings.NewReplacer("$__rate_interval", "1m", "$job", "kansa")
	for _, e := range panels(t) {
		if strings.Contains(e.query, "node_") { // no node_exporter runs here
			if _, err := ask(variables.Replace(e.query)); err != nil {
				t.Errorf("%s: %s: %v", e.where, e.query, err)
			}
			continue
		}
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			n, err := ask(variables.Replace(e.query))
			return err == nil && (n > 0 || e.where == "annotation"), fmt.Sprintf("%s: %s: %d series, error %v", e.where, e.query, n, err)
		})
	}
	for _, a := range alerts(t) {
		want := a.where == "alert KansaDeadLetters" || a.where == "alert KansaCheckWarns" // dead letters are a warning
		// What holds for a moment alone is no alert: each has to hold for a while.
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			n, err := ask(a.query)
			return err == nil && (n > 0) == want, fmt.Sprintf("%s: %d series, error %v; the system has dead letters and is well otherwise", a.where, n, err)
		})
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
