package pipeline_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// begin starts a system that the test itself closes.
func begin(t *testing.T, c *config.Config) *pipeline.System {
	t.Helper()
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: c, Roles: []pipeline.Role{pipeline.RoleWriter, pipeline.RoleRollup}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// publishSome publishes for acme and returns when it is acknowledged.
func publishSome(t *testing.T, s *pipeline.System, source *sample.Source, n int) {
	t.Helper()
	p, err := producers.New(s.Client.JS, producers.Config{MaxEvents: 40})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		e := source.Next()
		e.Organization, e.Trail = "acme", schema.Activity
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// untilInPartitions waits until so many of acme's events are sealed. An hour that is just being written does not hold yet.
func untilInPartitions(t *testing.T, c *config.Config, want uint64) {
	t.Helper()
	o := optionsOf(t, filepath.Join(c.DataDir, "seal.pub"), nil)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		r, err := verify.Path(t.Context(), filepath.Join(c.DataDir, "partitions"), o)
		if err != nil || !r.OK {
			return false, err
		}
		rows := uint64(0)
		for _, s := range r.Series {
			if s.Organization == "acme" {
				rows += s.Rows
			}
		}
		return rows >= want, rows
	})
}

// sealed verifies what is sealed, when nobody writes any more.
func sealed(t *testing.T, c *config.Config, want uint64) {
	t.Helper()
	if got := rowsVerified(t, filepath.Join(c.DataDir, "partitions"), filepath.Join(c.DataDir, "seal.pub"), nil); got != want {
		t.Errorf("%d events are sealed, want %d", got, want)
	}
}

func accountsAgree(t *testing.T, s *pipeline.System) {
	t.Helper()
	report, err := repair.Ask(t.Context(), s.Client.NC, repair.Request{})
	if err != nil || len(report.Blocked) > 0 || len(report.Differences) > 0 {
		t.Errorf("the accounts do not agree: %+v, %v", report, err)
	}
}

// The cold backup of deploy/RUNBOOK.md: a copy of the data directory, restored elsewhere, verifies, and goes on where the
// original was: the chain is continued, and the accounts agree.
func TestRestoredSystemVerifies(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := begin(t, c)
	source := sample.New(61, nil)
	publishSome(t, s, source, 400)
	pipelinetest.UntilStored(t, s.Store, 400, time.Minute)
	untilInPartitions(t, c, 400)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	restored := *c
	restored.DataDir = filepath.Join(t.TempDir(), "elsewhere")
	if err := os.CopyFS(restored.DataDir, os.DirFS(c.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.DataDir); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"seal.key", filepath.Join("clickhouse", "credentials.json")} { // as tar -p does
		if err := os.Chmod(filepath.Join(restored.DataDir, secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sealed(t, &restored, 400) // before it starts
	s = begin(t, &restored)
	publishSome(t, s, source, 100)
	pipelinetest.UntilStored(t, s.Store, 500, time.Minute)
	untilInPartitions(t, &restored, 500)
	accountsAgree(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	sealed(t, &restored, 500)
}

// ClickHouse is lost, the rest is there: kansa replay has the writer store again what the stream holds, beside what came
// since, and nothing twice. What is sealed stays.
func TestLostClickHouseIsFilledAgain(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Writer.AckWait, c.Writer.InsertTimeout = 5*time.Second, time.Second
	s := begin(t, c)
	source := sample.New(71, nil)
	publishSome(t, s, source, 600)
	pipelinetest.UntilStored(t, s.Store, 600, time.Minute)
	untilInPartitions(t, c, 600)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(c.DataDir, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s = begin(t, c)
	publishSome(t, s, source, 50)
	pipelinetest.UntilStored(t, s.Store, 50, time.Minute)
	asked := make(chan error, 1)
	go func() { asked <- s.Client.Replay(t.Context()) }()
	select {
	case <-s.Failed(): // its consumers are gone; whoever watches it starts it again
	case <-time.After(time.Minute):
		t.Fatal("the writer goes on with consumers that are gone")
	}
	_ = s.Close()                                                // says why it ended
	await.Receive(t, await.Limit, "the replay to return", asked) //nolint:errcheck // cut off by that, perhaps: the start goes on with it
	s = begin(t, c)
	pipelinetest.UntilStored(t, s.Store, 650, time.Minute)
	untilInPartitions(t, c, 650)
	accountsAgree(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	sealed(t, c, 650)
}

// A broker that goes away while a process starts, with what it was asked unanswered, ends the start at once: whoever
// runs the process starts it again.
func TestBrokerGoesAwayDuringTheStart(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, MaxPayload: 8 << 20, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Shutdown()
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	// It takes every request, and dies of the first.
	if _, err := nc.Subscribe("$JS.API.>", func(*nats.Msg) { go s.Shutdown() }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	c := pipelinetest.Config(t)
	c.NATS.URL, c.NATS.AssumeSyncAlways = s.ClientURL(), true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // the request has 30 s
	defer cancel()
	_, err = pipeline.Start(ctx, pipeline.Options{Config: c, Roles: []pipeline.Role{pipeline.RoleExporter}, Logger: pipelinetest.Logger(t)})
	if !errors.Is(err, pipeline.ErrAway) {
		t.Errorf("got %v", err)
	}
}
