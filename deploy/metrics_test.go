package deploy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write METRICS.md anew")

// metric is one of pipeline/metrics.
type metric struct {
	name, help string
	labels     []string
}

func (m metric) kind() string {
	if strings.HasSuffix(m.name, "_total") {
		return "counter"
	}
	return "gauge"
}

// catalogue are the metrics that the code declares, in its order: the calls of desc.
func catalogue(t *testing.T) (all []metric) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "pipeline", "metrics", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.Ident); !ok || f.Name != "desc" {
				return true
			}
			var words []string
			for _, a := range call.Args {
				if lit, ok := a.(*ast.BasicLit); ok {
					s, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					words = append(words, s)
				}
			}
			if len(words) != len(call.Args) || len(words) < 2 {
				t.Fatalf("%s: a metric is not declared by literals: this test can't read it", name)
			}
			all = append(all, metric{"kansa_" + words[0], words[1], words[2:]})
			return true
		})
	}
	if len(all) == 0 {
		t.Fatal("pipeline/metrics declares nothing")
	}
	return all
}

const begin, end = "<!-- metrics: made by go test ./deploy -run TestMetrics -update -->\n", "<!-- end -->\n"

func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("METRICS.md has lost its marks")
	}
	var table strings.Builder
	table.WriteString("\n| metric | type | labels | |\n|---|---|---|---|\n")
	for _, m := range catalogue(t) {
		labels := ""
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", m.name, m.kind(), labels, m.help)
	}
	table.WriteString("\n")
	want := before + begin + table.String() + end + after
	if *update {
		if err := os.WriteFile("METRICS.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(text) != want {
		t.Error("METRICS.md is not what the code says: go test ./deploy -run TestMetrics -update")
	}
}

// expression is one of the board's or the alerts'.
type expression struct{ where, query string }

func alerts(t *testing.T) (all []expression) {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      struct{ Severity, Runbook string }
			}
		}
	}
	decode(t, filepath.Join("prometheus", "kansa.rules.yml"), &rules)
	runbook, err := os.ReadFile("RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all = append(all, expression{"alert " + r.Alert, r.Expr})
			if r.Labels.Severity != "page" && r.Labels.Severity != "ticket" {
				t.Errorf("%s: severity %q", r.Alert, r.Labels.Severity)
			}
			heading := "\n## " + strings.ReplaceAll(r.Labels.Runbook, "-", " ") + "\n"
			if !strings.Contains(strings.ToLower(string(runbook)), heading) {
				t.Errorf("%s: RUNBOOK.md has no heading %q", r.Alert, strings.TrimSpace(heading))
			}
		}
	}
	return all
}

func panels(t *testing.T) (all []expression) {
	t.Helper()
	type target struct{ Expr string }
	var board struct {
		Annotations struct{ List []target }
		Panels      []struct {
			Title, Description, Type string
			ID                       int
			Targets                  []target
		}
	}
	text, err := os.ReadFile(filepath.Join("grafana", "kansa.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("panel %s: its id is another's", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && (len(p.Targets) == 0 || p.Description == "") {
			t.Errorf("panel %s has no query or no description", p.Title)
		}
		for _, q := range p.Targets {
			all = append(all, expression{"panel " + p.Title, q.Expr})
		}
	}
	for _, a := range board.Annotations.List {
		all = append(all, expression{"annotation", a.Expr})
	}
	return all
}

func decode(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A key beside a merge (<<) takes the place of the merged one.
	if err := yaml.UnmarshalWithOptions(text, into, yaml.AllowDuplicateMapKey()); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// Metrics of Prometheus itself, its clients and node_exporter.
var others = []string{
	"up", "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes", "process_start_time_seconds",
	"go_goroutines", "node_filesystem_avail_bytes", "node_filesystem_size_bytes",
}

var (
	aside      = regexp.MustCompile(`"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)`)
	identifier = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*(\s*\()?`)
)

// names are the metrics of a query.
func names(query string) (all []string) {
	for _, n := range identifier.FindAllString(aside.ReplaceAllString(query, " "), -1) {
		if strings.HasSuffix(n, "(") || slices.Contains([]string{"and", "or", "unless", "bool", "offset"}, n) {
			continue
		}
		all = append(all, n)
	}
	return all
}

// What board and alerts ask for is there, and what is there is on the board.
func TestBoardAndAlertsNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	known, shown := slices.Clone(others), map[string]bool{}
	for _, m := range catalogue(t) {
		known = append(known, m.name)
	}
	for _, e := range append(panels(t), alerts(t)...) {
		found := names(e.query)
		if len(found) == 0 {
			t.Errorf("%s: %q names no metric", e.where, e.query)
		}
		for _, n := range found {
			shown[n] = true
			if !slices.Contains(known, n) {
				t.Errorf("%s: there is no metric %s", e.where, n)
			}
		}
	}
	for _, m := range catalogue(t) {
		if !shown[m.name] {
			t.Errorf("%s is neither on the board nor in an alert", m.name)
		}
	}
}
