package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/status"
)

type topCmd struct {
	watchFlags
	Every time.Duration `default:"1s" help:"How often to look (${default})."`
	Once  bool          `help:"Look twice, print once, and end; also where the output is no terminal."`
	JSON  bool          `name:"json" help:"A JSON object a line, until it is told to stop; with --once, one."`
}

func (*topCmd) Help() string {
	return `Shows, every second, the running processes, what they store and deliver, how far they are behind, and what their checks find. Keys: q ends it;
s changes the order of the processes.

  kansa top
  kansa top --once
  kansa top --json`
}

func (c *topCmd) Run(e *env) error {
	if c.Every < 100*time.Millisecond {
		return fmt.Errorf("--every is %s: give 100ms at least", c.Every)
	}
	client, _, err := c.reach(e.ctx, "top")
	if err != nil {
		return err
	}
	defer client.Close()
	w := watcher{nc: client.NC, every: c.Every}
	live := !c.Once && !c.JSON && isTerminal(e.stdout)
	switch {
	case live:
		return w.live(e)
	case c.JSON && !c.Once:
		return w.each(e.ctx, func(t *top) error { return json.NewEncoder(e.stdout).Encode(t) })
	}
	t, err := w.look(e.ctx)
	if err == nil { // rates take two looks
		err = sleep(e.ctx, c.Every)
	}
	if err == nil {
		t, err = w.look(e.ctx)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(t)
	}
	return t.print(e.stdout, byRole)
}

// top is one look at a system.
type top struct {
	At        time.Time    `json:"at"`
	Processes []topProcess `json:"processes"`
	// Rates, events a second since the look before; absent at the first.
	Rates map[string]float64 `json:"rates,omitempty"`
	// Figures of the whole system; what a process counts for itself is added up, what all ask the broker for is the greatest.
	Figures  map[string]float64 `json:"figures"`
	Streams  []topStream        `json:"streams"`
	Findings []health.Finding   `json:"findings"`
}

type topProcess struct {
	status.Process
	State string `json:"state"` // ok, warning, failing, or silent
	// CPU is in cores.
	CPU    float64 `json:"cpu"`
	Memory float64 `json:"memory_bytes"`
	Stored float64 `json:"stored_per_second"`
	Free   float64 `json:"disk_free_bytes,omitempty"` // of the fullest disk that it writes to
}

type topStream struct {
	Name     string  `json:"name"`
	Messages float64 `json:"messages"`
	Bytes    float64 `json:"bytes"`
	Limit    float64 `json:"max_bytes,omitempty"`
}

// watcher looks again and again.
type watcher struct {
	nc     *nats.Conn
	every  time.Duration
	before map[string]status.Seen
	at     time.Time
}

// answerWithin is how long a process may take; its checks take three seconds at most.
const answerWithin = 6 * time.Second

func (w *watcher) look(ctx context.Context) (*top, error) {
	seen, err := status.Ask(ctx, w.nc, status.Question{}, answerWithin)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := summary(seen, w.before, now.Sub(w.at))
	t.At = now.UTC()
	w.before, w.at = map[string]status.Seen{}, now
	for _, s := range seen {
		w.before[s.ID] = s
	}
	return t, nil
}

