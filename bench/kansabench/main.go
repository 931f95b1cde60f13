// Command kansabench measures Kansa on this machine, beside the ceilings of the machine itself and beside
// its peers, in one run. README.md in the directory above says what each figure is and what bounds it.
//
// It starts everything it measures as processes of its own on loopback, keeps their files in a temporary
// directory that it removes, and touches nothing else but the results it writes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

type cli struct {
	Run  bench   `cmd:"" default:"withargs" help:"Measure, print a table and one line of JSON, and write both."`
	Part partCmd `cmd:"" hidden:"" help:"One process of the system under test; started by run."`
}

// bench is one run.
type bench struct {
	Quick    bool     `help:"Smaller numbers: under five minutes in all."`
	Only     []string `help:"Measure only these: ${measurements}."`
	Attack   []string `help:"In neighbor, attack only in these ways, such as 'live tails'; all if empty."`
	Pprof    string   `help:"Write CPU and allocation profiles of every process to this directory." type:"path"`
	Out      string   `help:"Where the dated results go." default:"bench/results" type:"path"`
	Telegraf string   `help:"The peer's program; make build/telegraf builds it." default:"build/telegraf" type:"path"`
	Temp     string   `help:"Where the temporary directory is made; it needs 40 GB in a full run." type:"path"`

	self   string // this program
	dir    string // temporary
	stderr io.Writer
	cancel context.CancelFunc // ends the run when nobody listens any more
	begun  time.Time
	result *result
}

// measurement is one of the things that are measured. It adds what it found to the result.
type measurement struct {
	name string
	run  func(*bench, context.Context) error
}

var measurements = []measurement{
	{"ingest", (*bench).ingest},
	{"peer", (*bench).peer},
	{"latency", (*bench).latency},
	{"query", (*bench).query},
	{"search", (*bench).search},
	{"rollup", (*bench).rollup},
	{"archive", (*bench).archive},
	{"upload", (*bench).upload},
	{"growth", (*bench).growth},
	{"neighbor", (*bench).neighbor},
}

func names() []string {
	all := make([]string, len(measurements))
	for i, m := range measurements {
		all[i] = m.name
	}
	return all
}

func main() {
	// The first signal asks to stop; the second one, by default, ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// Who reads our output may go away (| head): that must not end us before the files are removed. The
	// failed write tells of it too, and only that of our own output means that we should stop.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with everything handed to it; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c, kong.Name("kansabench"), kong.Vars{"measurements": strings.Join(names(), ", ")},
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }))
	if err != nil {
		fmt.Fprintln(stderr, "kansabench:", err)
		return 2
	}
	k, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintln(stderr, "kansabench:", err)
		return 2
	}
	if strings.HasPrefix(k.Command(), "part") {
		err = c.Part.run(ctx, stdin, stdout, stderr)
	} else {
		err = c.Run.run(ctx, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "kansabench:", err)
		return 1
	}
	return 0
}

func (b *bench) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	b.stderr, b.begun = stderr, time.Now()
	ctx, b.cancel = context.WithCancel(ctx)
	defer b.cancel()
	for _, name := range b.Only {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("there is no measurement %q: choose from %s", name, strings.Join(names(), ", "))
		}
	}
	if b.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if b.Pprof != "" {
		if err := os.MkdirAll(b.Pprof, 0o755); err != nil {
			return fmt.Errorf("make the directory of profiles: %w", err)
		}
	}
	if b.dir, err = os.MkdirTemp(b.Temp, "kansabench-"); err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.result = newResult(ctx, b)
	var failed []error
	for _, m := range measurements {
		if len(b.Only) > 0 && !slices.Contains(b.Only, m.name) {
			continue
		}
		b.say("== %s", m.name)
		if err := m.run(b, ctx); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// One that can't be had does not take the others with it, but the run has failed.
			failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
			b.result.fail(m.name, err)
			b.say("%s failed: %v", m.name, err)
		}
	}
	b.result.Seconds = time.Since(b.begun).Seconds()
	return errors.Join(append(failed, b.result.write(b.Out, stdout))...)
}

// say tells a person what goes on.
func (b *bench) say(format string, v ...any) {
	if _, err := fmt.Fprintf(b.stderr, "%6.1fs  %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, v...)); errors.Is(err, syscall.EPIPE) {
		b.cancel()
	}
}

// scale is what a run of its kind takes.
func scale[T any](b *bench, full, quick T) T {
	if b.Quick {
		return quick
	}
	return full
}
