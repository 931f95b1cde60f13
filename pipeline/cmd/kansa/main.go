// Command kansa is the whole of Kansa: the pipeline and the tools around it, one file a subcommand.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/loglimit"
	"github.com/kansa-audit/kansa/pipeline/verify"
)

// version is set by the linker.
var version = "devel"

type cli struct {
	Up           upCmd           `cmd:"" help:"Run everything on this machine: broker, engine, writer, rollup, exporter, API, gateway."`
	Run          runCmd          `cmd:"" help:"Run chosen roles against NATS and ClickHouse servers of your own."`
	Publish      publishCmd      `cmd:"" help:"Publish events from files or standard input."`
	Mapping      mappingCmd      `cmd:"" help:"Translate records of other systems: list and show built-in mappings, test one."`
	Export       exportCmd       `cmd:"" help:"Ask for archives and see how they are doing."`
	Destination  destinationCmd  `cmd:"" help:"Say where archives go: add, edit, test, list, pause, resume, remove."`
	Organization organizationCmd `cmd:"" help:"Rules of an organization: what is exported, how often, how long it is kept."`
	Apikey       apikeyCmd       `cmd:"" help:"Make, list and revoke API keys of publishers, auditors and admins."`
	Analyst      analystCmd      `cmd:"" help:"Accounts that query ClickHouse with read-only SQL: add, list, show, remove."`
	Trail        trailCmd        `cmd:"" help:"Switch the trails of an organization on and off, and see when they were off."`
	Verify       verifyCmd       `cmd:"" help:"Check an archive, partitions or a proof, offline."`
	Prove        proveCmd        `cmd:"" help:"Prove that one event is in a sealed partition, without the others."`
	Key          keyCmd          `cmd:"" help:"Show or rotate the key that seals partitions."`
	Deadletter   deadletterCmd   `cmd:"" help:"Look at events that could not be stored, and replay them."`
	Repair       repairCmd       `cmd:"" help:"Say why an hour can not be sealed, message by message, and mend it."`
	Restore      restoreCmd      `cmd:"" help:"Compare the table with sealed partitions, and restore it from them."`
	Shards       shardsCmd       `cmd:"" help:"Share the stream of events out among more or fewer consumers."`
	Doctor       doctorCmd       `cmd:"" help:"Look at a running system: what is wrong, where, and what to do."`
	Top          topCmd          `cmd:"" help:"Watch a running system: what is stored, how far it is behind, what its checks find."`
	Plan         planCmd         `cmd:"" help:"Work out what a number of events a second takes, from what was measured."`
	Replay       replayCmd       `cmd:"" help:"Store again what the stream holds, after ClickHouse has lost it."`
	CheckConfig  checkConfigCmd  `cmd:"" name:"check-config" help:"Check a configuration file and print what it amounts to."`
	Demo         demoCmd         `cmd:"" help:"Show the main job in half a minute, with real parts under a fresh directory."`
	Version      versionCmd      `cmd:"" help:"Print the version."`
	Engine       engineCmd       `cmd:"" hidden:"" help:"The embedded engine's process; started by up and demo."`
}

// env is what a subcommand is run with.
type env struct {
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// Exit codes.
const (
	exitFailed = 1 // it was tried and did not succeed
	exitUsage  = 2 // the command line or the configuration is wrong, or what is to be verified can't be read
)

// errFailed ends a command that has said already what went wrong.
var errFailed = errors.New("")

func main() {
	// The first signal asks to stop; the second one, by default, ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with everything handed to it; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("kansa"),
		kong.Description("Kansa carries audit events from applications into ClickHouse, durably and exactly once, and delivers\n"+
			"archives of them to SFTP servers and by mailed links.\n\nTry it: kansa demo. Run it: kansa up. Feed it: kansa publish events.ndjson"),
		kong.UsageOnError(), kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "kansa:", err)
		return exitUsage
	}
	k, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "kansa: %v\nSee kansa --help.\n", err)
		return exitUsage
	}
	err = k.Run(&env{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr})
	switch {
	case err == nil:
		return 0
	case errors.Is(err, config.ErrInvalid), errors.Is(err, verify.ErrUnreadable):
		fmt.Fprintln(stderr, "kansa:", err)
		return exitUsage
	case err.Error() != "":
		fmt.Fprintln(stderr, "kansa:", err)
	}
	return exitFailed
}

// logger writes to standard error as the configuration says. Records that repeat are counted, so that no client can fill the log.
func logger(w io.Writer, c config.Log) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(loglimit.New(slog.NewJSONHandler(w, o)))
	}
	return slog.New(loglimit.New(slog.NewTextHandler(w, o)))
}

// jsonLines prints one JSON object a line.
func jsonLines[T any](e *env, all []T) error {
	enc := json.NewEncoder(e.stdout)
	for i := range all {
		if err := enc.Encode(&all[i]); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

type versionCmd struct{}

func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.stdout, "kansa", version)
	return err
}
