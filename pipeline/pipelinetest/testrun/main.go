// Command testrun runs the tests of the repository: make test is this program.
//
// It owns the limits of a run, and the decision whether the run passed. It never changes what a test checks.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const help = `Usage: testrun [flags] [packages]

Runs go test -json and reports packages and failures as they come. The last line is
"N passed, M failed, K skipped, F flaky". Without packages it tests ./...

A test that fails runs once more, alone. If it passes then, it is FLAKY: both logs are
printed, and the change that is being tested should fix it. The run fails if
  - a test fails twice, or two tests or more are flaky
  - a package does not build, or its process ends in any other way without an outcome
  - there is a data race or a panic, whatever happens when the test runs again
  - a test is skipped, with -require-all

A test that hangs fails with its name, how long it ran and the goroutine it is in. The
other tests of its package run afterwards. The whole run ends at -total; at the first
SIGINT or SIGTERM it ends in the same way, at the second at once.

Exit codes: 0 passed, 1 failed, 2 wrong usage.

Flags:
`

// options of a run.
type options struct {
	Dir        string // default the current one
	Packages   []string
	Alone      []string      // packages whose tests run after the others, one package at a time
	Run        string        // pattern of tests
	Timeout    time.Duration // of a package
	Rerun      time.Duration // of a test that runs again
	Total      time.Duration // of everything
	Grace      time.Duration // between asking for stacks and killing
	Heartbeat  time.Duration
	Race       bool
	RequireAll bool
	Lines      int
	Flags      []string
	Out        io.Writer
}

// mostReruns bounds the reruns: more failures than this have one cause, and two flaky tests fail the run anyway.
const mostReruns = 10

func main() { os.Exit(command(os.Args[1:], os.Stdout, os.Stderr)) }

func command(args []string, stdout, stderr io.Writer) int {
	o := options{Out: stdout, Grace: 20 * time.Second, Heartbeat: time.Minute}
	flags := flag.NewFlagSet("testrun", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), help)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.Run, "run", "", "run the tests that match this `pattern`, as go test -run")
	flags.DurationVar(&o.Timeout, "timeout", 20*time.Minute, "`limit` of the tests of one package")
	flags.DurationVar(&o.Rerun, "rerun", 4*time.Minute, "`limit` of one test that runs again")
	flags.DurationVar(&o.Total, "total", 45*time.Minute, "`limit` of the whole run, reruns included")
	flags.BoolVar(&o.Race, "race", true, "detect data races")
	flags.BoolVar(&o.RequireAll, "require-all", os.Getenv("REQUIRE_ALL") != "", "fail if a test is skipped; default true if REQUIRE_ALL is set")
	flags.IntVar(&o.Lines, "lines", 120, "print the last `n` lines of a log")
	lone := flags.String("alone", "", "run the tests of these `packages` after the others, one package at a time; separated by spaces, as ./path")
	more := flags.String("flags", "", "more `flags` of go test, separated by spaces")
	switch err := flags.Parse(args); {
	case err == flag.ErrHelp: //nolint:errorlint // the flag package returns it as it is
		return 0
	case err != nil:
		return 2
	}
	o.Packages, o.Flags, o.Alone = flags.Args(), strings.Fields(*more), strings.Fields(*lone)
	if len(o.Packages) == 0 {
		o.Packages = []string{"./..."}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program
	if !run(ctx, o) {
		return 1
	}
	return 0
}
