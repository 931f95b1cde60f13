package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// niceThreads counts the threads of a process with a nice value, without those that merge.
func niceThreads(t *testing.T, pid int, nice string) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		name, rest := stat[strings.IndexByte(string(stat), '('):], string(stat[strings.LastIndexByte(string(stat), ')')+2:])
		if fields := strings.Fields(rest); !strings.HasPrefix(string(name), "("+mergeThreads[:10]) && fields[16] == nice { // field 19 of proc_pid_stat(5)
			n++
		}
	}
	return n
}

// The threads of a query that is to give way have its nice value, and none afterwards. Where they could not return, the setting is ignored.
func TestQueriesGiveWay(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	conn := open(t, e, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		slow := clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{SettingNice: 15}))
		ended <- conn.Exec(slow, "SELECT sum(sipHash64(number)) FROM numbers_mt(100000000000) FORMAT Null")
	}()
	if mayYield() {
		await.True(t, await.Limit, "a thread of the query to give way", func() bool { return niceThreads(t, e.PID(), "15") > 0 })
	} else {
		await.True(t, await.Limit, "the query to run", func() bool {
			var n uint64
			err := conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query LIKE '%numbers_mt%' AND query NOT LIKE '%system.processes%'").Scan(&n)
			return err == nil && n > 0
		})
		if n := niceThreads(t, e.PID(), "15"); n > 0 {
			t.Errorf("%d threads cannot return to their priority", n)
		}
	}
	cancel()
	await.Receive(t, await.Limit, "the query to end", ended) //nolint:errcheck // it was canceled
	await.True(t, await.Limit, "threads that gave way to return to their priority", func() bool { return niceThreads(t, e.PID(), "15") == 0 })
}
