package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// try runs the tests of a module of the given files, of which each is a package's test file without its
// first lines. ONCE in it is a condition that is true once.
func try(t *testing.T, files map[string]string, change ...func(*options)) (passed bool, out string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.com/m\n\ngo 1.26\n")
	for pkg, text := range files {
		text = strings.ReplaceAll(text, "ONCE", "first(t)")
		imports := ""
		for _, name := range []string{"sync", "time"} {
			if strings.Contains(text, name+".") {
				imports += fmt.Sprintf("import %q\n", name)
			}
		}
		write(pkg+"/x_test.go", fmt.Sprintf(`package %s

import "os"
import "strings"
import "testing"
%s
func first(t *testing.T) bool {
	path := %q + strings.ReplaceAll(t.Name(), "/", "-")
	_, err := os.Stat(path)
	if err == nil {
		return false
	}
	return os.WriteFile(path, nil, 0o600) == nil
}

%s
`, pkg, imports, dir+"/once.", text))
	}
	var b bytes.Buffer
	o := options{
		Dir: dir, Packages: []string{"./..."}, Timeout: 2 * time.Minute, Rerun: time.Minute, Total: 4 * time.Minute, Grace: 10 * time.Second,
		Heartbeat: time.Minute, Lines: 100, Out: &b,
	}
	for _, c := range change {
		c(&o)
	}
	passed = run(t.Context(), o)
	out = b.String()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("| " + strings.ReplaceAll(out, "\n", "\n| ")) // the mark keeps a report in it from being taken for one of this test
		}
	})
	return passed, out
}

// has checks what a run printed.
func has(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !regexp.MustCompile(w).MatchString(out) {
			t.Errorf("the output has no %q", w)
		}
	}
}

const good = `
func TestGood(t *testing.T) { t.Log("said by the good one") }
`

func TestSkipsFailOnlyWhenAllIsRequired(t *testing.T) {
	t.Parallel()
	const text = good + `
func TestSkipped(t *testing.T) { t.Run("sub", func(t *testing.T) { t.Skip("no such tool") }) }
`
	passed, out := try(t, map[string]string{"a": text, "b": good})
	if !passed || strings.Contains(out, "said by") {
		t.Errorf("a run without failures: %v", passed)
	}
	has(t, out, `(?m)^ok    example.com/m/a .* 2 tests$`, `\n3 passed, 0 failed, 1 skipped, 0 flaky\n$`)
	passed, out = try(t, map[string]string{"a": text}, func(o *options) { o.RequireAll = true })
	if passed {
		t.Error("a skipped test passed, although all are required")
	}
	has(t, out, `skipped example.com/m/a TestSkipped/sub\n.*no such tool`, `\n2 passed, 0 failed, 1 skipped, 0 flaky\n$`)
}

