package await

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a test that may fail.
type fake struct {
	testing.TB
	said string
}

func (*fake) Helper() {}
func (f *fake) Fatal(args ...any) {
	f.said = fmt.Sprint(args...)
	runtime.Goexit()
}

// fails returns what a test says that fails.
func fails(t *testing.T, wait func(t testing.TB)) string {
	t.Helper()
	f := &fake{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait(f)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the wait has no limit")
	}
	return f.said
}

func TestWaitsEndAtTheirLimit(t *testing.T) {
	t.Parallel()
	const limit = 30 * time.Millisecond
	var group sync.WaitGroup
	group.Add(1)
	defer group.Done()
	for name, wait := range map[string]func(t testing.TB){
		"true":    func(t testing.TB) { True(t, limit, "the hour is sealed", func() bool { return false }) },
		"state":   func(t testing.TB) { State(t, limit, "the hour is sealed", func() (bool, any) { return false, 7 }) },
		"receive": func(t testing.TB) { Receive(t, limit, "the hour is sealed", make(chan int)) },
		"return":  func(t testing.TB) { Return(t, limit, "the hour is sealed", group.Wait) },
	} {
		said := fails(t, wait)
		if !strings.HasPrefix(said, "waited ") || !strings.Contains(said, "ms for: the hour is sealed") {
			t.Errorf("%s: %q", name, said)
		}
		if name == "state" && !strings.HasSuffix(said, "; last seen: 7") {
			t.Errorf("%s: %q", name, said)
		}
	}
}

func TestWaitsEndWhenWhatTheyWaitForIsThere(t *testing.T) {
	t.Parallel()
	n := 0
	True(t, Limit, "the third look", func() bool { n++; return n == 3 })
	ch := make(chan int, 1)
	ch <- 5
	if v := Receive(t, Limit, "a value", ch); v != 5 || n != 3 {
		t.Error(v, n)
	}
	close(ch)
	if v := Receive(t, Limit, "the end", ch); v != 0 {
		t.Error(v)
	}
	Return(t, Limit, "nothing", func() {})
}

func TestFailureOfUnnamedWaitShowsItsSource(t *testing.T) {
	t.Parallel()
	said := fails(t, func(t testing.TB) {
		Unnamed(t, time.Millisecond, 0, func() (bool, any) {
			return 7 > 8, "seven"
		})
	})
	if !strings.Contains(said, " for: Unnamed(t, time.Millisecond") || !strings.HasSuffix(said, "\treturn 7 > 8, \"seven\"\n}); last seen: seven") {
		t.Errorf("%q", said)
	}
}
