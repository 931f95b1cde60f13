package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// servers are a broker and an engine of their own, as kansa run needs them.
type servers struct {
	broker *brokertest.Restartable
	client *broker.Client
	engine *engine.Engine
	store  *store.Store
	config string // file
	dir    string
}

func startServers(t *testing.T) *servers {
	t.Helper()
	s := &servers{dir: t.TempDir(), broker: brokertest.StartRestartable(t, nil)}
	var err error
	s.engine, err = engine.Start(t.Context(), engine.Options{
		Dir: filepath.Join(s.dir, "engine"), Command: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.engine.Close() })
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte(s.engine.Password()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.config = filepath.Join(s.dir, "kansa.yaml")
	text := fmt.Sprintf(`data_dir: %s
nats: {url: %q, assume_sync_always: true}
clickhouse: {url: %q, username: %s, password_file: %s}
writer: {ack_wait: 10s, insert_timeout: 4s}
rollup: {hour: 1s}
api: {listen: "127.0.0.1:0"}
exports: {allow: {networks: [127.0.0.0/8, "::1/128"]}}
`, filepath.Join(s.dir, "data"), s.broker.URL(), s.engine.URL(), s.engine.Username(), password)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.client, err = broker.Connect(t.Context(), broker.Options{URL: s.broker.URL(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	s.store, err = store.Open(t.Context(), store.Options{URL: s.engine.URL(), Username: s.engine.Username(), Password: s.engine.Password()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	return s
}

// untilSetUp waits until a role has made the streams.
func (s *servers) untilSetUp(t *testing.T) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.client.JS.Consumer(ctx, broker.StreamAudit, broker.ConsumerWriter)
		return err == nil, err
	})
}

// publish publishes n events, and calls at when a share of them is taken.
func (s *servers) publish(t *testing.T, n int, at map[int]func()) {
	t.Helper()
	p, err := producers.New(s.client.JS, producers.Config{MaxEvents: 400, Logger: pipelinetest.Logger(t), RetryFor: 90 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	source := sample.New(5, nil)
	for i := range n {
		if f := at[i]; f != nil {
			f()
		}
		if _, err := p.PublishAsync(t.Context(), source.Next()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

const many = 200_000

// The writer's process is killed in the middle, twice; another one takes over. Every acknowledged event is
// stored exactly once.
func TestKillTheWriter(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	first, _ := start(t, "run", "writer", "--config", s.config)
	s.untilSetUp(t)
	second := first
	s.publish(t, many, map[int]func(){
		many / 3: func() {
			if err := first.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			second, _ = start(t, "run", "writer", "--config", s.config)
		},
		2 * many / 3: func() {
			if err := second.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			start(t, "run", "writer", "--config", s.config)
		},
	})
	pipelinetest.UntilStored(t, s.store, many, 5*time.Minute)
}

// NATS is stopped in the middle and started again on the same port and files.
func TestRestartTheBroker(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	_, out := start(t, "run", "writer", "rollup", "--config", s.config)
	// A process that loses the broker while it starts ends, for its service manager to start it again.
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return strings.Contains(out.String(), "is up"), out })
	s.publish(t, many, map[int]func(){many / 2: func() {
		s.broker.Stop()
		s.broker.Start(t)
	}})
	pipelinetest.UntilStored(t, s.store, many, 5*time.Minute)
}

// SIGTERM drains and ends within seconds, and nothing acknowledged is lost by it.
func TestTermDrains(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	first, out := start(t, "run", "writer", "rollup", "exporter", "api", "--config", s.config)
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return strings.Contains(out.String(), "is up"), out })
	s.publish(t, many/4, map[int]func(){many / 8: func() {
		if err := first.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}})
	ended := make(chan error, 1)
	go func() { ended <- first.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ends with %v:\n%s", err, out)
		}
	case <-time.After(time.Minute):
		t.Fatalf("it does not end:\n%s", out)
	}
	start(t, "run", "writer", "--config", s.config)
	pipelinetest.UntilStored(t, s.store, many/4, 5*time.Minute)
}
