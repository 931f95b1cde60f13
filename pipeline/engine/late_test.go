package engine

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/processtest"
)

// An insert that was under way for longer than its client waited is not begun any more, whatever held it up.
func TestInsertThatComesTooLateIsNotBegun(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	conn := open(t, e, nil)
	run(t, conn, "CREATE TABLE late (n UInt64) ENGINE = MergeTree ORDER BY n")
	insert := func(ctx context.Context, until time.Time) error {
		return conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"log_comment": Until(until)})), "INSERT INTO late VALUES (1)")
	}
	count := func() (n uint64) {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"log_comment": AfterLate}))
		if err := conn.QueryRow(ctx, "SELECT count() FROM late").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := insert(t.Context(), time.Now().Add(-time.Millisecond)); err == nil || !strings.Contains(err.Error(), "TIMEOUT_EXCEEDED") {
		t.Errorf("got %v, want a refusal", err)
	}
	if err := insert(t.Context(), time.Now().Add(time.Minute)); err != nil {
		t.Error(err)
	}
	// The engine's process is stopped, and goes on with what has reached it meanwhile.
	processtest.Stop(t, e.PID())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	until, _ := ctx.Deadline()
	if err := insert(ctx, until); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v from an engine that is stopped", err)
	}
	if err := syscall.Kill(e.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 20 { // it may come in a moment
		if n := count(); n != 1 {
			t.Fatalf("%d rows, want that of the insert that came in time", n)
		}
		<-tick.C
	}
}

func TestLookingWaitsForLateInserts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var i inserts
		soon, err := i.begin(time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		defer soon()
		if err := i.wait(t.Context(), AfterLate); err != nil {
			t.Errorf("waited for one that has its time: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := i.wait(ctx, ""); err != nil {
			t.Errorf("waited without being asked to: %v", err)
		}
		if err := i.wait(ctx, AfterInserts); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("did not wait for all: %v", err)
		}
		late, err := i.begin(time.Now().Add(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := i.wait(ctx, AfterLate); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("did not wait: %v", err)
		}
		late()
		if err := i.wait(t.Context(), AfterLate); err != nil {
			t.Error(err)
		}
		if _, err := i.begin(time.Now().Add(-time.Second)); err == nil {
			t.Error("began too late")
		}
		if len(i.running) != 1 {
			t.Errorf("%d are under way, want the first", len(i.running))
		}
	})
}
