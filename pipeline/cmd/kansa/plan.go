package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/plan"
)

type planCmd struct {
	EventsPerSecond float64 `required:"" placeholder:"N" help:"Events a second, in the busiest hour."`
	Retention       string  `default:"2y" placeholder:"2y" help:"How long events are kept: days (90d), weeks, months of 30 days or years of 365 (${default})."`
	BytesPerEvent   float64 `placeholder:"N" help:"Size of an event as JSON; that of the measured ones (626) if left out."`
	JSON            bool    `name:"json" help:"Print the plan as JSON, with every figure and its source."`
}

func (*planCmd) Help() string {
	return `Works out streams, shards, servers, cores and disks from the figures of bench/results. It is arithmetic, with its reasons: nobody has
run the larger ones.

  kansa plan --events-per-second 1000000 --retention 2y
  kansa plan --events-per-second 50000 --retention 90d --bytes-per-event 1200 --json`
}

func (c *planCmd) Run(e *env) error {
	retention, err := parseRetention(c.Retention)
	if err != nil {
		return fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	p, err := plan.For(plan.Question{EventsPerSecond: c.EventsPerSecond, Retention: retention, BytesPerEvent: c.BytesPerEvent})
	if err != nil {
		return fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		return out.Encode(p)
	}
	return printPlan(e.stdout, p)
}

func printPlan(w io.Writer, p *plan.Plan) error {
	fmt.Fprintf(w, "%s events a second, kept for %s days, %s bytes of JSON each\n\n", figure(p.EventsPerSecond), figure(p.RetentionDays), figure(p.BytesPerEvent))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range p.Lines {
		fmt.Fprintf(table, "%s\t%s %s\t%s\n", l.Part, figure(l.Number), l.Unit, l.Reason)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, c := range p.Caveats {
		fmt.Fprintln(w, c)
	}
	return nil
}

// figure has three digits that count.
func figure(n float64) string {
	if n >= 100 || n == math.Trunc(n) {
		return grouped(uint64(math.Round(n)))
	}
	return strconv.FormatFloat(n, 'g', 3, 64)
}

// parseRetention reads a number of days, weeks, months or years.
func parseRetention(text string) (time.Duration, error) {
	for unit, days := range map[string]int{"d": 1, "w": 7, "m": 30, "y": 365} {
		number, ok := strings.CutSuffix(text, unit)
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(number); err == nil && n > 0 && n <= 36500/days {
			return time.Duration(n*days) * 24 * time.Hour, nil
		}
	}
	return 0, fmt.Errorf("--retention is %q: give a number of days, weeks, months or years, such as 90d, 6m or 2y", text)
}
