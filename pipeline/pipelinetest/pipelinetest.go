// Package pipelinetest starts whole systems for tests: the real broker, the real engine, short hours, free
// ports.
package pipelinetest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/store"
)

// engineEnv makes a test binary the engine's process.
const engineEnv = "KANSA_TEST_ENGINE"

// Main is for TestMain: in the engine's process it serves and does not return.
func Main() {
	if os.Getenv(engineEnv) == "" {
		return
	}
	if err := engine.Main(context.Background(), os.Stdin, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// EngineCommand runs this test binary as the engine's process. It needs Main in TestMain.
func EngineCommand(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"/usr/bin/env", engineEnv + "=1", self}
}

// Config is the default one on free ports with hours of a second.
func Config(t testing.TB) *config.Config {
	t.Helper()
	c := config.Default()
	c.DataDir, c.NATS.Port, c.API.Listen, c.Health.Listen = t.TempDir(), 0, "127.0.0.1:0", "127.0.0.1:0"
	c.Rollup.Hour = time.Second
	c.Exports.Allow.Networks = []string{"127.0.0.0/8", "::1/128"} // where a test's servers are
	return c
}

// Logger writes to the test's log, from warnings on.
func Logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// Start starts a system, which ends with the test.
func Start(t testing.TB, c *config.Config, roles ...pipeline.Role) *pipeline.System {
	t.Helper()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if len(roles) == 0 {
		roles = pipeline.Roles
	}
	s, err := pipeline.Start(t.Context(), pipeline.Options{Config: c, Roles: roles, EngineCommand: EngineCommand(t), Logger: Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the system: %v", err)
		}
	})
	return s
}

// Until waits for a condition that comes about by itself, and fails the test if it does not in time. The
// condition says what it saw. The failure names the wait by its source; await.State has a name for it.
func Until(t testing.TB, limit time.Duration, condition func() (done bool, saw any)) {
	t.Helper()
	await.Unnamed(t, limit, 1, condition)
}

// Stored returns the number of rows and of different ids in the table, without what the system recorded of itself. After a failure of the engine it
// may take a moment to answer, so an error is no failure here.
func Stored(t testing.TB, s *store.Store) (rows, distinct uint64, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = s.Conn().QueryRow(ctx, "SELECT count(), uniqExact(id) FROM audit_events WHERE source != '"+owntrail.Source+"'").Scan(&rows, &distinct)
	return rows, distinct, err
}

// UntilStored waits until so many events are stored, each once.
func UntilStored(t testing.TB, s *store.Store, want uint64, limit time.Duration) {
	t.Helper()
	Until(t, limit, func() (bool, any) {
		rows, distinct, err := Stored(t, s)
		return err == nil && distinct >= want, []any{rows, distinct, err}
	})
	rows, distinct, err := Stored(t, s)
	if err != nil || rows != want || distinct != want {
		t.Fatalf("%d rows, %d different, error %v; want %d of each", rows, distinct, err, want)
	}
}
