// Package health says what of this process is not working, role by role, to people, probes and alarms.
//
// It asks when it is asked, and mends nothing.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/request"
)

// Severity says whether a role works.
type Severity string

// The severities.
const (
	Failing Severity = "failing" // the role does not do its work
	Warning Severity = "warning" // it does, and somebody should look
)

// Check looks at one thing that a role needs, or does.
type Check struct {
	Role     string
	Name     string
	Severity Severity // of what it finds
	// Part says that what it finds concerns some organizations only: the role works for the others, and the process is ready.
	Part bool
	// Look says what is wrong, or nothing. It returns when ctx ends.
	Look func(ctx context.Context) error
}

// List is all checks of a process: what /readyz, doctor, top, the metrics and the console report. It is safe for concurrent use.
type List struct {
	mu     sync.Mutex
	checks []Check
}

// Add adds a check.
func (l *List) Add(c Check) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checks = append(l.checks, c)
}

// All returns the checks, in the order in which they were added.
func (l *List) All() []Check {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.checks)
}

// State is how one check is doing. Several of one role and name are one.
type State struct {
	Role  string `json:"role"`
	Check string `json:"check"`
	// Severity is what it is if it finds something.
	Severity Severity `json:"severity"`
	OK       bool     `json:"ok"`
	Reason   string   `json:"reason,omitempty"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Finding is what a check found.
type Finding struct {
	Role     string   `json:"role"`
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Reason   string   `json:"reason"`
	// Remedy is what to do about it, if the check knows.
	Remedy string `json:"remedy,omitempty"`
	// bare is the reason without names of tenants; empty if there are none in it.
	bare string
}

// Named adds to what a check found what may be said of it to those who may not learn names of organizations, keys, destinations or hosts.
func Named(err error, bare string, v ...any) error {
	if err == nil {
		return nil
	}
	return named{err, fmt.Sprintf(bare, v...)}
}

type named struct {
	error
	bare string
}

func (n named) Unwrap() error { return n.error }

func bareOf(err error) string {
	if n := (named{}); errors.As(err, &n) {
		return n.bare
	}
	return ""
}

// WithoutNames is the report for HTTP, with no names of tenants. The full one is for doctor and top.
func (r Report) WithoutNames() Report {
	r.Findings = slices.Clone(r.Findings)
	for i := range r.Findings {
		if f := &r.Findings[i]; f.bare != "" {
			f.Reason = f.bare + "; kansa doctor names them"
		}
	}
	r.Checks = states(r.Checks, r.Findings)
	return r
}

// Do adds to what a check found what somebody should do about it: a command, if there is one.
func Do(err error, remedy string, v ...any) error {
	if err == nil {
		return nil
	}
	return remedied{err, fmt.Sprintf(remedy, v...)}
}

type remedied struct {
	error
	remedy string
}

func (r remedied) Unwrap() error { return r.error }

func remedyOf(err error) string {
	if r := (remedied{}); errors.As(err, &r) {
		return r.remedy
	}
	return ""
}

// Report is what all checks found.
type Report struct {
	Ready    bool      `json:"ready"` // nothing is failing
	Findings []Finding `json:"findings"`
	// Checks are all of them, those that found nothing, too.
	Checks []State `json:"checks"`
	// Roles are those that were looked at, each with the worst that was found of it.
	Roles []Role `json:"roles"`
}

// Role is how one is doing: failing, warning, or ok.
type Role struct {
	Role  string `json:"role"`
	State string `json:"state"`
}

// patience bounds a look at everything.
const patience = 3 * time.Second

// Run makes all checks at once.
func Run(ctx context.Context, checks []Check) Report {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	errs := make([]error, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() {
			defer func() {
				if err := request.Caught(ctx, slog.Default(), "check "+c.Name, recover()); err != nil {
					errs[i] = err
				}
			}()
			errs[i] = c.Look(ctx)
		})
	}
	all.Wait()
	r := Report{Ready: true, Findings: []Finding{}, Checks: []State{}, Roles: []Role{}}
	for i, c := range checks {
		at := slices.IndexFunc(r.Roles, func(o Role) bool { return o.Role == c.Role })
		if at < 0 {
			at = len(r.Roles)
			r.Roles = append(r.Roles, Role{c.Role, "ok"})
		}
		if !slices.ContainsFunc(r.Checks, func(o State) bool { return o.Role == c.Role && o.Check == c.Name }) {
			r.Checks = append(r.Checks, State{Role: c.Role, Check: c.Name, Severity: c.Severity})
		}
		if errs[i] == nil {
			continue
		}
		if failing := c.Severity == Failing && !c.Part; failing {
			r.Roles[at].State, r.Ready = string(Failing), false
		} else if r.Roles[at].State == "ok" {
			r.Roles[at].State = string(Warning)
		}
		r.Findings = append(r.Findings, c.finding(errs[i]))
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return strings.Compare(string(a.Severity), string(b.Severity)) })
	r.Checks = states(r.Checks, r.Findings)
	return r
}

// states says of each check what was found.
func states(all []State, findings []Finding) []State {
	all = slices.Clone(all)
	for i := range all {
		s := &all[i]
		var reasons, remedies []string
		for _, f := range findings {
			if f.Role != s.Role || f.Check != s.Check {
				continue
			}
			reasons = append(reasons, f.Reason)
			if f.Remedy != "" && !slices.Contains(remedies, f.Remedy) {
				remedies = append(remedies, f.Remedy)
			}
		}
		s.OK, s.Reason, s.Remedy = len(reasons) == 0, strings.Join(reasons, "; "), strings.Join(remedies, "; ")
	}
	return all
}

// finding is what the check found. A reason is one line, whoever wrote it.
func (c *Check) finding(err error) Finding {
	reason := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return Finding{Role: c.Role, Check: c.Name, Severity: c.Severity, Reason: reason, Remedy: remedyOf(err), bare: bareOf(err)}
}

// Text is the report with a line for each finding.
func (r Report) Text() string {
	var b strings.Builder
	if r.Ready {
		b.WriteString("ready\n")
	} else {
		b.WriteString("not ready\n")
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s: %s: %s: %s", f.Severity, f.Role, f.Check, f.Reason)
		if f.Remedy != "" {
			fmt.Fprintf(&b, " (what to do: %s)", f.Remedy)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Ready answers whether the process works, and not why: 503 if anything is failing.
func Ready(report func(context.Context) Report) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		(Report{Ready: report(req.Context()).Ready, Findings: []Finding{}, Checks: []State{}, Roles: []Role{}}).write(w, req)
	})
}

// Handler answers with what the checks find: 503 if anything is failing; as JSON if that is asked for, or else with
// a line for each finding.
func Handler(report func(context.Context) Report) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		report(req.Context()).WithoutNames().write(w, req)
	})
}

func (r Report) write(w http.ResponseWriter, req *http.Request) {
	body, kind := []byte(r.Text()), "text/plain; charset=utf-8"
	if strings.Contains(req.Header.Get("Accept"), "application/json") {
		var err error
		if body, err = json.Marshal(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		kind = "application/json"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	if !r.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(body) // who asked may be gone
}