// each looks until ctx ends.
func (w *watcher) each(ctx context.Context, show func(*top) error) error {
	for {
		began := time.Now()
		t, err := w.look(ctx)
		if err == nil {
			err = show(t)
		}
		if err == nil {
			err = sleep(ctx, w.every-time.Since(began))
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(max(0, d)):
		return nil
	}
}

// Rates that are shown, and the counters that they are of.
var topRates = []struct{ name, metric string }{
	{"published", `kansa_gateway_events_total{result="accepted"}`},
	{"stored", "kansa_writer_events_stored_total"},
	{"dead_lettered", "kansa_writer_events_rejected_total"},
	{"skipped", "kansa_writer_events_skipped_total"},
	{"inserts", "kansa_writer_inserts_total"},
	{"partitions", "kansa_rollup_partitions_total"},
}

// Figures that are shown. Those of one process are added up; the others are the same from every process, or the worst counts.
var topFigures = []struct {
	name, metric string
	sum          bool
}{
	{"writer_lag_seconds", "kansa_writer_lag_seconds", false},
	{"ack_floor_age_seconds", "kansa_writer_ack_floor_age_seconds", false},
	{"rollup_lag_seconds", "kansa_rollup_lag_seconds", false},
	{"sealed_until", "kansa_rollup_done_until_timestamp_seconds", false},
	{"hours_sealed", "kansa_rollup_hours_total", true},
	{"last_hour_seconds", "kansa_rollup_last_hour_seconds", false},
	{"trails_in_alarm", "kansa_rollup_blocked_trails", false},
	{"dead_letters", "kansa_dead_letters", false},
	{"trails_off", "kansa_trails_off", false},
	{"delivered", `kansa_exporter_deliveries_total{result="delivered"}`, true},
	{"deliveries_failed", `kansa_exporter_deliveries_total{result="failed"}`, true},
	{"deliveries_given_up", `kansa_exporter_deliveries_total{result="given_up"}`, true},
	{"exports_waiting", `kansa_consumer_lag_messages{consumer="exporter"}`, false},
	{"failing_delivery_age_seconds", "kansa_exporter_failing_delivery_age_seconds", false},
}

// summary is what seen says, with rates over the time since before.
func summary(seen []status.Seen, before map[string]status.Seen, since time.Duration) *top {
	t := &top{Processes: []topProcess{}, Figures: map[string]float64{}, Streams: []topStream{}, Findings: []health.Finding{}}
	streams := map[string]*topStream{}
	if len(before) > 0 {
		t.Rates = map[string]float64{}
	}
	for _, s := range seen {
		p := topProcess{Process: s.Process, State: "silent"}
		if s.Status == nil {
			t.Processes = append(t.Processes, p)
			continue
		}
		now := s.Status.Figures
		rate := func(metric string) float64 {
			then, ok := before[s.ID]
			if !ok || then.Status == nil || since <= 0 {
				return 0
			}
			return max(0, now[metric]-then.Status.Figures[metric]) / since.Seconds()
		}
		p.State = "ok"
		for _, f := range s.Status.Health.Findings {
			if p.State != string(health.Failing) {
				p.State = string(f.Severity)
			}
			if !slices.Contains(t.Findings, f) {
				t.Findings = append(t.Findings, f)
			}
		}
		p.CPU, p.Memory, p.Stored = rate("process_cpu_seconds_total"), now["process_resident_memory_bytes"], rate("kansa_writer_events_stored_total")
		for name, v := range now {
			if strings.HasPrefix(name, "kansa_disk_free_bytes{") && (p.Free == 0 || v < p.Free) {
				p.Free = v
			}
			for prefix, to := range map[string]func(*topStream) *float64{
				"kansa_stream_messages": func(s *topStream) *float64 { return &s.Messages }, "kansa_stream_bytes": func(s *topStream) *float64 { return &s.Bytes },
				"kansa_stream_max_bytes": func(s *topStream) *float64 { return &s.Limit },
			} {
				stream, ok := strings.CutPrefix(name, prefix+`{stream="`)
				if !ok {
					continue
				}
				stream = strings.TrimSuffix(stream, `"}`)
				if streams[stream] == nil {
					streams[stream] = &topStream{Name: stream}
				}
				at := to(streams[stream])
				*at = max(*at, v)
			}
		}
		for _, r := range topRates {
			if t.Rates != nil {
				t.Rates[r.name] += rate(r.metric)
			}
		}
		for _, f := range topFigures {
			v, ok := now[f.metric]
			switch have, known := t.Figures[f.name]; {
			case !ok:
			case f.sum:
				t.Figures[f.name] = have + v
			case !known || v > have:
				t.Figures[f.name] = v
			}
		}
		t.Processes = append(t.Processes, p)
	}
	for _, s := range streams {
		if !strings.HasPrefix(s.Name, "KV_") {
			t.Streams = append(t.Streams, *s)
		}
	}
	slices.SortFunc(t.Streams, func(a, b topStream) int { return strings.Compare(a.Name, b.Name) })
	return t
}

// order is how processes are sorted.
type order int

const (
	byRole order = iota
	byCPU
	byMemory
	orders
)

func (o order) String() string { return [...]string{"role", "CPU", "memory"}[o] }

func (o order) sort(all []topProcess) {
	slices.SortStableFunc(all, func(a, b topProcess) int {
		switch o {
		case byCPU:
			return cmp.Compare(b.CPU, a.CPU)
		case byMemory:
			return cmp.Compare(b.Memory, a.Memory)
		default:
			return strings.Compare(strings.Join(a.Roles, ","), strings.Join(b.Roles, ","))
		}
	})
}

// print writes t for people.
func (t *top) print(w io.Writer, o order) error {
	o.sort(t.Processes)
	f := t.Figures
	fmt.Fprintf(w, "kansa top  %s  %d processes\n\n", t.At.Local().Format("2006-01-02 15:04:05"), len(t.Processes))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rate := func(name string) string {
		if t.Rates == nil {
			return "-"
		}
		return grouped(uint64(t.Rates[name] + 0.5))
	}
	seconds := func(name string) string {
		v, ok := f[name]
		if !ok {
			return "-"
		}
		return time.Duration(v * float64(time.Second)).Round(10 * time.Millisecond).String()
	}
	number := func(name string) string {
		v, ok := f[name]
		if !ok {
			return "-"
		}
		return grouped(uint64(v))
	}
	sealed := "-"
	if v, ok := f["sealed_until"]; ok {
		sealed = time.Unix(int64(v), 0).UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(table, "events/s\tstored %s\tby HTTP %s\tdead letters %s\tinserts %s\n", rate("stored"), rate("published"), rate("dead_lettered"), rate("inserts"))
	fmt.Fprintf(table, "behind\twriter %s\tnothing settled for %s\tlast sealed hour %s ago\t\n", seconds("writer_lag_seconds"), seconds("ack_floor_age_seconds"), seconds("rollup_lag_seconds"))
	fmt.Fprintf(table, "hours\tsealed until %s\there %s\tlast took %s\tin alarm %s\n", sealed, number("hours_sealed"), seconds("last_hour_seconds"), number("trails_in_alarm"))
	fmt.Fprintf(table, "deliveries\tdone %s\tfailed %s\tgiven up %s\twaiting %s\n", number("delivered"), number("deliveries_failed"), number("deliveries_given_up"), number("exports_waiting"))
	fmt.Fprintf(table, "waiting\tdead letters %s\ttrails off %s\tfailing delivery for %s\t\n", number("dead_letters"), number("trails_off"), seconds("failing_delivery_age_seconds"))
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(table, "STREAM\tMESSAGES\tBYTES\tFULL")
	for _, s := range t.Streams {
		full := "-"
		if s.Limit > 0 {
			full = fmt.Sprintf("%.0f %%", 100*s.Bytes/s.Limit)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", s.Name, grouped(uint64(s.Messages)), health.Size(uint64(s.Bytes)), full)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(table, "PROCESS\tSTATE\tCPU\tMEMORY\tSTORED/S\tDISK FREE\tUP\tROLES")
	for i := range t.Processes {
		p := &t.Processes[i]
		free := "-"
		if p.Free > 0 {
			free = health.Size(uint64(p.Free))
		}
		fmt.Fprintf(table, "%s\t%s\t%.0f %%\t%s\t%s\t%s\t%s\t%s\n", p.Name(), p.State, 100*p.CPU, health.Size(uint64(p.Memory)), grouped(uint64(p.Stored+0.5)), free,
			t.At.Sub(p.Since).Round(time.Second), strings.Join(p.Roles, ","))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(t.Findings) > 0 {
		fmt.Fprintln(w)
	}
	for _, f := range t.Findings {
		fmt.Fprintf(w, "%s: %s: %s: %s\n", f.Severity, f.Role, f.Check, f.Reason)
		if f.Remedy != "" {
			fmt.Fprintf(w, "  what to do: %s\n", f.Remedy)
		}
	}
	return nil
}

// live shows it on a terminal until q is pressed.
func (w *watcher) live(e *env) error {
	ctx, stop := context.WithCancel(e.ctx)
	defer stop()
	keys := make(chan byte, 8)
	restore, err := readKeys(e.stdin, keys)
	if err != nil {
		return err
	}
	defer restore()
	fmt.Fprint(e.stdout, "\x1b[?1049h\x1b[?25l")       // another screen, no cursor
	defer fmt.Fprint(e.stdout, "\x1b[?25h\x1b[?1049l") // as it was
	var last *top
	o := byRole
	draw := func() error {
		if last == nil {
			return nil
		}
		var b strings.Builder
		if err := last.print(&b, o); err != nil {
			return err
		}
		fmt.Fprintf(&b, "\nby %s; s: another order, q: end", o)
		return screen(e.stdout, b.String())
	}
	looks, failed := make(chan *top), make(chan error, 1)
	go func() {
		failed <- w.each(ctx, func(t *top) error {
			select {
			case looks <- t:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	for {
		select {
		case last = <-looks:
		case err := <-failed:
			return err
		case k := <-keys:
			switch k {
			case 'q', 'Q', 3: // Ctrl-C
				stop()
				return <-failed
			case 's', 'S':
				o = (o + 1) % orders
			}
		}
		if err := draw(); err != nil {
			return errors.Join(err, e.ctx.Err())
		}
	}
}

// screen writes text from the top left corner, each line over the one that was there, cut where the terminal ends.
func screen(w io.Writer, text string) error {
	columns, rows := 0, 0
	if f, ok := w.(*os.File); ok {
		columns, rows = terminalSize(f)
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for n, line := range strings.Split(text, "\n") {
		if rows > 0 && n >= rows {
			break
		}
		if n > 0 {
			b.WriteString("\r\n")
		}
		if r := []rune(line); columns > 0 && len(r) > columns {
			line = string(r[:columns])
		}
		b.WriteString(line + "\x1b[K")
	}
	b.WriteString("\x1b[J")
	_, err := io.WriteString(w, b.String())
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	columns, _ := terminalSize(f)
	return columns > 0
}
