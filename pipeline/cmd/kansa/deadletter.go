package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/pipeline/deadletter"
)

type deadletterCmd struct {
	List   deadletterListCmd   `cmd:"" help:"List what could not be stored, and why."`
	Replay deadletterReplayCmd `cmd:"" help:"Publish dead letters again, as they are or mended."`
}

type deadletterListCmd struct {
	natsFlags
	Organization string `short:"o" help:"Only those of this organization; _invalid for subjects that name none."`
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

type deadletterReplayCmd struct {
	natsFlags
	Seqs         []uint64 `arg:"" optional:"" name:"seq" help:"Numbers of the letters, as list shows them."`
	All          bool     `help:"Replay all of them."`
	Organization string   `short:"o" help:"With --all: only those of this organization."`
	Data         string   `placeholder:"FILE" help:"Publish the bytes of this file in place of the letter's; for one letter."`
}

func (*deadletterReplayCmd) Help() string {
	return "A letter is removed when what was published in its place is on disk. What still can't be stored comes back as a new letter."
}

func (c *deadletterReplayCmd) Run(e *env) error {
	if c.All == (len(c.Seqs) > 0) {
		return fmt.Errorf("say which letters: their numbers, or --all")
	}
	var data []byte
	if c.Data != "" {
		if len(c.Seqs) != 1 {
			return fmt.Errorf("--data mends one letter: give one number")
		}
		var err error
		if data, err = os.ReadFile(c.Data); err != nil {
			return fmt.Errorf("read --data: %w", err)
		}
	}
	client, err := c.connect(e.ctx, "deadletter")
	if err != nil {
		return err
	}
	defer client.Close()
	n := 0
	replay := func(l deadletter.Letter) error {
		if err := deadletter.Replay(e.ctx, client.JS, l, data, operatorOf(client).By); err != nil {
			return err
		}
		n++
		return nil
	}
	for _, seq := range c.Seqs {
		l, err := deadletter.Get(e.ctx, client.JS, seq)
		if err != nil {
			return err
		}
		if err := replay(l); err != nil {
			return err
		}
	}
	if c.All {
		var failed error
		err := deadletter.Each(e.ctx, client.JS, c.Organization, func(l deadletter.Letter) bool {
			failed = replay(l)
			return failed == nil
		})
		if err != nil || failed != nil {
			fmt.Fprintf(e.stderr, "%d dead letters replayed before this:\n", n)
			if failed != nil {
				return failed
			}
			return err
		}
	}
	fmt.Fprintf(e.stderr, "%d dead letters replayed\n", n)
	return nil
}
