package pipeline_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// publish publishes n events and calls half when half of them are taken. Every one is acknowledged.
func publish(t *testing.T, s *pipeline.System, seed uint64, n int, half func()) {
	t.Helper()
	p, err := producers.New(s.Client.JS, producers.Config{MaxEvents: 500, Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	source := sample.New(seed, nil)
	for i := range n {
		if i == n/2 && half != nil {
			half()
		}
		if _, err := p.PublishAsync(t.Context(), source.Next()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := p.Stats().Acked; got != uint64(n) {
		t.Fatalf("%d of %d acknowledged", got, n)
	}
}

const many = 200_000

func TestKillTheEngine(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	publish(t, s, 1, many, func() {
		if err := syscall.Kill(s.Engine.PID(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	pipelinetest.UntilStored(t, s.Store, many, 5*time.Minute)
	if s.Engine.Restarts() == 0 {
		t.Error("the engine was not killed")
	}
}

// A whole system is stopped in the middle and started again on the same data.
func TestStopAndStart(t *testing.T) {
	t.Parallel()
	cfg := pipelinetest.Config(t)
	first, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: cfg, Roles: []pipeline.Role{pipeline.RoleWriter}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, first, 2, many/4, nil)
	begin := time.Now()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	second := pipelinetest.Start(t, cfg, pipeline.RoleWriter)
	pipelinetest.UntilStored(t, second.Store, many/4, 5*time.Minute)
}

// Two publishers publish the same events in the same order: they are stored once.
func TestSameEventsTwice(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	events := sample.New(3, nil)
	const n = 3000
	first, err := producers.New(s.Client.JS, producers.Config{Linger: time.Hour, MaxEvents: 100})
	if err != nil {
		t.Fatal(err)
	}
	second, err := producers.New(s.Client.JS, producers.Config{Linger: time.Hour, MaxEvents: 100})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		e := events.Next()
		for _, p := range []*producers.Publisher{first, second} {
			if _, err := p.PublishAsync(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range []*producers.Publisher{first, second} {
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pipelinetest.UntilStored(t, s.Store, n, time.Minute)
}

// An engine that dies again and again, however often it is started, takes the process with it: whoever watches
// that starts it anew, or is told.
func TestSystemEndsWithItsEngine(t *testing.T) {
	t.Parallel()
	library, err := engine.FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := pipelinetest.Config(t)
	cfg.Engine.Library = filepath.Join(t.TempDir(), "libchdb.so")
	if library, err = filepath.Abs(library); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(library, cfg.Engine.Library); err != nil {
		t.Fatal(err)
	}
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: cfg, Roles: []pipeline.Role{pipeline.RoleWriter}, EngineCommand: pipelinetest.EngineCommand(t), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(cfg.Engine.Library); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Engine.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Failed():
	case <-time.After(2 * time.Minute):
		t.Error("it runs on without its engine")
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "the embedded engine is gone") {
		t.Errorf("it ends with %v", err)
	}
}
