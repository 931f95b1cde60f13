package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
)

type exportCmd struct {
	Start    exportStartCmd    `cmd:"" help:"Ask for an archive."`
	Estimate exportEstimateCmd `cmd:"" help:"Say how many events and bytes an archive would hold, and ask for nothing."`
	Status   exportStatusCmd   `cmd:"" help:"Show how one export is doing."`
	List     exportListCmd     `cmd:"" help:"List exports, the newest first."`
	Receipt  exportReceiptCmd  `cmd:"" help:"Print the signed receipt of a delivery by SFTP."`
	Revoke   exportRevokeCmd   `cmd:"" help:"Take back the links of an export."`
}

// rangeFlags say what an archive is to hold.
type rangeFlags struct {
	Organization string   `short:"o" required:"" help:"Whose events."`
	Trail        []string `short:"t" enum:"activity,access" default:"activity,access" help:"Which trails; both if not given."`
	From         string   `placeholder:"TIME" help:"First hour: 2026-11-22 or 2026-11-22T04:00:00Z. Default: two years before the end."`
	To           string   `placeholder:"TIME" help:"End, not included. Default: the last whole hour an hour ago that is closed."`
}

func (f *rangeFlags) request() (r exporter.Request, err error) {
	r.Organization = f.Organization
	if r.From, err = parseTime(f.From); err != nil {
		return r, fmt.Errorf("--from: %w", err)
	}
	if r.To, err = parseTime(f.To); err != nil {
		return r, fmt.Errorf("--to: %w", err)
	}
	for _, t := range f.Trail {
		r.Trails = append(r.Trails, schema.Trail(t))
	}
	return r, nil
}

type exportStartCmd struct {
	natsFlags
	rangeFlags
	Destination string   `short:"d" placeholder:"NAME" help:"Deliver to this destination of the organization."`
	Mail        []string `short:"m" placeholder:"ADDRESS" help:"Mail a link to this address; may be given several times."`
	Wait        bool     `short:"w" help:"Wait until it is delivered or has failed."`
	JSON        bool     `name:"json" help:"Print the export as JSON."`
}

func (*exportStartCmd) Help() string {
	return "The archive holds the hourly partitions that begin in the range. It is put together as soon as all of them are closed. " +
		"Each trail may be exported three times a day unless its organization says otherwise; the same range again, for the same people, is the same archive and costs nothing."
}

func (c *exportStartCmd) Run(e *env) error {
	r, err := c.request()
	if err != nil {
		return err
	}
	r.Destination, r.MailTo = c.Destination, c.Mail
	if (r.Destination == "") == (len(r.MailTo) == 0) {
		return errors.New("say where the archive goes: --destination NAME or --mail ADDRESS, one of the two")
	}
	if !r.From.IsZero() && !r.To.IsZero() { // what is wrong with these can be said without a connection
		check := r
		check.ID = "check"
		if err := check.Validate(); err != nil {
			return err
		}
	}
	client, err := c.connect(e.ctx, "export")
	if err != nil {
		return err
	}
	defer client.Close()
	asked, err := operatorOf(client).AskExport(e.ctx, r)
	if err != nil {
		return err
	}
	x := asked.Export
	if asked.Again {
		fmt.Fprintf(e.stderr, "The same was asked for before: it is export %s, and costs nothing.\n", x.ID)
	}
	if c.Wait {
		if x, err = waitExport(e, client, x.ID); err != nil {
			return err
		}
	}
	if err := printExport(e, x, c.JSON); err != nil {
		return err
	}
	if x.State == exporter.Failed {
		return errFailed
	}
	return nil
}

type exportEstimateCmd struct {
	natsFlags
	rangeFlags
	JSON bool `name:"json" help:"Print the estimate as JSON."`
}

func (c *exportEstimateCmd) Run(e *env) error {
	r, err := c.request()
	if err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "export")
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := operatorOf(client).Estimate(e.ctx, r)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(s)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "range\t%s to %s\n", s.From.Format(time.RFC3339), s.To.Format(time.RFC3339))
	fmt.Fprintf(t, "events\t%s\nfiles\t%s\nbytes\t%s\n", grouped(s.Rows), grouped(uint64(s.Files)), grouped(uint64(s.Bytes)))
	for _, trail := range schema.Trails {
		if left, ok := s.Left[trail]; ok {
			fmt.Fprintf(t, "left today\t%d of %s\n", left, trail)
		}
	}
	return t.Flush()
}

type exportRevokeCmd struct {
	natsFlags
	ID   string `arg:"" help:"Its id, as start and list show it."`
	JSON bool   `name:"json" help:"Print the export as JSON."`
}

func (*exportRevokeCmd) Help() string {
	return "From now on its links answer as wrong ones do. The partitions stay, and the same range can be asked for again."
}

func (c *exportRevokeCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "export")
	if err != nil {
		return err
	}
	defer client.Close()
	x, err := operatorOf(client).Revoke(e.ctx, c.ID)
	if err != nil {
		return err
	}
	return printExport(e, *x, c.JSON)
}

