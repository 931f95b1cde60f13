// Package doctor looks at a running system as a whole, from outside: at the broker and what lies there, and at what each
// process says of itself, and says what is wrong and what to do.
//
// It changes nothing. What a process can see of itself is that process' own check, see pipeline/ready.go; what only
// somebody sees who looks at all of them is here.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/status"
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity health.Severity `json:"severity"`
	// Where it is: a process, a stream, a destination.
	Where string `json:"where"`
	// Check is the one that found it.
	Check  string `json:"check"`
	Reason string `json:"reason"`
	// Remedy is what to do, a command where there is one.
	Remedy string `json:"remedy,omitempty"`
}

// Fact is something worth knowing, and where it was seen.
type Fact struct {
	Where string `json:"where"`
	status.Fact
}

// Report is all of it, the worst first.
type Report struct {
	At time.Time `json:"at"`
	// OK says that nothing is failing; there may be warnings.
	OK        bool          `json:"ok"`
	Findings  []Finding     `json:"findings"`
	Processes []status.Seen `json:"processes"`
	Facts     []Fact        `json:"facts"`
}

// System is what is looked at.
type System struct {
	Client *broker.Client
	// Config is that of a process, if it is at hand: then the files that it names are looked at, too, as they are here.
	Config *config.Config
}

// patient is a system under examination.
type patient struct {
	System
	seen []status.Seen

	mu       sync.Mutex
	findings []Finding
}

func (p *patient) find(severity health.Severity, where, check, remedy, format string, v ...any) {
	p.add(Finding{severity, where, check, oneLine(fmt.Sprintf(format, v...)), remedy})
}

func (p *patient) add(f Finding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.findings = append(p.findings, f)
}

func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

const (
	// answersWithin is how long processes may take to answer; their checks are bounded by less.
	answersWithin = 15 * time.Second
	// checkedWithin bounds all checks.
	checkedWithin = 20 * time.Second
)

// check looks at one side of a system. What it can't look at is a finding, too.
type check struct {
	name string
	look func(ctx context.Context, p *patient) error
}

// checks are all there are. The order does not matter: they are made at once.
var checks = []check{
	{"broker", serverIsSafe},
	{"account", accountHasRoom},
	{"streams", streamsAreWell},
	{"consumers", consumersKeepUp},
	{"processes", processesAreThere},
	{"clocks", clocksAgree},
	{"dead letters", deadLettersWait},
	{"deliveries", deliveriesSucceed},
	{"accounts", accountsAgree},
	{"keys", keysLast},
	{"files", filesAreWell},
}

// Look examines a system.
func Look(ctx context.Context, s System) (*Report, error) {
	seen, err := status.Ask(ctx, s.Client.NC, status.Question{Checks: true}, answersWithin)
	if err != nil {
		return nil, fmt.Errorf("ask all processes: %w", err)
	}
	p := &patient{System: s, seen: seen}
	within, cancel := context.WithTimeout(ctx, checkedWithin)
	defer cancel()
	var looking sync.WaitGroup
	for _, c := range checks {
		looking.Go(func() {
			if err := c.look(within, p); err != nil {
				p.find(health.Failing, "kansa doctor", c.name, "", "it could not be looked at: %v", err)
			}
		})
	}
	looking.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return p.report(), nil
}

// Unreachable is the report of a system whose broker does not answer: nothing else can be known of it.
func Unreachable(err error) *Report {
	return &Report{At: time.Now().UTC(), Findings: []Finding{{
		Severity: health.Failing, Where: "broker", Check: "broker", Reason: oneLine(err.Error()),
		Remedy: "start kansa up, or the NATS server; or name its address with --nats, or the configuration with -c",
	}}, Processes: []status.Seen{}, Facts: []Fact{}}
}

func (p *patient) report() *Report {
	r := &Report{At: time.Now().UTC(), OK: true, Findings: together(p.findings), Processes: p.seen, Facts: facts(p.seen)}
	if r.Processes == nil {
		r.Processes = []status.Seen{}
	}
	for _, f := range r.Findings {
		r.OK = r.OK && f.Severity != health.Failing
	}
	return r
}

// together makes one finding of those that several say.
func together(all []Finding) []Finding {
	one := []Finding{}
	for _, f := range all {
		at := slices.IndexFunc(one, func(o Finding) bool { return o.Severity == f.Severity && o.Check == f.Check && o.Reason == f.Reason })
		if at < 0 {
			one = append(one, f)
		} else if !slices.Contains(strings.Split(one[at].Where, ", "), f.Where) {
			one[at].Where += ", " + f.Where
		}
	}
	slices.SortStableFunc(one, func(a, b Finding) int {
		return cmp.Or(strings.Compare(string(a.Severity), string(b.Severity)), strings.Compare(a.Where, b.Where), strings.Compare(a.Check, b.Check))
	})
	return one
}

// facts are those of all processes; what several say is said once.
func facts(seen []status.Seen) []Fact {
	all := []Fact{}
	for i := range seen {
		if seen[i].Status == nil {
			continue
		}
		for _, f := range seen[i].Status.Facts {
			at := slices.IndexFunc(all, func(o Fact) bool { return o.Fact == f })
			if at < 0 {
				all = append(all, Fact{seen[i].Name(), f})
			} else {
				all[at].Where += ", " + seen[i].Name()
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Fact) int { return strings.Compare(a.Name, b.Name) })
	return all
}
