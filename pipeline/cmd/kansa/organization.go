package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/operator"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

type organizationCmd struct {
	Show organizationShowCmd `cmd:"" help:"Show the rules of an organization."`
	Set  organizationSetCmd  `cmd:"" help:"Change rules."`
	List organizationListCmd `cmd:"" help:"List organizations that have rules of their own."`
}

type organizationShowCmd struct {
	natsFlags
	Name string `arg:"" help:"The organization."`
	JSON bool   `name:"json" help:"Print them as JSON."`
}

func (c *organizationShowCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "organization")
	if err != nil {
		return err
	}
	defer client.Close()
	return showOrganizations(e, client, []string{c.Name}, c.JSON)
}

type organizationListCmd struct {
	natsFlags
	JSON bool `name:"json" help:"One JSON object a line."`
}

func (c *organizationListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "organization")
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := operatorOf(client).Organizations(e.ctx)
	if err != nil {
		return err
	}
	switched, err := operatorOf(client).AllTrails(e.ctx)
	if err != nil {
		return err
	}
	var names []string
	for i := range all {
		names = append(names, all[i].Name)
	}
	for i := range switched {
		names = append(names, switched[i].Organization)
	}
	slices.Sort(names)
	return showOrganizations(e, client, slices.Compact(names), c.JSON)
}

type organizationSetCmd struct {
	natsFlags
	Name           string   `arg:"" help:"The organization."`
	ExportsOff     []string `placeholder:"TRAIL" help:"Switch off exports of these trails; scheduled archives wait and are caught up."`
	ExportsOn      []string `placeholder:"TRAIL" help:"Switch them on again."`
	ExportsPerDay  *int     `placeholder:"N" help:"Exports that may be asked for on one day, for each trail."`
	RetentionDays  *int     `placeholder:"DAYS" help:"How long events are kept."`
	RetentionBytes *int64   `placeholder:"BYTES" help:"How many bytes of CSV are kept; 0 is no bound."`
	Hold           *string  `placeholder:"REASON" help:"Legal hold: remove nothing, whatever the retention says."`
	ReleaseHold    bool     `help:"End the legal hold."`
	HIPAA          *bool    `name:"hipaa" negatable:"" help:"The organization is under HIPAA: its trails are switched on, and can't be switched off. --no-hipaa ends that."`
	JSON           bool     `name:"json" help:"Print the rules as JSON."`
}

func (c *organizationSetCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "organization")
	if err != nil {
		return err
	}
	defer client.Close()
	ask := operatorOf(client)
	if c.HIPAA != nil {
		seen, err := ask.Trails(e.ctx, c.Name)
		if err != nil {
			return err
		}
		if _, err := ask.SwitchTrails(e.ctx, c.Name, settings.SwitchTrails{HIPAA: c.HIPAA}, seen.Revision); err != nil {
			return err
		}
	}
	if c.rules() {
		if err := c.save(e, ask); err != nil {
			return err
		}
	}
	return showOrganizations(e, client, []string{c.Name}, c.JSON)
}

// rules tells whether there is something to be changed besides HIPAA, which is with the trails.
func (c *organizationSetCmd) rules() bool {
	return len(c.ExportsOff)+len(c.ExportsOn) > 0 || c.ExportsPerDay != nil || c.RetentionDays != nil || c.RetentionBytes != nil || c.Hold != nil || c.ReleaseHold
}

func (c *organizationSetCmd) save(e *env, ask operator.Client) error {
	o, err := ask.Organization(e.ctx, c.Name)
	if err != nil {
		return err
	}
	for _, t := range c.ExportsOff {
		o.ExportsOff = append(without(o.ExportsOff, t), schema.Trail(t))
	}
	for _, t := range c.ExportsOn {
		o.ExportsOff = without(o.ExportsOff, t)
	}
	if c.ExportsPerDay != nil {
		o.ExportsPerDay = *c.ExportsPerDay
	}
	if c.RetentionDays != nil {
		o.RetentionDays = *c.RetentionDays
	}
	if c.RetentionBytes != nil {
		o.RetentionBytes = *c.RetentionBytes
	}
	if c.Hold != nil {
		o.Hold = &settings.Hold{Reason: *c.Hold}
	}
	if c.ReleaseHold {
		o.Hold = nil
	}
	_, err = ask.SaveOrganization(e.ctx, *o)
	return err
}

func without(trails []schema.Trail, name string) []schema.Trail {
	var rest []schema.Trail
	for _, t := range trails {
		if string(t) != name {
			rest = append(rest, t)
		}
	}
	return rest
}

// organizationRules are those of one, and what it records.
type organizationRules struct {
	settings.Organization
	Trails *settings.Trails `json:"trails"`
}

func showOrganizations(e *env, client *broker.Client, names []string, asJSON bool) error {
	all := make([]organizationRules, len(names))
	for i, name := range names {
		o, err := operatorOf(client).Organization(e.ctx, name)
		if err != nil {
			return err
		}
		all[i].Organization = *o
		if all[i].Trails, err = operatorOf(client).Trails(e.ctx, name); err != nil {
			return err
		}
	}
	return printOrganizations(e, all, asJSON)
}

func printOrganizations(e *env, all []organizationRules, asJSON bool) error {
	if asJSON {
		return jsonLines(e, all)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ORGANIZATION\tEXPORTS OFF\tEXPORTS A DAY\tRETENTION\tLEGAL HOLD\tTRAILS OFF\tHIPAA")
	for i := range all {
		o := &all[i]
		off, hold, kept := "-", "-", fmt.Sprintf("%d days", o.RetentionDays)
		if len(o.ExportsOff) > 0 {
			off = trailNames(o.ExportsOff)
		}
		if o.RetentionBytes > 0 {
			kept += fmt.Sprintf(", %s bytes", grouped(uint64(o.RetentionBytes)))
		}
		if o.Hold != nil {
			hold = strings.TrimSpace(o.Hold.Reason) + " (" + o.Hold.By + ", " + o.Hold.Since.Format(time.DateOnly) + ")"
		}
		if o.Problem != "" {
			hold = "everything is kept: " + o.Problem
		}
		var silent []schema.Trail
		for _, trail := range schema.Trails {
			if !o.Trails.Of(trail).On {
				silent = append(silent, trail)
			}
		}
		trails, hipaa := "-", "-"
		if len(silent) > 0 {
			trails = trailNames(silent)
		}
		if o.Trails.HIPAA {
			hipaa = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", o.Name, off, o.ExportsPerDay, kept, hold, trails, hipaa)
	}
	return t.Flush()
}
