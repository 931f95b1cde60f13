package main

import (
	"fmt"
	"io"
	"strings"
)

// verdict is what a run comes to.
type verdict struct {
	lines    int
	passed   int
	failures []failure
	flaky    []failure
	skips    []skip
	retry    []attempt
}

// failure is one that nothing excuses, or a flaky test.
type failure struct {
	name, why, log string
}

// attempt is a test that failed and may run again.
type attempt struct {
	pkg, test, why, log string
}

func (v *verdict) fail(name, why, log string) {
	v.failures = append(v.failures, failure{name, why, log})
}

// report prints what failed and the counts. It returns whether the run passed.
func (v *verdict) report(w io.Writer, requireAll bool) bool {
	for _, f := range v.failures {
		fmt.Fprintf(w, "\n== FAILED %s: %s\n%s\n", f.name, f.why, strings.TrimRight(f.log, "\n"))
	}
	for _, f := range v.flaky {
		fmt.Fprintf(w, "\n== FLAKY %s: %s, and passed when it ran again alone\n%s\n", f.name, f.why, strings.TrimRight(f.log, "\n"))
	}
	if requireAll && len(v.skips) > 0 {
		fmt.Fprintf(w, "\n== SKIPPED: REQUIRE_ALL makes skipped tests failures\n")
	}
	for _, s := range v.skips {
		why := strings.ReplaceAll(s.why, "\n", "\n     ")
		if requireAll {
			fmt.Fprintf(w, "skipped %s %s\n     %s\n", short(s.pkg), s.name, why)
		}
	}
	fmt.Fprintln(w)
	for _, f := range v.failures {
		fmt.Fprintf(w, "FAILED %s: %s\n", f.name, f.why)
	}
	for _, f := range v.flaky {
		fmt.Fprintf(w, "FLAKY  %s: fix this test in the same change\n", f.name)
	}
	ok := len(v.failures) == 0 && (!requireAll || len(v.skips) == 0)
	if len(v.flaky) > 1 {
		fmt.Fprintf(w, "FAILED: %d tests are flaky; a run passes with at most one\n", len(v.flaky))
		ok = false
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped, %d flaky\n", v.passed, len(v.failures), len(v.skips), len(v.flaky))
	return ok
}
