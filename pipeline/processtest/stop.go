// Package processtest does to processes what tests need.
//
// It is for tests alone.
package processtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Stop stops a process by SIGSTOP, and waits until each of its threads has: the signal is one thread's, which the machine
// may keep waiting, and the others go on until then.
func Stop(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Minute); ; <-tick.C {
		thread := running(t, pid)
		if thread == "" {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("it does not stop: %s", thread)
		}
	}
}

// running is what the system says of a thread that goes on. Empty where the system says nothing of threads.
func running(t testing.TB, pid int) string {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil { // it has ended
			continue
		}
		if _, state, ok := strings.Cut(string(text), ") "); ok && !strings.HasPrefix(state, "T") {
			return string(text)
		}
	}
	return ""
}
