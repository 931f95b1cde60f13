package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

type trailCmd struct {
	List trailListCmd `cmd:"" help:"Show which trails are recorded, and when they were not."`
	On   trailOnCmd   `cmd:"" help:"Record trails from now on; recording begins two seconds later."`
	Off  trailOffCmd  `cmd:"" help:"Stop recording trails at once. What was recorded stays, and every archive says when they were off, and why."`
}

type trailListCmd struct {
	natsFlags
	Organization string `arg:"" optional:"" help:"The organization; all that ever switched something, if not given."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *trailListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "trail")
	if err != nil {
		return err
	}
	defer client.Close()
	var all []settings.Trails
	if c.Organization == "" {
		if all, err = operatorOf(client).AllTrails(e.ctx); err != nil {
			return err
		}
	} else {
		one, err := operatorOf(client).Trails(e.ctx, c.Organization)
		if err != nil {
			return err
		}
		all = append(all, *one)
	}
	return printTrails(e, all, c.JSON)
}

// trailFlags name what is switched.
type trailFlags struct {
	natsFlags
	Organization string   `arg:"" help:"The organization."`
	Trail        []string `arg:"" enum:"activity,access" help:"activity, access or both."`
	JSON         bool     `name:"json" help:"Print the trails as JSON."`
}

type trailOnCmd struct {
	trailFlags
	Reason string `placeholder:"TEXT" help:"Why, for the own trail."`
}

func (c *trailOnCmd) Run(e *env) error { return c.turn(e, true, c.Reason) }

type trailOffCmd struct {
	trailFlags
	Reason string `required:"" placeholder:"TEXT" help:"Why; every archive of that time repeats it."`
}

func (c *trailOffCmd) Run(e *env) error { return c.turn(e, false, c.Reason) }

func (f *trailFlags) turn(e *env, on bool, reason string) error {
	client, err := f.connect(e.ctx, "trail")
	if err != nil {
		return err
	}
	defer client.Close()
	ask := operatorOf(client)
	seen, err := ask.Trails(e.ctx, f.Organization)
	if err != nil {
		return err
	}
	want := settings.SwitchTrails{Reason: reason}
	for _, t := range f.Trail {
		want.Set(schema.Trail(t), on)
	}
	switched, err := ask.SwitchTrails(e.ctx, f.Organization, want, seen.Revision)
	if err != nil {
		return err
	}
	return printTrails(e, []settings.Trails{*switched}, f.JSON)
}

func printTrails(e *env, all []settings.Trails, asJSON bool) error {
	if asJSON {
		return jsonLines(e, all)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ORGANIZATION\tTRAIL\tSTATE\tNOT RECORDED FROM\tTO\tBY\tREASON")
	for i := range all {
		for _, name := range schema.Trails {
			state := "off"
			if all[i].Of(name).On {
				state = "on"
			}
			if all[i].HIPAA {
				state += ", held by HIPAA"
			}
			gaps := all[i].Of(name).Gaps
			if len(gaps) == 0 {
				fmt.Fprintf(t, "%s\t%s\t%s\t-\t-\t-\t-\n", all[i].Organization, name, state)
			}
			for j := len(gaps) - 1; j >= 0; j-- { // the newest first
				g, to := &gaps[j], "-"
				if !g.To.IsZero() {
					to = g.To.Format(time.RFC3339)
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", all[i].Organization, name, state, g.From.Format(time.RFC3339), to, g.By, g.Reason)
			}
		}
	}
	return t.Flush()
}