// waitExport follows the state of an export until it is final.
func waitExport(e *env, client *broker.Client, id string) (exporter.Export, error) {
	kv, err := client.JS.KeyValue(e.ctx, broker.BucketExports)
	if err != nil {
		return exporter.Export{}, fmt.Errorf("open the exports: %w", err)
	}
	bar := newProgress(e.stderr)
	defer bar.clear()
	return exporter.States{KV: kv}.Wait(e.ctx, id, func(x exporter.Export) {
		percent := int64(0)
		if x.Bytes > 0 {
			percent = 100 * x.Sent / x.Bytes
		}
		bar.show("export %s  %s  %d%%  %s of %s bytes  %s", x.ID, x.State, percent, grouped(uint64(x.Sent)), grouped(uint64(x.Bytes)), x.Error)
	})
}

type exportStatusCmd struct {
	natsFlags
	ID   string `arg:"" help:"Its id, as start and list show it."`
	JSON bool   `name:"json" help:"Print it as JSON."`
}

func (c *exportStatusCmd) Run(e *env) error {
	return withStates(e, &c.natsFlags, func(ctx context.Context, s exporter.States) error {
		x, ok, err := s.Get(ctx, c.ID)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("there is no export %s: see kansa export list", c.ID)
		}
		return printExport(e, x, c.JSON)
	})
}

type exportReceiptCmd struct {
	natsFlags
	ID string `arg:"" help:"Its id, as start and list show it."`
}

func (*exportReceiptCmd) Help() string {
	return "There is one where the destination has sftp.receipt: the archive was read back from the server after it was delivered, and what came back was signed. " +
		"Check it with kansa verify RECEIPT --key seal.pub."
}

func (c *exportReceiptCmd) Run(e *env) error {
	return withStates(e, &c.natsFlags, func(ctx context.Context, s exporter.States) error {
		file, err := s.Receipt(ctx, c.ID)
		if err != nil {
			return err
		}
		if file == nil {
			return fmt.Errorf("export %s has no receipt: it is none, is not delivered yet, or its destination does not have sftp.receipt", c.ID)
		}
		_, err = e.stdout.Write(file)
		return err
	})
}

type exportListCmd struct {
	natsFlags
	Organization string `short:"o" help:"Only those of this organization."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *exportListCmd) Run(e *env) error {
	return withStates(e, &c.natsFlags, func(ctx context.Context, s exporter.States) error {
		all, err := s.List(ctx)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		enc := json.NewEncoder(e.stdout)
		if !c.JSON {
			fmt.Fprintln(table, "ID\tORGANIZATION\tTRAILS\tFROM\tTO\tTO WHOM\tSTATE\tTRIES\tROWS\tBYTES\tERROR")
		}
		for _, x := range all {
			if c.Organization != "" && x.Organization != c.Organization {
				continue
			}
			if c.JSON {
				if err := enc.Encode(x); err != nil {
					return fmt.Errorf("print: %w", err)
				}
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", x.ID, x.Organization, trailNames(x.Trails),
				x.From.Format(time.RFC3339), x.To.Format(time.RFC3339), toWhom(x), x.State, x.Attempts, grouped(x.Rows), grouped(uint64(x.Bytes)), shorten(x.Error, 80))
		}
		return table.Flush()
	})
}

func withStates(e *env, f *natsFlags, do func(context.Context, exporter.States) error) error {
	client, err := f.connect(e.ctx, "export")
	if err != nil {
		return err
	}
	defer client.Close()
	kv, err := client.JS.KeyValue(e.ctx, broker.BucketExports)
	if err != nil {
		return fmt.Errorf("open the exports: %w", err)
	}
	return do(e.ctx, exporter.States{KV: kv})
}

func printExport(e *env, x exporter.Export, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(e.stdout).Encode(x)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	row := func(k string, v any) { fmt.Fprintf(t, "%s\t%v\n", k, v) }
	row("id", x.ID)
	row("organization", x.Organization)
	row("trails", trailNames(x.Trails))
	row("range", x.From.Format(time.RFC3339)+" to "+x.To.Format(time.RFC3339))
	row("to", toWhom(x))
	row("state", x.State)
	if x.File != "" {
		row("archive", fmt.Sprintf("%s (%s bytes, %d files, %s events)", x.File, grouped(uint64(x.Bytes)), x.Files, grouped(x.Rows)))
	}
	if x.Receipt {
		row("receipt", "kansa export receipt "+x.ID)
	}
	if x.Expires != nil {
		row("link until", x.Expires.Format(time.RFC3339))
	}
	if x.Revoked != nil {
		row("revoked", x.Revoked.Format(time.RFC3339))
	}
	if x.Error != "" {
		row("error", x.Error)
	}
	return t.Flush()
}

func trailNames(trails []schema.Trail) string {
	names := make([]string, len(trails))
	for i, t := range trails {
		names[i] = string(t)
	}
	return strings.Join(names, ",")
}

func toWhom(x exporter.Export) string {
	if x.Destination != "" {
		return x.Destination
	}
	return strings.Join(x.MailTo, ",")
}

// parseTime returns no time for no text.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, errors.New("write 2026-11-22 or 2026-11-22T04:00:00Z, not " + s)
}
