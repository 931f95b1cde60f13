package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/health"
)

func check(role string, severity health.Severity, err error) health.Check {
	return health.Check{Role: role, Name: "something", Severity: severity, Look: func(context.Context) error { return err }}
}

func TestReportIsALineForEachFinding(t *testing.T) {
	t.Parallel()
	checks := []health.Check{
		check("exporter", health.Warning, errors.New("a warning")),
		check("writer", health.Failing, errors.Join(errors.New("one"), errors.New("two"))),
		check("rollup", health.Failing, nil),
	}
	h := health.Handler(func(ctx context.Context) health.Report { return health.Run(ctx, checks) })
	get := func(accept string) *httptest.ResponseRecorder {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", http.NoBody)
		req.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w
	}
	w := get("")
	if want := "not ready\nfailing: writer: something: one; two\nwarning: exporter: something: a warning\n"; w.Code != http.StatusServiceUnavailable || w.Body.String() != want {
		t.Errorf("%d %q, want %q", w.Code, w.Body, want)
	}
	w = get("application/json")
	var r health.Report
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != http.StatusServiceUnavailable || r.Ready || len(r.Findings) != 2 ||
		r.Findings[0] != (health.Finding{Role: "writer", Check: "something", Severity: health.Failing, Reason: "one; two"}) {
		t.Errorf("%d %+v, %v", w.Code, r, err)
	}
	checks = checks[:1]
	if w := get(""); w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), "ready\nwarning: exporter") {
		t.Errorf("with a warning alone: %d %q", w.Code, w.Body)
	}
	checks = nil
	if w := get(""); w.Code != http.StatusOK || w.Body.String() != "ready\n" {
		t.Errorf("with nothing found: %d %q", w.Code, w.Body)
	}
}

func TestDiskSaysItsFigure(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "there yet")
	if err := (health.Disk{Name: "nats", Dir: dir, Least: 1}).Look(t.Context()); err != nil {
		t.Error(err)
	}
	d := health.Disk{Name: "nats", Dir: dir, Least: 1 << 62}
	free, all, err := d.Free()
	if err != nil || free == 0 || all < free {
		t.Errorf("%d of %d bytes are free, %v", free, all, err)
	}
	if err := d.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "nats") || !strings.Contains(err.Error(), "4.0 EiB should be") {
		t.Errorf("got %v", err)
	}
}

// consumer is one that says what it is told to.
type consumer struct {
	info jetstream.ConsumerInfo
	err  error
}

func (c *consumer) Info(context.Context) (*jetstream.ConsumerInfo, error) { return &c.info, c.err }

func TestFloorThatDoesNotMove(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	c := &consumer{}
	f := &health.Floor{Consumer: c, StuckAfter: time.Minute, Now: func() time.Time { return now }}
	for i, step := range []struct {
		pending int
		floor   uint64
		age     time.Duration
		stuck   bool
	}{
		{0, 10, 0, false}, // nothing waits, however long
		{0, 10, 0, false},
		{5, 10, 40 * time.Second, false},
		{5, 10, 80 * time.Second, true},
		{5, 11, 0, false},
		{5, 11, 40 * time.Second, false},
		{0, 16, 0, false},
	} {
		now = now.Add(40 * time.Second)
		c.info.NumAckPending, c.info.AckFloor.Stream = step.pending, step.floor
		f.Observe(t.Context())
		age, _, floor := f.Age()
		if err := f.Look(t.Context()); age != step.age || floor != step.floor || (err != nil) != step.stuck {
			t.Errorf("step %d: age %s, floor %d, %v", i, age, floor, err)
		}
	}
	c.err = errors.New("no answer")
	f.Observe(t.Context())
	if err := f.Look(t.Context()); !errors.Is(err, c.err) {
		t.Errorf("got %v", err)
	}
}

// Without a key, readiness has no reasons; with one, no names of tenants. A check that panics is a finding.
func TestReadinessHidesNames(t *testing.T) {
	t.Parallel()
	checks := []health.Check{
		check("exporter", health.Warning, health.Do(health.Named(errors.New("destination acme/sftp fails"), "%d destinations fail", 1), "look")),
		{Role: "writer", Name: "panic", Severity: health.Failing, Look: func(context.Context) error { panic("a fault") }},
	}
	report := func(ctx context.Context) health.Report { return health.Run(ctx, checks) }
	body := func(h http.Handler) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", http.NoBody))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("%d", w.Code)
		}
		return w.Body.String()
	}
	if got := body(health.Ready(report)); got != "not ready\n" {
		t.Errorf("without a key: %s", got)
	}
	got := body(health.Handler(report))
	if strings.Contains(got, "acme") || !strings.Contains(got, "1 destinations fail") || !strings.Contains(got, "failing: writer: panic: ") || !strings.Contains(got, "what to do: look") {
		t.Errorf("with a key: %s", got)
	}
	if full := report(t.Context()).Text(); !strings.Contains(full, "acme/sftp") {
		t.Errorf("doctor gets %s", full)
	}
}
