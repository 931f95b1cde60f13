package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mergeThreads is how the names of the threads begin that merge parts.
	mergeThreads = "MergeMutate"
	// mergeNice lets a merge have a tenth of what an insert or a query has that wants the processor, and all that is idle. Without it,
	// a large merge makes everybody wait on a small machine. With 19, merges starve on a busy one, and each query reads more parts.
	mergeNice = 10
)

// yieldMerges makes the engine's merges give way to its inserts and queries, until ctx ends. Threads come as
// they are needed, so it looks again and again.
func yieldMerges(ctx context.Context, log *slog.Logger) {
	done := map[int]bool{}
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		if err := yieldOnce(done); err != nil {
			log.Warn("merges do not give way to inserts", slog.Any("error", err))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// mayYield tells whether queries may lower the priority of their threads, which ClickHouse raises again when a query has ended. That
// takes CAP_SYS_NICE, or a limit (RLIMIT_NICE) that permits it. A process that may do only the first half would slow down its threads for good.
func mayYield() bool {
	may := make(chan bool)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, so its priority does not matter then
		may <- unix.Setpriority(unix.PRIO_PROCESS, 0, mergeNice) == nil && unix.Setpriority(unix.PRIO_PROCESS, 0, 0) == nil
	}()
	return <-may
}

// yieldOnce treats the threads that are not done yet.
func yieldOnce(done map[int]bool) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list the threads: %w", err)
	}
	there := make(map[int]bool, len(tasks))
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		there[id] = true
		if done[id] {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc/self/task", task.Name(), "comm"))
		if err != nil {
			continue // it has ended
		}
		// The kernel keeps 15 bytes of a name.
		if strings.HasPrefix(strings.TrimSpace(string(name)), mergeThreads[:10]) {
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, mergeNice); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("lower the priority of thread %d: %w", id, err)
			}
			done[id] = true
		}
	}
	for id := range done {
		if !there[id] {
			delete(done, id) // its number may come again
		}
	}
	return nil
}
