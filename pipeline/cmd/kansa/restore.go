package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/reconcile"
	"github.com/kansa-audit/kansa/schema"
)

type restoreCmd struct {
	natsFlags
	Organization string    `short:"o" help:"Restore one organization. Default: all."`
	Trail        string    `short:"t" help:"Restore one trail: activity or access. Default: both."`
	From         time.Time `placeholder:"TIME" help:"Restore hours from this time on (RFC 3339). Default: the first."`
	To           time.Time `placeholder:"TIME" help:"Restore hours before this time. Default: all that are sealed."`
	Replace      bool      `help:"Also remove events that were not sealed, and replace those that were changed. Without it, only missing events are stored."`
	DryRun       bool      `help:"Compare only, and change nothing."`
	Status       bool      `help:"Start nothing: show the last restoration, and how far the background comparison is."`
	JSON         bool      `name:"json" help:"Print the result as JSON."`
}

func (*restoreCmd) Help() string {
	return `Restores the table audit_events from the sealed partitions, hour by hour, without the stream: after the loss of a disk or a mistake in SQL.
Each partition is verified before anything is taken of it. Hours that the table has as they were sealed are left alone, so a restoration that was
interrupted can be started again. It needs a running kansa up or kansa run rollup, which also compares in the background all the time
(rollup.compare_percent). For events that are not sealed yet, see kansa replay.

  kansa restore --dry-run
  kansa restore --from 2026-11-01T00:00:00Z -o acme --replace`
}

func (c *restoreCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "restore")
	if err != nil {
		return err
	}
	defer client.Close()
	if c.Status {
		s, err := reconcile.Ask(e.ctx, client.NC)
		if err != nil {
			return err
		}
		return c.status(e, s)
	}
	q := reconcile.Request{
		Organization: c.Organization, Trail: schema.Trail(c.Trail), From: c.From, To: c.To, Replace: c.Replace, DryRun: c.DryRun, By: "kansa restore",
	}
	if u, err := user.Current(); err == nil {
		q.By = u.Username
	}
	started, err := reconcile.Start(e.ctx, client.NC, q)
	if err != nil {
		return err
	}
	bar := newProgress(e.stderr)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			bar.clear()
			return fmt.Errorf("%w: the restoration goes on; kansa restore --status shows it", e.ctx.Err())
		case <-tick.C:
		}
		s, err := reconcile.Ask(e.ctx, client.NC)
		if err != nil {
			return err
		}
		r := s.Last
		if r == nil || r.ID != started.ID {
			continue
		}
		if r.Ended.IsZero() {
			bar.show("%s of %s hours, %s events stored (%s)", grouped(r.Done), grouped(r.Hours), grouped(r.Stored), bar.rate(r.Stored))
			continue
		}
		bar.clear()
		return c.outcome(e, r)
	}
}

// errLeft means that the table is not as it was sealed after all.
var errLeft = errors.New("not everything is restored")

func (c *restoreCmd) outcome(e *env, r *reconcile.Restoration) error {
	var err error
	switch differ := r.Changed+r.Added > 0; {
	case r.Failed != "":
		err = fmt.Errorf("%w: %s", errLeft, r.Failed)
	case len(r.Left) > 0:
		err = fmt.Errorf("%w: %d partitions could not be read, such as %s", errLeft, len(r.Left), r.Left[0])
	case differ && !r.Request.Replace && !r.Request.DryRun:
		err = fmt.Errorf("%w: %d events were changed and %d were not sealed: kansa restore --replace puts the sealed ones in their place", errLeft, r.Changed, r.Added)
	}
	if c.JSON {
		return errors.Join(json.NewEncoder(e.stdout).Encode(r), err)
	}
	took := r.Ended.Sub(r.Began).Round(100 * time.Millisecond)
	if r.Partitions == 0 {
		fmt.Fprintf(e.stdout, "The table has all %s sealed hours as they were sealed (%s).\n", grouped(r.Done), took)
		return err
	}
	fmt.Fprintf(e.stdout, "%s of %s hours compared in %s; %s partitions differed.\n", grouped(r.Done), grouped(r.Hours), took, grouped(r.Partitions))
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MISSING\tCHANGED\tADDED\tSTORED\tREMOVED")
	fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", grouped(r.Missing), grouped(r.Changed), grouped(r.Added), grouped(r.Stored), grouped(r.Removed))
	return errors.Join(t.Flush(), err)
}

func (c *restoreCmd) status(e *env, s *reconcile.Status) error {
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(s)
	}
	w := s.Walk
	switch {
	case w.Upper.IsZero():
		fmt.Fprintln(e.stdout, "Nothing was compared yet.")
	default:
		fmt.Fprintf(e.stdout, "Compared in this pass: %s to %s. Complete passes: %d", w.Lower.Format(time.RFC3339), w.Upper.Format(time.RFC3339), w.Passes)
		if !w.Completed.IsZero() {
			fmt.Fprintf(e.stdout, ", the last at %s", w.Completed.Format(time.RFC3339))
		}
		fmt.Fprintln(e.stdout, ".")
	}
	if len(s.Findings) > 0 {
		t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "HOUR\tORGANIZATION\tTRAIL\tMISSING\tCHANGED\tADDED\tSINCE\tPROBLEM")
		for _, f := range s.Findings {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", f.Hour.Format(time.RFC3339), f.Organization, f.Trail, f.Missing, f.Changed, f.Added, f.Since.Format(time.RFC3339), f.Problem)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if r := s.Last; r != nil {
		if r.Ended.IsZero() {
			fmt.Fprintf(e.stdout, "A restoration is under way since %s: %d of %d hours, %s events stored.\n", r.Began.Format(time.RFC3339), r.Done, r.Hours, grouped(r.Stored))
			return nil
		}
		fmt.Fprintf(e.stdout, "The last restoration, at %s:\n", r.Began.Format(time.RFC3339))
		return c.outcome(e, r)
	}
	return nil
}
