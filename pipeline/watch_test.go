package pipeline_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/processtest"
	"github.com/kansa-audit/kansa/schema"
)

func get(t *testing.T, url, accept string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// finds waits until /readyz has findings, each "role/check" and a part of its reason.
func finds(t *testing.T, s *pipeline.System, ready bool, want map[string]string) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, body := get(t, s.Health.URL()+"/readyz", "application/json")
		var r health.Report
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if (code == http.StatusOK) != r.Ready {
			t.Errorf("%d says %+v", code, r)
		}
		left := len(want)
		for _, f := range r.Findings {
			if reason, ok := want[f.Role+"/"+f.Check]; ok && strings.Contains(f.Reason, reason) {
				left--
			}
		}
		return r.Ready == ready && left <= 0 && (len(want) > 0 || len(r.Findings) == 0), r
	})
}

// quick has a writer that gives a message up after a few seconds.
func quick(t *testing.T) (restarts func(role string) string, s *pipeline.System) {
	t.Helper()
	c := pipelinetest.Config(t)
	c.Writer.AckWait, c.Writer.InsertTimeout = 5*time.Second, time.Second
	s = pipelinetest.Start(t, c)
	return func(role string) string {
		_, body := get(t, s.Health.URL()+"/metrics", "")
		for line := range strings.Lines(body) {
			if rest, ok := strings.CutPrefix(line, `kansa_watchdog_restarts_total{role="`+role+`"} `); ok {
				return strings.TrimSpace(rest)
			}
		}
		return "none"
	}, s
}

// Somebody deletes the consumers under way: they are made again, and nothing is lost or stored twice.
func TestDeletedConsumersAreRestored(t *testing.T) {
	t.Parallel()
	restarts, s := quick(t)
	const n = 60_000
	publish(t, s, 41, n, func() {
		for stream, consumer := range map[string]string{
			broker.StreamAudit: broker.ConsumerWriter, broker.StreamHours: broker.ConsumerRollup, broker.StreamExports: broker.ConsumerExporter,
		} {
			if err := s.Client.JS.DeleteConsumer(t.Context(), stream, consumer); err != nil {
				t.Error(err)
			}
		}
		// Now, for they are made again in a few seconds.
		finds(t, s, false, map[string]string{"writer/consumer": "was deleted", "rollup/consumer": "was deleted", "exporter/consumer": "was deleted"})
	})
	pipelinetest.UntilStored(t, s.Store, n, 2*time.Minute)
	for _, role := range pipeline.Roles[:3] {
		pipelinetest.Until(t, time.Minute, func() (bool, any) { got := restarts(string(role)); return got == "1", got })
	}
	untilSealed(t, s) // the rollup goes on, and every account agrees
	if rows, distinct, err := pipelinetest.Stored(t, s.Store); err != nil || rows != n || distinct != n {
		t.Errorf("%d rows, %d different, %v", rows, distinct, err)
	}
	finds(t, s, true, nil)
}

// Each thing that does not work is told by name, and no longer when it works.
func TestReadyzSaysWhich(t *testing.T) {
	t.Parallel()
	server := brokertest.Start(t)
	c := pipelinetest.Config(t)
	c.NATS.URL, c.NATS.AssumeSyncAlways = server.URL(), true
	c.Writer.AckWait, c.Writer.InsertTimeout = 5*time.Second, time.Second
	c.Destinations = []exporter.Destination{{Name: "nobody", Organization: "kansa", SFTP: &sftp.Config{
		Host: "127.0.0.1", Port: 1, User: "u", Password: "p", HostKeys: []string{"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
	}}}
	s := pipelinetest.Start(t, c)
	publish(t, s, 42, 1000, nil)
	pipelinetest.UntilStored(t, s.Store, 1000, time.Minute)
	finds(t, s, true, nil)

	// A destination that does not answer.
	untilSealed(t, s)
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	until, err := rollup.Progress{JS: s.Client.JS, KV: kv}.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := exporter.Request{
		ID: "x1", Organization: "kansa", Trails: schema.Trails, From: until.Add(-time.Second), To: until, Destination: "nobody", RequestedBy: "a test",
	}
	if err := exporter.Submit(t.Context(), s.Client.JS, request); err != nil {
		t.Fatal(err)
	}
	finds(t, s, true, map[string]string{"exporter/deliveries": "1 deliveries are to be tried again"})

	// An engine that is stopped, and the writer that is stuck for it.
	processtest.Stop(t, s.Engine.PID())
	publish(t, s, 43, 100, nil)
	finds(t, s, false, map[string]string{"writer/engine": "ClickHouse does not answer", "rollup/engine": "ClickHouse does not answer", "writer/progress": "it is stuck: "})
	if code, body := get(t, s.Health.URL()+"/readyz", ""); code != http.StatusServiceUnavailable || !strings.Contains(body, "\nfailing: writer: engine: ClickHouse does not answer") {
		t.Errorf("%d %s", code, body)
	}
	if err := syscall.Kill(s.Engine.PID(), syscall.SIGCONT); err != nil {
		t.Error(err) // it may have been killed and started again
	}
	pipelinetest.UntilStored(t, s.Store, 1100, time.Minute)
	finds(t, s, true, map[string]string{"exporter/deliveries": ""})

	// No broker.
	server.Close()
	finds(t, s, false, map[string]string{"writer/broker": "no connection", "rollup/broker": "no connection", "exporter/broker": "", "api/broker": "", "gateway/broker": ""})
	if code, body := get(t, s.Health.URL()+"/healthz", ""); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
}

// A disk with less room than it should have is a warning with its figure, and a metric.
func TestReadyzTellsOfDisks(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Health.DiskFree = 1 << 62
	s := pipelinetest.Start(t, c)
	code, body := get(t, s.Health.URL()+"/readyz", "")
	if code != http.StatusOK {
		t.Errorf("%d", code)
	}
	_, told := get(t, s.Health.URL()+"/metrics", "")
	for _, name := range []string{"nats", "clickhouse", "partitions"} {
		if !strings.Contains(body, "warning: kansa: disk: the disk of "+name+" (") || !strings.Contains(body, "are free") {
			t.Errorf("%s is not in\n%s", name, body)
		}
		if !strings.Contains(told, `kansa_disk_free_bytes{directory="`+name+`"}`) {
			t.Errorf("%s is not in the metrics", name)
		}
	}
}

// A process without the API says how it is where it is told to.
func TestHealthOfARoleApart(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := pipelinetest.Start(t, c, pipeline.RoleWriter)
	if code, body := get(t, s.Health.URL()+"/readyz", ""); code != http.StatusOK || body != "ready\n" {
		t.Errorf("%d %s", code, body)
	}
	if _, body := get(t, s.Health.URL()+"/metrics", ""); !strings.Contains(body, "kansa_writer_ack_floor_age_seconds 0") {
		t.Errorf("metrics:\n%s", body)
	}
}
