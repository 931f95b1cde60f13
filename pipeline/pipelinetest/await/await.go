// Package await has the waits of tests. Each has a limit, and names what it waits for.
//
// It owns how a test waits, and what a test that waited in vain reports. It never decides what is awaited.
package await

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Limit is for what takes less than a second on a machine that has time, and much longer on one that does not.
const Limit = 2 * time.Minute

// least is the pause between two looks at a condition. After one that takes long, the pause is twice as long as it took: what is awaited
// needs the processors.
const least = 10 * time.Millisecond

// True waits until holds returns true. It fails the test after limit. It polls, so that it can wait for anything.
func True(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	State(t, limit, what, func() (bool, any) { return holds(), nil })
}

// State waits as True does. The condition also returns what it saw, which the failure reports.
func State(t testing.TB, limit time.Duration, what string, condition func() (done bool, saw any)) {
	t.Helper()
	poll(t, limit, func() string { return what }, condition)
}

// Unnamed waits as State does. The failure shows the source of a call in place of a name: skip 0 is the caller of Unnamed.
func Unnamed(t testing.TB, limit time.Duration, skip int, condition func() (done bool, saw any)) {
	t.Helper()
	_, path, line, _ := runtime.Caller(skip + 1)
	poll(t, limit, func() string { return source(path, line) }, condition)
}

func poll(t testing.TB, limit time.Duration, what func() string, condition func() (done bool, saw any)) {
	t.Helper()
	began := time.Now()
	for {
		looked := time.Now()
		done, saw := condition()
		if done {
			return
		}
		if passed := time.Since(began); passed >= limit {
			t.Fatal(failure(passed, what(), saw))
		}
		time.Sleep(max(least, 2*time.Since(looked)))
	}
}

// Receive returns the next value of ch; the zero value when ch is closed. It fails the test after limit.
func Receive[T any](t testing.TB, limit time.Duration, what string, ch <-chan T) T {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	select {
	case v := <-ch:
		return v
	case <-deadline.C:
		t.Fatal(failure(limit, what, nil))
		panic("unreachable")
	}
}

// Return waits until wait returns, as the Wait of a sync.WaitGroup does. It fails the test after limit, and wait goes on.
func Return(t testing.TB, limit time.Duration, what string, wait func()) {
	t.Helper()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		wait()
	}()
	Receive(t, limit, what, returned)
}

func failure(after time.Duration, what string, saw any) string {
	text := fmt.Sprintf("waited %s for: %s", after.Round(time.Millisecond), what)
	if saw != nil {
		text += fmt.Sprintf("; last seen: %v", saw)
	}
	return text
}

// source returns the source of a call.
func source(path string, line int) string {
	const most = 12
	text, err := os.ReadFile(path)
	lines := strings.Split(string(text), "\n")
	if err != nil || line < 1 || line > len(lines) {
		return fmt.Sprintf("the condition of %s:%d", path, line)
	}
	lines = lines[line-1:]
	indent := lines[0][:len(lines[0])-len(strings.TrimLeft(lines[0], "\t"))]
	end := 1
	if strings.HasSuffix(lines[0], "{") {
		for end < min(most, len(lines)) && !strings.HasPrefix(lines[end-1], indent+"}") {
			end++
		}
	}
	return strings.TrimPrefix(strings.ReplaceAll(strings.Join(lines[:end], "\n"), "\n"+indent, "\n"), indent)
}
