package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mergeThreads is how the names of the threads begin that merge parts.
	mergeThreads = "MergeMutate"
	// mergeNice lets a merge have next to nothing where an insert or a query wants the processor, and all that is
	// idle. Without it, a large merge makes everybody wait on a small machine. Merges cannot starve for good: where
	// parts pile up, the engine itself holds inserts back.
	mergeNice = 19
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
