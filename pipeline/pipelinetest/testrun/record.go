package main

import (
	"slices"
	"strings"
	"time"
)

// event is a line of go test -json; see go doc test2json.
type event struct {
	Time        time.Time
	Action      string
	Package     string
	ImportPath  string // of a build
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// tail keeps the end of a log.
type tail struct {
	text []byte
	max  int
	cut  bool
}

func (l *tail) add(s string) {
	l.text = append(l.text, s...)
	if l.max == 0 {
		l.max = 1 << 20
	}
	if len(l.text) > 2*l.max {
		l.text, l.cut = slices.Clone(l.text[len(l.text)-l.max:]), true
	}
}

// lines returns the last n lines.
func (l *tail) lines(n int) string {
	text := strings.TrimRight(string(l.text), "\n")
	all := strings.Split(text, "\n")
	if len(all) > n {
		all = append([]string{"… (the lines before are left out)"}, all[len(all)-n:]...)
	}
	return strings.Join(all, "\n")
}

// Outcomes of a test. A test without one did not end before its process did.
const (
	passed  = "pass"
	failed  = "fail"
	skipped = "skip"
)

// test is a top-level test, with the output of its subtests.
type test struct {
	name    string
	outcome string
	seconds float64
	log     tail
	since   time.Time // it runs since then; zero while it waits for its turn
	within  string    // the subtest that began last
	raced   bool
	paniced bool
}

// skip is a test or subtest that was skipped.
type skip struct {
	pkg, name, why string
}

// pkg is what a run of a package's tests said.
type pkg struct {
	path    string
	outcome string
	seconds float64
	tests   map[string]*test
	order   []string
	skips   []skip
	log     tail   // what belongs to no test
	build   string // import path of what did not build
	raced   bool
	paniced bool
	// dump is the stacks of a process that was ended because it took too long, and hung the tests that it was in.
	dump    tail
	dumping bool
	hung    []hang
	started time.Time
}

// hang is a test that was running when its process was ended.
type hang struct {
	test   string
	within string
	after  time.Duration
}

// record is what a go test said.
type record struct {
	packages map[string]*pkg
	order    []string
	builds   map[string]*tail
	stray    tail // lines that are not JSON
	code     int  // of go test
	keep     bool // the logs of tests that passed
	started  time.Time
	reasons  map[string]*tail // of skips, by package and test
}

func newRecord() *record {
	return &record{packages: map[string]*pkg{}, builds: map[string]*tail{}, reasons: map[string]*tail{}, started: time.Now()}
}

func (r *record) pkg(path string) *pkg {
	p := r.packages[path]
	if p == nil {
		p = &pkg{path: path, tests: map[string]*test{}}
		p.dump.max = 16 << 20
		r.packages[path], r.order = p, append(r.order, path)
	}
	return p
}

func (p *pkg) test(name string) *test {
	t := p.tests[name]
	if t == nil {
		t = &test{name: name}
		p.tests[name], p.order = t, append(p.order, name)
	}
	return t
}

// add takes an event. It returns the package of which the last event this was.
func (r *record) add(e event) (ended *pkg) {
	switch {
	case e.Action == "build-output":
		b := r.builds[e.ImportPath]
		if b == nil {
			b = &tail{}
			r.builds[e.ImportPath] = b
		}
		b.add(e.Output)
		return nil
	case e.Package == "":
		return nil
	}
	p := r.pkg(e.Package)
	if e.Test == "" {
		switch e.Action {
		case "start":
			p.started = e.Time
		case "output":
			p.output(nil, e)
		case passed, failed, skipped:
			p.outcome, p.seconds, p.build = e.Action, e.Elapsed, e.FailedBuild
			return p
		}
		return nil
	}
	top, _, sub := strings.Cut(e.Test, "/")
	t := p.test(top)
	switch e.Action {
	case "run", "cont":
		if !sub {
			t.since = e.Time
		} else {
			t.within = e.Test
		}
	case "pause":
		if !sub {
			t.since = time.Time{}
		}
	case "output":
		p.output(t, e)
		if key := e.Package + " " + e.Test; !strings.HasPrefix(e.Output, "=== ") {
			if r.reasons[key] == nil {
				r.reasons[key] = &tail{max: 2048}
			}
			r.reasons[key].add(e.Output)
		}
	case passed, failed, skipped:
		key := e.Package + " " + e.Test
		if e.Action == skipped {
			why := ""
			if said := r.reasons[key]; said != nil {
				why = strings.TrimSpace(said.lines(3))
			}
			p.skips = append(p.skips, skip{e.Package, e.Test, why})
		}
		delete(r.reasons, key)
		if !sub {
			t.outcome, t.seconds, t.since = e.Action, e.Elapsed, time.Time{}
			if e.Action == passed && !t.raced && !r.keep {
				t.log = tail{}
			}
		}
	}
	return nil
}

// output files a line. t is nil for a line that belongs to no test.
func (p *pkg) output(t *test, e event) {
	line := strings.TrimRight(e.Output, "\n")
	timedOut := strings.HasPrefix(line, "panic: test timed out after ")
	if !p.dumping && (timedOut || line == "SIGQUIT: quit") {
		p.dumping = true
		for _, name := range p.order {
			if t := p.tests[name]; t.outcome == "" && !t.since.IsZero() {
				p.hung = append(p.hung, hang{t.name, t.within, e.Time.Sub(t.since)})
			}
		}
	}
	if p.dumping {
		// test2json takes it for the output of any test that it last heard of.
		p.dump.add(e.Output)
		return
	}
	race := strings.TrimSpace(line) == "WARNING: DATA RACE"
	crash := strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
	if t == nil {
		p.raced, p.paniced = p.raced || race, p.paniced || crash
		p.log.add(e.Output)
		return
	}
	t.raced, t.paniced = t.raced || race, t.paniced || crash
	t.log.add(e.Output)
}

// stuck returns the tests to blame for a timeout. Others that were running as well had had less time.
func (p *pkg) stuck() []hang {
	longest := time.Duration(0)
	for _, h := range p.hung {
		longest = max(longest, h.after)
	}
	var out []hang
	for _, h := range p.hung {
		if h.after > longest/2 {
			out = append(out, h)
		}
	}
	return out
}

// decided lists the tests that have an outcome.
func (p *pkg) decided() []string {
	var names []string
	for _, name := range p.order {
		if p.tests[name].outcome != "" {
			names = append(names, name)
		}
	}
	return names
}

// failedTests lists the tests that failed.
func (p *pkg) failedTests() []*test {
	var out []*test
	for _, name := range p.order {
		if t := p.tests[name]; t.outcome == failed {
			out = append(out, t)
		}
	}
	return out
}

// goroutinesIn returns the goroutines of a dump that are in a test, at most limit.
func goroutinesIn(dump, name string, limit int) []string {
	top, _, _ := strings.Cut(name, "/")
	var found, asides []string
	for block := range strings.SplitSeq(dump, "\n\n") {
		at := strings.Index(block, "goroutine ")
		if at < 0 || at > 0 && block[at-1] != '\n' {
			continue
		}
		block = strings.TrimSpace(block[at:])
		var in, runner bool
		for line := range strings.Lines(block) {
			if strings.HasPrefix(line, "created by ") {
				continue
			}
			in = in || strings.Contains(line, "."+top+"(") || strings.Contains(line, "."+top+".")
			runner = runner || strings.HasPrefix(line, "testing.tRunner(")
		}
		switch {
		case in && runner:
			found = append(found, block)
		case in:
			asides = append(asides, block)
		}
	}
	found = append(found, asides...)
	return found[:min(limit, len(found))]
}
