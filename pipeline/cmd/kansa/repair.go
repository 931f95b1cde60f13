package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/repair"
)

type repairCmd struct {
	natsFlags
	Fix     bool   `help:"Repair what can be: store acknowledged messages that were never stored, restore missing rows from the stream, collapse doubles."`
	Replace bool   `help:"With --fix: remove rows that are not those of the stream, and take the stream's."`
	Streams bool   `help:"Restore the settings of the broker's streams as the configuration has them, and make streams again that are missing. A shorter max_age or a smaller max_bytes lets old messages go."`
	Accept  string `placeholder:"FIRST-LAST,…" help:"Go on without these messages, which the stream has lost; needs --by and --reason, which the manifests repeat. What the stream still has is refused."`
	By      string `help:"Who answers for an accepted loss."`
	Reason  string `help:"Why it is accepted."`
	JSON    bool   `name:"json" help:"Print the report as JSON."`
}

func (*repairCmd) Help() string {
	return "An hour is sealed only if the stream, the table and the file agree. Where they do not, this names the messages concerned, " +
		"each with what the writer took and what the table has. It needs a running kansa up or kansa run rollup. Without --fix nothing is changed."
}

// losses reads --accept.
func (c *repairCmd) losses() (all []rollup.Loss, err error) {
	if c.Accept == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(c.Accept, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		l := rollup.Loss{By: c.By, Reason: c.Reason}
		var err1, err2 error
		l.First, err1 = strconv.ParseUint(first, 10, 64)
		l.Last, err2 = strconv.ParseUint(last, 10, 64)
		if err1 != nil || err2 != nil || l.Last < l.First || c.By == "" || c.Reason == "" {
			return nil, fmt.Errorf("--accept %q: write messages as 17-18,40 and add --by and --reason", c.Accept)
		}
		all = append(all, l)
	}
	return all, nil
}

func (c *repairCmd) Run(e *env) error {
	q := repair.Request{Fix: c.Fix, Replace: c.Replace, Streams: c.Streams}
	if c.Streams && (c.Fix || c.Accept != "") {
		return fmt.Errorf("--streams goes alone: call kansa repair again for the messages")
	}
	if c.Replace && !c.Fix {
		return fmt.Errorf("--replace goes with --fix")
	}
	var err error
	if q.Accept, err = c.losses(); err != nil {
		return err
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
	if c.Streams {
		if len(report.Streams) == 0 {
			fmt.Fprintln(e.stdout, "All streams are as they were set up.")
		}
		for _, line := range report.Streams {
			fmt.Fprintln(e.stdout, line)
		}
		return nil
	}
	return printRepair(e.stdout, report)
}

// mostLines bounds the messages that are named one by one; --json has more.
const mostLines = 100

func printRepair(w io.Writer, report *repair.Report) error {
	if report.Well() {
		_, err := fmt.Fprintln(w, "All accounts agree.")
		return err
	}
	if report.Stopped != "" {
		fmt.Fprintf(w, "nothing is sealed, of any organization: %s\n", report.Stopped)
	}
	for _, path := range report.Blocked {
		fmt.Fprintf(w, "%s can not be sealed, nor what follows it.\n", path)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	heading, lines := false, 0
	for i := range report.Differences {
		d := &report.Differences[i]
		what := ""
		switch d.Kind {
		case repair.Unstored:
			what = "was acknowledged but never stored"
			if d.Table > 0 {
				what = fmt.Sprintf("has no ledger entry; the table has %d events of it", d.Table)
			}
		case repair.Late:
			what = "came after its hour was sealed"
		case repair.Lost:
			what = "is neither in the stream nor in the ledger"
		}
		done := d.Done
		if d.Left != "" {
			done = "nothing: " + d.Left
		}
		if what == "" {
			if !heading {
				heading = true
				fmt.Fprintln(t, "MESSAGE\tRECORDED\tHOUR\tWHAT\tIN THE STREAM\tIN THE TABLE\tDONE")
			}
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", d.StreamSeq, d.RecordedAt.Format(time.RFC3339), d.Path, d.Kind, d.Stream, d.Table, done)
			continue
		}
		if lines++; lines > mostLines {
			continue
		}
		name := fmt.Sprintf("message %d", d.StreamSeq)
		if d.LastSeq > 0 {
			name = fmt.Sprintf("each of messages %d-%d", d.StreamSeq, d.LastSeq)
		}
		if d.Organization != "" {
			name += fmt.Sprintf(" of %s/%s", d.Organization, d.Trail)
		}
		if done = d.Done; d.Left != "" {
			done = d.Left
		}
		fmt.Fprintf(w, "%s %s: %s\n", name, what, done)
	}
	if lines > mostLines {
		fmt.Fprintf(w, "and %d more such messages (--json)\n", lines-mostLines)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more := report.Total - len(report.Differences); more > 0 {
		fmt.Fprintf(w, "%d differences are not shown: repair these first, and ask again\n", more)
	}
	return nil
}