func TestFlakyTestPassesWithBothLogs(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": good + `
func TestOnce(t *testing.T) {
	t.Run("sub", func(t *testing.T) { if ONCE { t.Fatal("the minute was slow") } })
	t.Log("at the end")
}
`})
	if !passed {
		t.Error("one flaky test failed the run")
	}
	has(t, out, `== FLAKY example.com/m/a TestOnce: failed`, `the minute was slow(?s:.*)second run, alone: passed`, `second run(?s:.*)at the end`,
		`FLAKY  example.com/m/a TestOnce: fix`, `\n1 passed, 0 failed, 0 skipped, 1 flaky\n$`)
}

func TestTwoFlakyTestsFail(t *testing.T) {
	t.Parallel()
	const text = `func TestOnce(t *testing.T) { if ONCE { t.Fatal("slow") } }`
	passed, out := try(t, map[string]string{"a": text, "b": strings.ReplaceAll(text, "TestOnce", "TestToo")})
	if passed {
		t.Error("two flaky tests passed")
	}
	has(t, out, `FAILED: 2 tests are flaky`, `\n0 passed, 0 failed, 0 skipped, 2 flaky\n$`)
}

func TestFailingTwiceFailsWithBothLogs(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": good + `
func TestBad(t *testing.T) { if ONCE { t.Fatal("reason one") }; t.Fatal("reason two") }
`})
	if passed {
		t.Error("it passed")
	}
	has(t, out, `(?m)^--- FAIL example.com/m/a TestBad \(`, `(?m)^FAIL  example.com/m/a .*: 1 of 2 tests failed$`,
		`== FAILED example.com/m/a TestBad: failed after .*again(?s:.*)reason one(?s:.*)reason two`, `\n1 passed, 1 failed, 0 skipped, 0 flaky\n$`)
}

// The test that hung is named, and the other tests of its package run afterwards.
func TestHungTestIsNamedWithItsGoroutine(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": `
func TestBefore(t *testing.T) {}
func TestHangs(t *testing.T) { t.Run("sub", func(t *testing.T) { waitsForever(make(chan int)) }) }
func waitsForever(ch chan int) { <-ch }
func TestAfter(t *testing.T) { t.Log("after") }
func TestAfterBad(t *testing.T) { if ONCE { t.Fatal("bad") } }
`}, func(o *options) { o.Timeout, o.Rerun = 3*time.Second, 2*time.Second })
	if passed {
		t.Error("a test that hangs passed")
	}
	has(t, out, `(?m)^--- HUNG example.com/m/a TestHangs: hung for [23][.0-9]*s \(in TestHangs/sub\)$`, `goroutine \d+ \[chan receive(?s:.*)m/a\.waitsForever(?s:.*)x_test.go`,
		`== FAILED example.com/m/a TestHangs: hung for`, `second run, alone: hung for [12][.0-9]*s`, `\n2 passed, 1 failed, 0 skipped, 1 flaky\n$`)
}

func TestHangingOnceIsFlaky(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": good + `
func TestHangs(t *testing.T) { if ONCE { select {} } }
`}, func(o *options) { o.Timeout = 3 * time.Second })
	if !passed {
		t.Error("it failed")
	}
	has(t, out, `== FLAKY example.com/m/a TestHangs: hung for`, `\n1 passed, 0 failed, 0 skipped, 1 flaky\n$`)
}

func TestPanicIsNeverFlaky(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": `
func TestPanics(t *testing.T) { if ONCE { panic("at the disco") } }
`, "b": `
func TestPanicsElsewhere(t *testing.T) { if ONCE { go func() { panic("in the background") }(); time.Sleep(time.Minute) } }
`})
	if passed {
		t.Error("panics passed")
	}
	has(t, out, `== FAILED example.com/m/a TestPanics: panic\n(?s:.*)at the disco`, `== FAILED example.com/m/b( TestPanicsElsewhere)?: panic\n(?s:.*)in the background`,
		`\n0 passed, 2 failed, 0 skipped, 0 flaky\n$`)
}

func TestRaceIsNeverFlaky(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{"a": good + `
func TestRaces(t *testing.T) {
	if !ONCE { return }
	n := 0
	var w sync.WaitGroup
	for range 2 { w.Go(func() { n++ }) }
	w.Wait()
}
`}, func(o *options) { o.Race = true })
	if passed {
		t.Error("a race passed")
	}
	has(t, out, `== FAILED example.com/m/a TestRaces: data race\n(?s:.*)WARNING: DATA RACE`, `\n1 passed, 1 failed, 0 skipped, 0 flaky\n$`)
}

func TestPackagesThatDoNotRunFail(t *testing.T) {
	t.Parallel()
	passed, out := try(t, map[string]string{
		"a": good,
		"b": `func TestNot(t *testing.T) { undefinedName() }`,
		"c": good + `func TestMain(m *testing.M) { m.Run(); println("it leaks"); os.Exit(1) }`,
		"d": good + `func TestExits(t *testing.T) { println("it exits"); os.Exit(3) }`,
	})
	if passed {
		t.Error("it passed")
	}
	has(t, out, `(?m)^FAIL  example.com/m/b: does not build$`, `== FAILED example.com/m/b: does not build\n(?s:.*)undefinedName`,
		`== FAILED example.com/m/c: the process of its tests failed(?s:.*)it leaks`, `== FAILED example.com/m/d: the process(?s:.*)TestExits did not end(?s:.*)it exits`,
		`\n3 passed, 3 failed, 0 skipped, 0 flaky\n$`)
	passed, out = try(t, map[string]string{"a": good}, func(o *options) { o.Packages = []string{"./nothere"} })
	if passed {
		t.Error("a package that is not there passed")
	}
	has(t, out, `nothere`, `\n0 passed, 1 failed, 0 skipped, 0 flaky\n$`)
}

// At the limit of the whole run, and at a signal, it ends with the stacks of the tests that were running.
func TestRunEndsAtItsLimit(t *testing.T) {
	t.Parallel()
	const text = good + `func TestHangs(t *testing.T) { println("begun"); select {} }`
	began := time.Now()
	passed, out := try(t, map[string]string{"a": text}, func(o *options) { o.Total = 15 * time.Second })
	if passed || time.Since(began) > time.Minute {
		t.Errorf("%v after %s", passed, time.Since(began))
	}
	has(t, out, `== FAILED run: the run did not end within 15s`, `== FAILED example.com/m/a TestHangs: hung for .*did not run again(?s:.*)goroutine(?s:.*)a\.TestHangs`,
		`\n1 passed, 2 failed, 0 skipped, 0 flaky\n$`)
}

func TestWrongFlagsAreExplained(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if code := command([]string{"-nonsense"}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "-total") {
		t.Errorf("%d %s", code, errs.String())
	}
	errs.Reset()
	if code := command([]string{"--help"}, &out, &errs); code != 0 || !strings.Contains(errs.String(), "Usage: testrun") {
		t.Errorf("%d %s", code, errs.String())
	}
}

func TestPackagesThatRunAloneRunLast(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"a": `func TestA(t *testing.T) { if _, err := os.Stat("../done"); err != nil { t.Fatal(err) } }`,
		"b": `func TestB(t *testing.T) { time.Sleep(time.Second); if err := os.WriteFile("../done", nil, 0o600); err != nil { t.Fatal(err) } }`,
	}
	passed, out := try(t, files, func(o *options) { o.Alone = []string{"./a"} })
	if !passed {
		t.Error("it failed")
	}
	has(t, out, `2 passed, 0 failed`)
}
