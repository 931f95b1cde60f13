package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/demo"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/producers/mapping"
)

type demoCmd struct {
	Events  uint64        `short:"n" default:"50000" help:"How many events to make up (${default})."`
	Input   string        `short:"i" placeholder:"FILE" help:"Publish the events of this NDJSON file (.gz too) instead."`
	Mapping string        `short:"m" placeholder:"NAME|FILE" help:"With --input: translate its records: cloudtrail, windows, or a mapping file."`
	Hour    time.Duration `default:"3s" help:"How long an hour is (${default})."`
	Dir     string        `placeholder:"DIR" help:"Where everything lies. Default: a new folder in the system's temporary one."`
	Exit    bool          `help:"Stop when it is done, instead of going on running."`
	JSON    bool          `name:"json" help:"Print the counts as JSON, on the last line."`
	Verbose bool          `short:"v" help:"Show the log."`
}

func (*demoCmd) Help() string {
	return "Starts the whole pipeline with hours of a few seconds, publishes, waits until the hours close, has archives delivered to an SFTP " +
		"server and by mailed links, opens what arrived and counts. Exits with 0 only if every count agrees."
}

func (c *demoCmd) Run(e *env) error {
	input := demo.MadeUp(c.Events)
	if c.Input != "" {
		var o mapping.Options
		if c.Mapping != "" {
			m, err := mapping.Load(c.Mapping)
			if err != nil {
				return err
			}
			o.Mapping = m
		}
		var err error
		if input, err = demo.File(c.Input, o); err != nil {
			return err
		}
	}
	if c.Dir == "" {
		dir, err := os.MkdirTemp("", "kansa-demo-")
		if err != nil {
			return fmt.Errorf("create a folder: %w", err)
		}
		c.Dir = dir
	}
	level := slog.LevelError
	if c.Verbose {
		level = slog.LevelInfo
	}
	command, err := engineCommand()
	if err != nil {
		return err
	}
	bar := newProgress(e.stderr)
	d, err := demo.Start(e.ctx, demo.Options{
		Dir: c.Dir, Input: input, Hour: c.Hour, EngineCommand: command,
		Logger: slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level})),
		Say: func(what string, done, total uint64) {
			if total > 0 {
				bar.show("%s  %s of %s", what, grouped(done), grouped(total))
			} else {
				bar.show("%s", what)
			}
		},
	})
	if err != nil {
		return err
	}
	defer d.Close()
	r, err := d.Run(e.ctx)
	bar.clear()
	if err != nil {
		return err
	}
	c.print(e, d, r)
	if !c.Exit {
		fmt.Fprintf(e.stdout, "\nIt goes on running; publish to it:\n  kansa publish --nats %s events.ndjson\nAPI %s   SFTP %s   SMTP %s\nCtrl-C stops it.\n",
			d.System.NATSURL(), d.System.API.URL(), d.SFTPAddr(), d.MailAddr())
		<-e.ctx.Done()
	}
	if err := d.Close(); err != nil {
		return err
	}
	if c.JSON {
		line, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("print the counts: %w", err)
		}
		fmt.Fprintf(e.stdout, "%s\n", line)
	}
	if !r.Verified {
		return errFailed
	}
	return nil
}

func (c *demoCmd) print(e *env, d *demo.Demo, r *demo.Result) {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	row := func(what string, n uint64, how string) {
		mark := "✓"
		if n != r.Published {
			mark = "✗"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", what, grouped(n), mark, how)
	}
	fmt.Fprintf(t, "The way of %s audit events of %d organizations, in %.1f s:\n", grouped(r.Published), r.Organizations, r.Seconds)
	row("published", r.Published, "by the SDK, in columnar messages")
	row("acknowledged", r.Acked, fmt.Sprintf("on JetStream's disk, %s/s", grouped(uint64(float64(r.Acked)/max(r.PublishSeconds, 0.001)))))
	row("stored", r.Stored, "rows in ClickHouse")
	row("distinct", r.Distinct, "each once")
	row("in partitions", r.PartitionRows, fmt.Sprintf("%d hours of organizations and trails, .csv.gz with manifest", r.Partitions))
	row("arrived by SFTP", r.SFTPRows, "in the archives on the SSH server, scheduled")
	row("arrived by link", r.LinkRows, fmt.Sprintf("in the archives of %d mailed links", r.Mails))
	fmt.Fprintf(t, "  rejected\t%s\t\tdead letters and refused lines\n", grouped(r.Rejected))
	_ = t.Flush()
	verdict := "Every count agrees, and every archive is verified: signatures, chains, files and rows."
	if !r.Verified {
		verdict = "It does NOT agree: " + r.Fault
	}
	fmt.Fprintf(e.stdout, "%s\n\nWhere everything lies: %s\n", verdict, c.Dir)
	if len(r.Archives) > 0 {
		defer fmt.Fprintf(e.stdout, "\nVerify one yourself, and then change a byte of it:\n  kansa verify %s --key %s\n", r.Archives[0], filepath.Join(d.DataDir(), keys.PublicFile))
	}
	for _, p := range []struct{ what, dir string }{
		{"archives that arrived by SFTP", d.SFTPDir()},
		{"archives downloaded by link", d.DownloadDir()},
		{"the mails", d.MailDir()},
		{"partitions", filepath.Join(d.DataDir(), "partitions")},
	} {
		fmt.Fprintf(e.stdout, "  %-30s %s\n", p.what, p.dir)
	}
}
