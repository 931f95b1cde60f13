package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

type verifyCmd struct {
	Path string `arg:"" help:"An archive (.zip), a partition store (folder), one partition (.csv.gz or .manifest), a proof or a receipt."`
	Key  string `short:"k" required:"" placeholder:"FILE" help:"The verifier key, such as seal.pub, from a source other than what is verified."`
	identityFlag
	Rotations string `placeholder:"DIR" help:"A folder with keys/ of the partition store, for an archive that is older than the key."`
	Rendered  bool   `help:"Take an archive of a rendered format: its manifests are checked, and that its files are those that it lists. They are not sealed."`
	FromStart bool   `help:"Demand that every chain begins with its first manifest."`
	From      string `placeholder:"TIME" help:"Demand that every trail goes back to this time: 2026-11-22 or 2026-11-22T04:00:00Z."`
	To        string `placeholder:"TIME" help:"Demand that every trail goes up to this time."`
	JSON      bool   `name:"json" help:"Print the report as JSON."`
}

func (*verifyCmd) Help() string {
	return "Needs no network and no running Kansa. Checks signatures, the chain of manifests, every file and every row; older and newer keys " +
		"are reached by the rotations that are kept beside the partitions. Exits with 0 if all of it holds, 1 if something does not, 2 if it could not be read."
}

func (c *verifyCmd) Run(e *env) error {
	o := verify.Options{FromStart: c.FromStart, Rendered: c.Rendered, Rotations: c.Rotations}
	var err error
	if o.Identities, err = c.read(e.ctx); err != nil {
		return err
	}
	if o.From, err = parseTime(c.From); err != nil {
		return fmt.Errorf("%w: --from: %w", verify.ErrUnreadable, err)
	}
	if o.To, err = parseTime(c.To); err != nil {
		return fmt.Errorf("%w: --to: %w", verify.ErrUnreadable, err)
	}
	if o.Key, err = verify.ReadKey(c.Key); err != nil {
		return err
	}
	bar := newProgress(e.stderr)
	var mu sync.Mutex
	o.Progress = func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		bar.show("verifying  %d%%  %s of %s bytes", 100*done/max(total, 1), grouped(uint64(done)), grouped(uint64(total)))
	}
	r, err := verify.Path(e.ctx, c.Path, o)
	bar.clear()
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(r)
	} else {
		err = printReport(e, r)
	}
	if err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	if !r.OK {
		return errFailed
	}
	return nil
}

