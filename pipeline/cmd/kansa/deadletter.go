package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
)

type deadletterCmd struct {
	List    deadletterListCmd    `cmd:"" help:"List what could not be stored, and why."`
	Replay  deadletterReplayCmd  `cmd:"" help:"Publish dead letters again, as they are or corrected."`
	Discard deadletterDiscardCmd `cmd:"" help:"Remove dead letters that are not wanted, and record who did so and why."`
}

type deadletterListCmd struct {
	natsFlags
	Organization string `short:"o" help:"Only those of this organization; _invalid for subjects that name none."`
	Like         string `placeholder:"TEXT" help:"Only those whose reason contains this, or is of this kind."`
	Limit        int    `short:"n" default:"50" help:"At most so many (${default}); 0 for all."`
	JSON         bool   `name:"json" help:"One JSON object a line, with the bytes whole (base64)."`
}

func (c *deadletterListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "deadletter")
	if err != nil {
		return err
	}
	defer client.Close()
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(e.stdout)
	if !c.JSON {
		fmt.Fprintln(table, "SEQ\tTIME\tORGANIZATION\tFROM\tBYTES\tREASON\tDATA")
	}
	n := 0
	err = deadletter.Each(e.ctx, client.JS, c.Organization, func(l deadletter.Letter) bool {
		if !l.Like(c.Like) {
			return true
		}
		n++
		if c.JSON {
			err = enc.Encode(l)
			return err == nil && n != c.Limit
		}
		from := strconv.FormatUint(l.StreamSeq, 10)
		if l.BatchIndex != nil {
			from += "#" + strconv.Itoa(*l.BatchIndex)
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%d\t%s\t%s\n", l.Seq, l.Time.UTC().Format(time.RFC3339), l.Organization, from, len(l.Data),
			shorten(l.Reason, 100), shorten(strconv.QuoteToGraphic(string(l.Data)), 40))
		return n != c.Limit
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "…"
}

// lettersFlags choose letters.
type lettersFlags struct {
	natsFlags
	Seqs []uint64 `arg:"" optional:"" name:"seq" help:"Numbers of the letters, as list shows them."`
	All  bool     `help:"All of them."`
	Like string   `placeholder:"TEXT" help:"Those whose reason contains this, or is of this kind."`
}

func (f *lettersFlags) check() error {
	if ways := map[bool]int{true: 1}; ways[f.All]+ways[f.Like != ""]+ways[len(f.Seqs) > 0] != 1 {
		return fmt.Errorf("say which letters: their numbers, --all, or --like TEXT")
	}
	return nil
}

// each visits the letters, of one organization if that is given, until visit fails.
func (f *lettersFlags) each(e *env, js jetstream.JetStream, organization string, visit func(deadletter.Letter) error) error {
	for _, seq := range f.Seqs {
		l, err := deadletter.Get(e.ctx, js, seq)
		if err == nil {
			err = visit(l)
		}
		if err != nil {
			return err
		}
	}
	if len(f.Seqs) > 0 {
		return nil
	}
	var failed error
	err := deadletter.Each(e.ctx, js, organization, func(l deadletter.Letter) bool {
		if l.Like(f.Like) {
			failed = visit(l)
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// ownTrail records what an operator does, as the system does it.
func ownTrail(client *broker.Client) (owntrail.Trail, error) {
	p, err := producers.New(client.JS, producers.Config{RecordedBy: schema.RecordedBySystem, LingerAsync: time.Millisecond})
	return owntrail.Trail{Publisher: p}, err
}

// about is the beginning of an event of an operator about a letter.
func about(l *deadletter.Letter, client *broker.Client) schema.Event {
	organization := l.Organization
	if organization == deadletter.Invalid {
		organization = ""
	}
	return schema.Event{Organization: organization, Actor: schema.Actor{Type: "operator", ID: operatorOf(client).By}}
}

type deadletterReplayCmd struct {
	lettersFlags
	Organization string        `short:"o" help:"With numbers: publish for this organization. With --all or --like: only letters of this organization."`
	Trail        string        `short:"t" enum:"activity,access," default:"" help:"Publish on this trail: activity or access."`
	To           string        `placeholder:"ORGANIZATION" help:"Publish for this organization; as -o with numbers."`
	Data         string        `placeholder:"FILE" help:"Publish the bytes of this file in place of the letter's; for one letter."`
	Set          []string      `sep:"none" placeholder:"FIELD=VALUE" help:"Set a field of each event, or remove it if the value is empty: action=read, actor.id=u-7, attributes.domain=x. May be repeated."`
	Mapping      string        `short:"m" placeholder:"NAME|FILE" help:"Make events of the bytes with a mapping, as kansa publish does."`
	Wait         time.Duration `default:"1m" help:"How long to wait for the writer, to report what comes back (${default}); 0 not to."`
}

func (*deadletterReplayCmd) Help() string {
	return `A letter is removed when what was published in its place is on disk. What still cannot be stored comes back as a new letter; the
command reports that, and its exit code is 1.

A letter goes to the organization and trail of its subject; a corrected event, to those that it names. Where they differ, the person
who changes it is recorded as its publisher. Each replay is recorded in the activity trail.

  kansa deadletter replay 17 --data corrected.json
  kansa deadletter replay 17 -o acme -t activity
  kansa deadletter replay --like "upper case" --set action=read
  kansa deadletter replay --all -o acme`
}

func (c *deadletterReplayCmd) change() (deadletter.Change, error) {
	change := deadletter.Change{Organization: c.To, Trail: schema.Trail(c.Trail)}
	if c.To != "" && c.Organization != "" && len(c.Seqs) > 0 {
		return change, fmt.Errorf("--to and -o are the same with numbers: give one of them")
	}
	if len(c.Seqs) > 0 && c.Organization != "" {
		change.Organization = c.Organization
	}
	if c.Data != "" {
		if len(c.Seqs) != 1 {
			return change, fmt.Errorf("--data is for one letter: give one number")
		}
		var err error
		if change.Data, err = os.ReadFile(c.Data); err != nil {
			return change, fmt.Errorf("read --data: %w", err)
		}
	}
	for _, set := range c.Set {
		field, value, ok := strings.Cut(set, "=")
		if !ok || field == "" {
			return change, fmt.Errorf("--set %q has no value: give --set FIELD=VALUE", set)
		}
		if change.Set == nil {
			change.Set = map[string]string{}
		}
		change.Set[field] = value
	}
	if c.Mapping != "" {
		m, err := mapping.Load(c.Mapping)
		if err != nil {
			return change, err
		}
		change.Mapping = m
	}
	return change, nil
}

func (c *deadletterReplayCmd) Run(e *env) error {
	if err := c.check(); err != nil {
		return err
	}
	change, err := c.change()
	if err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "deadletter")
	if err != nil {
		return err
	}
	defer client.Close()
	own, err := ownTrail(client)
	if err != nil {
		return err
	}
	last, err := deadletter.Last(e.ctx, client.JS)
	if err != nil {
		return err
	}
	only := c.Organization
	if len(c.Seqs) > 0 {
		only = ""
	}
	var replayed []deadletter.Replayed
	unfit := 0
	failed := c.each(e, client.JS, only, func(l deadletter.Letter) error {
		r, err := deadletter.Replay(e.ctx, client.JS, l, change, operatorOf(client).By)
		if errors.Is(err, deadletter.ErrUnfit) {
			if unfit++; unfit <= maxShownRejects {
				fmt.Fprintln(e.stderr, err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		r.Letter.Data = nil
		replayed = append(replayed, *r)
		return own.RecordNow(e.ctx, r.Event(about(&l, client)))
	})
	if err := own.Publisher.Close(e.ctx); failed == nil {
		failed = err
	}
	if failed == nil && len(replayed)+unfit == 0 {
		return fmt.Errorf("no dead letter is meant: see kansa deadletter list")
	}
	outcome, err := deadletter.OutcomeOf(e.ctx, client.JS, client, replayed, last, c.Wait)
	if err != nil {
		fmt.Fprintf(e.stderr, "%d replayed; what came back is not known\n", len(replayed))
		return errors.Join(failed, err)
	}
	fmt.Fprintln(e.stderr, outcomeText(outcome, unfit, c.Wait))
	if failed == nil && (outcome.CameBack > 0 || unfit > 0 || outcome.Unsettled && c.Wait > 0) {
		return errFailed
	}
	return failed
}

// outcomeText is the outcome of a replay for a person.
func outcomeText(o *deadletter.Outcome, unfit int, waited time.Duration) string {
	text := fmt.Sprintf("%d replayed", o.Replayed)
	if o.CameBack > 0 {
		text += fmt.Sprintf(", %d came back", o.CameBack)
	}
	if unfit > 0 {
		text += fmt.Sprintf(", %d could not be replayed so", unfit)
	}
	if o.Unsettled {
		text += fmt.Sprintf("; the writer has not come to all of them within %s, so that more may come back", waited)
	}
	switch {
	case len(o.Causes) == 1:
		text += ": " + o.Causes[0].Example
	case len(o.Causes) > 1:
		text += ":"
		for _, c := range o.Causes {
			text += fmt.Sprintf("\n  %d: %s", c.Letters, c.Example)
		}
	}
	return text
}

type deadletterDiscardCmd struct {
	lettersFlags
	Organization string `short:"o" help:"With --all or --like: only letters of this organization."`
	Reason       string `required:"" placeholder:"TEXT" help:"Why they are not wanted; recorded in the activity trail."`
}

func (*deadletterDiscardCmd) Help() string {
	return `Removes dead letters for good. Each is recorded first, in the activity trail of its organization: who discarded it and why, its size and
the SHA-256 of its bytes.

  kansa deadletter discard 17 --reason "noise of a port scan"
  kansa deadletter discard --like "not JSON" -o acme --reason "test data"`
}

func (c *deadletterDiscardCmd) Run(e *env) error {
	if err := c.check(); err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "deadletter")
	if err != nil {
		return err
	}
	defer client.Close()
	own, err := ownTrail(client)
	if err != nil {
		return err
	}
	n := 0
	failed := c.each(e, client.JS, c.Organization, func(l deadletter.Letter) error {
		if err := deadletter.Discard(e.ctx, client.JS, l, c.Reason, about(&l, client), own.RecordNow); err != nil {
			return err
		}
		n++
		return nil
	})
	if err := own.Publisher.Close(e.ctx); failed == nil {
		failed = err
	}
	fmt.Fprintf(e.stderr, "%d discarded\n", n)
	if failed == nil && n == 0 {
		return fmt.Errorf("no dead letter is meant: see kansa deadletter list")
	}
	return failed
}
