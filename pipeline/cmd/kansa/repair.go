package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/repair"
)

type repairCmd struct {
	natsFlags
	Fix     bool   `help:"Mend what can be: restore missing rows from the stream, collapse doubles."`
	Replace bool   `help:"With --fix: remove rows that are not those of the stream, and take the stream's."`
	Accept  string `placeholder:"FIRST-LAST" help:"Go on without these messages, which the stream has lost; needs --by and --reason, which the manifests repeat."`
	By      string `help:"Who answers for an accepted loss."`
	Reason  string `help:"Why it is accepted."`
	JSON    bool   `name:"json" help:"Print the report as JSON."`
}

func (*repairCmd) Help() string {
	return "An hour is sealed only if the stream, the table and the file agree. Where they do not, this names the messages concerned, " +
		"each with what the writer took and what the table has. It needs a running kansa up or kansa run rollup. Without --fix nothing is changed."
}

func (c *repairCmd) Run(e *env) error {
	q := repair.Request{Fix: c.Fix, Replace: c.Replace}
	if c.Replace && !c.Fix {
		return fmt.Errorf("--replace goes with --fix")
	}
	if c.Accept != "" {
		l := rollup.Loss{By: c.By, Reason: c.Reason}
		if _, err := fmt.Sscanf(c.Accept, "%d-%d", &l.First, &l.Last); err != nil || c.By == "" || c.Reason == "" {
			return fmt.Errorf("--accept %q: write the first and the last message as 17-18, and add --by and --reason", c.Accept)
		}
		q.Accept = &l
	}
	client, err := c.connect(e.ctx, "repair")
	if err != nil {
		return err
	}
	defer client.Close()
	report, err := repair.Ask(e.ctx, client.NC, q)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(report)
	}
	if len(report.Blocked) == 0 && len(report.Differences) == 0 {
		fmt.Fprintln(e.stdout, "All accounts agree.")
		return nil
	}
	for _, path := range report.Blocked {
		fmt.Fprintf(e.stdout, "%s can not be sealed, nor what follows it.\n", path)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MESSAGE\tRECORDED\tHOUR\tWHAT\tIN THE STREAM\tIN THE TABLE\tDONE")
	for _, d := range report.Differences {
		done := d.Done
		if d.Left != "" {
			done = "nothing: " + d.Left
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", d.StreamSeq, d.RecordedAt.Format(time.RFC3339), d.Path, d.Kind, d.Stream, d.Table, done)
	}
	return t.Flush()
}