func printReport(e *env, r *verify.Report) error {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	if len(r.Series) > 0 {
		fmt.Fprintln(t, "ORGANIZATION\tTRAIL\tFROM\tTO\tMANIFESTS\tROWS\t")
	}
	for _, s := range r.Series {
		begins := ""
		if s.Continues != "" {
			begins = fmt.Sprintf("continues number %d, sha256 %s", s.First-1, s.Continues)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d–%d\t%s\t%s\n", s.Organization, s.Trail, s.From.Format(time.RFC3339), s.To.Format(time.RFC3339),
			s.First, s.Last, grouped(s.Rows), begins)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Event != nil {
		text, err := json.MarshalIndent(r.Event, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "%s\n", text)
	}
	if x := r.Receipt; x != nil {
		row := func(k string, v any) { fmt.Fprintf(t, "%s\t%v\n", k, v) }
		row("export", x.Export+" of "+x.Organization+" to "+x.Destination)
		row("server", x.User+"@"+x.Address)
		row("host key", x.HostKey)
		row("file", x.Path)
		row("bytes", grouped(uint64(x.Size)))
		row("sha256", x.SHA256)
		row("read back", x.Time.Format(time.RFC3339))
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(e.stdout, "note:", n)
	}
	for _, f := range r.Faults {
		place := f.File
		if f.Hour != nil {
			place += ", hour " + f.Hour.Format(time.RFC3339)
		}
		if f.Row > 0 {
			place += fmt.Sprintf(", row %d", f.Row)
		}
		fmt.Fprintf(e.stdout, "FAULT %s: %s\n", place, f.Problem)
	}
	if !r.OK {
		_, err := fmt.Fprintf(e.stdout, "NOT VERIFIED: %s has %d faults.\n", r.Path, len(r.Faults))
		return err
	}
	what := fmt.Sprintf("%s hours, %s rows, %s bytes of CSV in %.1f s", grouped(r.Hours), grouped(r.Rows), grouped(uint64(r.CSVBytes)), r.Seconds)
	if r.Rendered > 0 {
		what = fmt.Sprintf("%s hours are sealed by their manifests; %s files are those that the archive lists, and are NOT sealed", grouped(r.Hours), grouped(r.Rendered))
	}
	switch r.Kind {
	case verify.Proof:
		what = "the row is in the partition that was sealed"
	case verify.Receipt:
		what = "these bytes were read back from that server"
	}
	_, err := fmt.Fprintf(e.stdout, "VERIFIED: %s %s holds: %s.\n", r.Kind, r.Path, what)
	return err
}

// identityFlag says what opens what is encrypted.
type identityFlag struct {
	Identity string `short:"i" placeholder:"FILE" help:"The age identity that opens what is encrypted: a partition store at rest, or an archive for a recipient."`
}

func (f identityFlag) read(ctx context.Context) ([]age.Identity, error) {
	if f.Identity == "" {
		return nil, nil
	}
	text, err := config.Secret{File: f.Identity}.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: --identity: %w", verify.ErrUnreadable, err)
	}
	all, err := partitions.Identities(text)
	if err != nil {
		return nil, fmt.Errorf("%w: --identity %s: %w", verify.ErrUnreadable, f.Identity, err)
	}
	return all, nil
}

type proveCmd struct {
	identityFlag
	Path  string `arg:"" help:"An archive (.zip), a partition store (folder), or one partition."`
	Event string `placeholder:"ID" xor:"which" required:"" help:"The event's id."`
	Seq   string `placeholder:"SEQ.INDEX" xor:"which" required:"" help:"Its stream_seq and batch_index."`
	Out   string `short:"o" required:"" placeholder:"FILE" help:"Where the proof goes; - for standard output."`
}

func (*proveCmd) Help() string {
	return "Writes a proof that one event is in a sealed partition: its row, the partition's manifest, and the hashes that lead from one to the other. " +
		"It shows nothing of other events. Check it with kansa verify PROOF --key seal.pub."
}

func (c *proveCmd) Run(e *env) error {
	var event verify.Event
	if c.Event != "" {
		id, err := uuid.Parse(c.Event)
		if err != nil {
			return fmt.Errorf("%w: --event %s: %w", verify.ErrUnreadable, c.Event, err)
		}
		event.ID = id.String()
	} else {
		var err error
		if event, err = verify.ParsePlace(c.Seq); err != nil {
			return fmt.Errorf("%w: --seq: %w", verify.ErrUnreadable, err)
		}
	}
	identities, err := c.read(e.ctx)
	if err != nil {
		return err
	}
	p, err := verify.Prove(e.ctx, c.Path, event, verify.Options{Identities: identities})
	if err != nil {
		return err
	}
	data, err := p.Encode()
	if err != nil {
		return fmt.Errorf("encode the proof: %w", err)
	}
	if c.Out == "-" {
		_, err = e.stdout.Write(data)
		return err
	}
	if strings.HasSuffix(c.Out, ".zip") || strings.HasSuffix(c.Out, schema.ManifestSuffix) || strings.HasSuffix(c.Out, ".csv") {
		return fmt.Errorf("%w: -o %s: name it otherwise, such as event.proof: kansa verify would take it for something else", verify.ErrUnreadable, c.Out)
	}
	if err := os.WriteFile(c.Out, data, 0o644); err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	m, err := seal.Parse([]byte(p.Manifest))
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "%s: row %d of %d in %s\n", c.Out, p.Index+1, m.Rows, m.Partition().CSVKey())
	return nil
}
