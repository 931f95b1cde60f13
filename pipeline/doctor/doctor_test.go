package doctor_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/doctor"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/processtest"
	"github.com/kansa-audit/kansa/schema"
)

// external is a configuration with a broker that is not the system's own.
func external(t *testing.T) (*config.Config, *broker.Client) {
	t.Helper()
	server := brokertest.Start(t)
	c := pipelinetest.Config(t)
	c.NATS.URL, c.NATS.AssumeSyncAlways = server.URL(), true
	client, err := pipeline.ConnectTool(t.Context(), c, "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return c, client
}

// finds waits until the doctor finds something, told as "severity where check: reason -> remedy" with parts of them.
func finds(t *testing.T, s doctor.System, severity health.Severity, where, check, reason, remedy string) {
	t.Helper()
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		r, err := doctor.Look(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Findings {
			if f.Severity == severity && strings.Contains(f.Where, where) && f.Check == check && strings.Contains(f.Reason, reason) && strings.Contains(f.Remedy, remedy) {
				return r.OK == (severity == health.Warning) || severity == health.Warning, r.Findings
			}
		}
		return false, r.Findings
	})
}

// isWell waits until the doctor finds nothing.
func isWell(t *testing.T, s doctor.System) *doctor.Report {
	t.Helper()
	var r *doctor.Report
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		var err error
		if r, err = doctor.Look(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return r.OK && len(r.Findings) == 0, r.Findings
	})
	return r
}

// Faults are brought about one by one, and each is told with its place and what to do.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c, client := external(t)
	c.Destinations = []exporter.Destination{{Name: "nobody", Organization: "acme", SFTP: &sftp.Config{
		Host: "127.0.0.1", Port: 1, User: "u", Password: "p", HostKeys: []string{"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
	}}}
	s := pipelinetest.Start(t, c)
	sys := doctor.System{Client: client, Config: c}
	r := isWell(t, sys)
	told := map[string]string{}
	for _, f := range r.Facts {
		told[f.Name] = f.Value
	}
	if len(r.Processes) != 1 || len(r.Processes[0].Roles) != len(pipeline.Roles) || !strings.Contains(told["clickhouse"], "migration") ||
		told["encryption of partitions"] != "off" || !strings.Contains(told["broker"], c.NATS.URL) {
		t.Errorf("%+v\n%+v", r.Processes, r.Facts)
	}

	// A key of the API that is about to expire.
	if _, err := s.Access.CreateKey(t.Context(), &access.Key{Name: "bi", Role: access.Auditor, By: "a test", Expires: time.Now().Add(72 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, " api", "keys", "the API key bi expires", "revoke")
	if _, err := s.Access.RevokeKey(t.Context(), "bi"); err != nil {
		t.Fatal(err)
	}

	// A key file that everybody may read, and one that is gone.
	path := filepath.Join(c.DataDir, keys.PrivateFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, "", "files", "has mode 0644", "chmod 600 "+path)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, "", "files", "the sealing key can not be looked at", "restore "+path)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}

	// A dead letter.
	if _, err := client.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte("no event")); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, "DEADLETTER", "dead letters", "1 dead letters", "kansa deadletter")
	dead, err := client.JS.Stream(t.Context(), broker.StreamDeadLetter)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A destination that somebody paused.
	if _, err := s.Settings.PauseDestination(t.Context(), "acme", "nobody", "a test", true); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, "acme/nobody", "deliveries", "paused", "kansa destination resume acme/nobody")
	if _, err := s.Settings.PauseDestination(t.Context(), "acme", "nobody", "a test", false); err != nil {
		t.Fatal(err)
	}
	isWell(t, sys)

	// A consumer that somebody deleted, and a stream.
	if err := client.JS.DeleteConsumer(t.Context(), broker.StreamExports, broker.ConsumerExporter); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Failing, "consumer exporter", "consumers", "it is not there", "a running one makes it again")
	if err := client.JS.DeleteStream(t.Context(), broker.StreamPartitions); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Failing, "stream PARTITIONS", "streams", "it is not there", "restore it")

	// An engine that does not answer.
	stopped := s.Engine.PID()
	processtest.Stop(t, stopped)
	defer func() { _ = syscall.Kill(stopped, syscall.SIGCONT) }()
	finds(t, sys, health.Failing, " writer", "engine", "ClickHouse does not answer", "start it")
}

// A disk is nearly full when it has less room than it should, a stream when it is near its bound.
func TestRoom(t *testing.T) {
	t.Parallel()
	c, client := external(t)
	c.Health.DiskFree = 1 << 62
	pipelinetest.Start(t, c)
	sys := doctor.System{Client: client}
	finds(t, sys, health.Warning, "/", "disk", "the disk of clickhouse", "make room")

	stream, err := client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	for cfg.MaxBytes = 4096; ; { // until it is nearly full
		msg := make([]byte, 300)
		if _, err := client.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), msg); err != nil {
			t.Fatal(err)
		}
		if stream, err = client.JS.Stream(t.Context(), broker.StreamAudit); err != nil {
			t.Fatal(err)
		}
		if stream.CachedInfo().State.Bytes > 4000 {
			break
		}
	}
	cfg.MaxBytes = int64(stream.CachedInfo().State.Bytes) + 10
	if _, err := client.JS.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Failing, "stream AUDIT", "room", "% full", "streams.audit_max_bytes")
}

// Roles that nobody has are missed, each by name; what the absent ones would have told is looked at all the same.
func TestRolesThatNobodyHas(t *testing.T) {
	t.Parallel()
	c, client := external(t)
	sys := doctor.System{Client: client}
	r, err := doctor.Look(t.Context(), sys)
	if err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, f := range r.Findings {
		if f.Check == "streams" && f.Reason == "it is not there" {
			missing += len(strings.Split(f.Where, ", ")) // all of them in one finding
		}
	}
	if r.OK || missing != len(broker.Streams()) {
		t.Errorf("%d streams are missed of %d: %+v", missing, len(broker.Streams()), r.Findings)
	}
	finds(t, sys, health.Failing, "processes", "processes", "no process of Kansa answers", "kansa up")

	pipelinetest.Start(t, c, pipeline.RoleExporter)
	finds(t, sys, health.Failing, "role writer", "processes", "no writer is running", "kansa run writer")
	finds(t, sys, health.Failing, "role rollup", "processes", "no hour is sealed", "kansa run rollup")
	finds(t, sys, health.Warning, "role gateway", "processes", "no gateway is running", "kansa run gateway")
	kv, err := client.JS.KeyValue(t.Context(), broker.BucketAccess)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&access.Store{KV: kv}).CreateKey(t.Context(), &access.Key{Name: "old", Role: access.Auditor, By: "a test", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Warning, "API keys", "keys", "the API key old expires", "make another")
	rolledUp, err := client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rolledUp.PutString(t.Context(), "blocked.acme.activity", "2026-11-22T04:00:00Z"); err != nil {
		t.Fatal(err)
	}
	finds(t, sys, health.Failing, "acme/activity/2026/11/22/04", "agreement", "disagree", "kansa repair")
}
