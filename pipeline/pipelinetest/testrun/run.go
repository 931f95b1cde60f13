package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// runner runs go test, several times.
type runner struct {
	options
	ctx      context.Context // ends at Total, or by a signal
	deadline time.Time

	mu   sync.Mutex // of what follows and of the record that is being made
	last time.Time  // of the last line that was printed
}

func (r *runner) printf(format string, args ...any) {
	r.last = time.Now()
	fmt.Fprintf(r.Out, format, args...)
}

// short is the path of a package as people say it.
func short(path string) string {
	return strings.TrimPrefix(path, "github.com/kansa-audit/kansa/")
}

func exactly(names ...string) string {
	for i := range names {
		names[i] = regexp.QuoteMeta(names[i])
	}
	return "^(" + strings.Join(names, "|") + ")$"
}

// run runs the tests and reports. It returns whether the run passed.
func run(ctx context.Context, o options) bool {
	ctx, cancel := context.WithTimeout(ctx, o.Total)
	defer cancel()
	deadline, _ := ctx.Deadline()
	r := &runner{options: o, ctx: ctx, deadline: deadline}
	var args []string
	if o.Run != "" {
		args = append(args, "-run", o.Run)
	}
	v := &verdict{lines: o.Lines}
	together, alone, err := r.packages()
	if err != nil {
		v.fail("go list", err.Error(), "")
	}
	if len(together) > 0 {
		r.first(v, args, args, together...)
	}
	if len(alone) > 0 && ctx.Err() == nil {
		// Their tests wait for processes of their own more than they compute.
		r.first(v, args, append([]string{"-p", "1", "-parallel", strconv.Itoa(runtime.GOMAXPROCS(0) + 1)}, args...), alone...)
	}
	r.again(v)
	return v.report(r.Out, o.RequireAll)
}

// first runs packages for the first time and judges them. Tests that run again get the flags again.
func (r *runner) first(v *verdict, again, flags []string, packages ...string) {
	before := len(v.failures) + len(v.retry)
	rec := r.goTest(false, r.Timeout, flags, packages...)
	for _, path := range rec.order {
		r.judge(v, rec, rec.packages[path], again, true)
	}
	if rec.code != 0 && len(v.failures)+len(v.retry) == before {
		v.fail("go test", fmt.Sprintf("go test ended with %d, and no test failed", rec.code), rec.stray.lines(r.Lines))
	}
	if r.ctx.Err() != nil {
		why := "the run was stopped by a signal"
		if time.Until(r.deadline) <= 0 {
			why = fmt.Sprintf("the run did not end within %s (-total)", r.Total)
		}
		v.fail("run", why+": tests without an outcome are not counted", rec.stray.lines(r.Lines))
	}
}

// packages returns those of which the tests run together, and those of which they run alone.
func (r *runner) packages() (together, alone []string, err error) {
	if len(r.Alone) == 0 {
		return r.Packages, nil, nil
	}
	all, err := r.list(r.Packages)
	if err != nil {
		return nil, nil, err
	}
	lone, err := r.list(r.Alone)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range all {
		if slices.Contains(lone, p) {
			alone = append(alone, p)
		} else {
			together = append(together, p)
		}
	}
	return together, alone, nil
}

func (r *runner) list(patterns []string) ([]string, error) {
	cmd := exec.CommandContext(r.ctx, "go", append([]string{"list"}, patterns...)...)
	cmd.Dir = r.Dir
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w: %s", err, errs.String())
	}
	return strings.Fields(string(out)), nil
}

// judge counts the outcomes of a package, and runs what a hung test kept from running.
func (r *runner) judge(v *verdict, rec *record, p *pkg, args []string, rest bool) {
	for _, name := range p.order {
		t := p.tests[name]
		switch {
		case t.raced:
			v.fail(short(p.path)+" "+name, "data race", t.log.lines(r.Lines))
		case t.outcome != skipped && t.paniced && p.outcome == failed:
			v.fail(short(p.path)+" "+name, "panic", t.log.lines(r.Lines))
		case t.outcome == passed:
			v.passed++
		case t.outcome == failed:
			v.retry = append(v.retry, attempt{pkg: p.path, test: name, why: fmt.Sprintf("failed after %.1fs", t.seconds), log: t.log.lines(r.Lines)})
		}
	}
	v.skips = append(v.skips, p.skips...)
	switch {
	case p.build != "":
		log := p.log.lines(r.Lines)
		if b := rec.builds[p.build]; b != nil {
			log = b.lines(r.Lines)
		}
		v.fail(short(p.path), "does not build", log)
	case p.raced:
		v.fail(short(p.path), "data race", p.log.lines(r.Lines))
	case p.paniced:
		v.fail(short(p.path), "panic", p.log.lines(r.Lines))
	case p.dumping:
		r.hung(v, p, args, rest)
	case p.outcome == failed && !slices.ContainsFunc(p.order, func(n string) bool { t := p.tests[n]; return t.outcome == failed || t.raced || t.paniced }),
		p.outcome != failed && p.outcome != passed && p.outcome != skipped && r.ctx.Err() == nil:
		log := p.log.lines(r.Lines)
		for _, name := range p.order {
			if t := p.tests[name]; t.outcome == "" {
				log += fmt.Sprintf("\n--- %s did not end:\n%s", name, t.log.lines(20))
			}
		}
		v.fail(short(p.path), "the process of its tests failed, and no test did", log)
	case !slices.ContainsFunc(p.order, func(n string) bool { return p.tests[n].paniced }):
		for _, name := range p.order {
			if t := p.tests[name]; t.outcome == "" {
				v.fail(short(p.path)+" "+name, "the process ended before the test did", t.log.lines(r.Lines))
			}
		}
	}
}

// hung reports the tests that a process was in when it took too long.
func (r *runner) hung(v *verdict, p *pkg, args []string, rest bool) {
	stuck := p.stuck()
	var blamed []string
	for _, h := range stuck {
		why := fmt.Sprintf("hung for %s", h.after.Round(100*time.Millisecond))
		if h.within != "" {
			why += " (in " + h.within + ")"
		}
		log := p.tests[h.test].log.lines(r.Lines / 2)
		for _, g := range goroutinesIn(string(p.dump.text), h.test, 3) {
			lines := strings.Split(g, "\n")
			log += "\n\n" + strings.Join(lines[:min(40, len(lines))], "\n")
		}
		blamed = append(blamed, h.test)
		v.retry = append(v.retry, attempt{pkg: p.path, test: h.test, why: why, log: log})
		r.printf("--- HUNG %s %s: %s\n", short(p.path), h.test, why)
	}
	if len(stuck) == 0 {
		v.fail(short(p.path), "its process took too long, and no test was running", p.dump.lines(r.Lines))
	}
	if r.ctx.Err() != nil {
		return
	}
	if !rest {
		v.fail(short(p.path), "a test hung twice: some tests of the package did not run", "")
		return
	}
	skip := append(p.decided(), blamed...)
	r.printf("… %s: running the tests that did not end because %s hung\n", short(p.path), strings.Join(blamed, ", "))
	next := r.goTest(true, r.Timeout, append([]string{"-count=1", "-skip", exactly(skip...)}, args...), p.path)
	for _, path := range next.order {
		r.judge(v, next, next.packages[path], args, false)
	}
}

// again runs each test that failed once more.
func (r *runner) again(v *verdict) {
	for i, a := range v.retry {
		name := short(a.pkg) + " " + a.test
		if r.ctx.Err() != nil || i >= mostReruns {
			v.fail(name, a.why+"; it did not run again", a.log)
			continue
		}
		r.printf("… running %s again, alone\n", name)
		limit := max(time.Second, min(r.Rerun, time.Until(r.deadline)))
		rec := r.goTest(true, limit, []string{"-count=1", "-run", exactly(a.test)}, a.pkg)
		p := rec.pkg(a.pkg)
		t := p.test(a.test)
		sub := &verdict{lines: r.Lines}
		r.judge(sub, rec, p, nil, false)
		second := t.log.lines(r.Lines)
		if len(sub.retry) > 0 {
			second = sub.retry[0].why + "\n" + sub.retry[0].log
		}
		both := "first run: " + a.why + "\n" + a.log + "\n\nsecond run, alone: "
		switch {
		case len(sub.failures) > 0 && p.hung == nil:
			v.fail(name, a.why+"; alone: "+sub.failures[0].why, both+sub.failures[0].why+"\n"+sub.failures[0].log)
		case t.outcome == passed && p.outcome == passed:
			v.flaky = append(v.flaky, failure{name, a.why, both + fmt.Sprintf("passed after %.1fs", t.seconds) + "\n" + second})
		case t.outcome == skipped:
			v.fail(name, a.why+"; skipped when it ran alone", both+"skipped\n"+second)
		default:
			v.fail(name, a.why+"; it failed again, alone", both+second)
		}
	}
}

// goTest runs go test, and reports failures as they come; ended packages too, unless quiet.
func (r *runner) goTest(quiet bool, timeout time.Duration, args []string, packages ...string) *record {
	rec := newRecord()
	rec.keep = quiet
	full := []string{"test", "-json", "-timeout", timeout.String()}
	if r.Race {
		full = append(full, "-race")
	}
	full = append(append(append(full, r.Flags...), args...), packages...)
	cmd := exec.CommandContext(r.ctx, "go", full...)
	cmd.Dir = r.Dir
	alone(cmd)
	cmd.Cancel = func() error { return dump(cmd) }
	// Then it is killed. It also limits the wait for processes that outlive their test with its output open.
	cmd.WaitDelay = r.Grace
	cmd.Stderr = lines(func(line []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		rec.stray.add(string(line))
		r.printf("%s", line)
	})
	read, write := io.Pipe()
	cmd.Stdout = write
	if err := cmd.Start(); err != nil {
		rec.code = -1
		rec.stray.add(err.Error())
		return rec
	}
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(rec, ended) })
	watch.Go(func() {
		scan := bufio.NewReaderSize(read, 1<<16)
		for {
			line, err := scan.ReadBytes('\n')
			if len(line) > 0 {
				r.line(rec, line, quiet)
			}
			if err != nil {
				return
			}
		}
	})
	err := cmd.Wait()
	_ = write.Close()
	close(ended)
	watch.Wait()
	end(cmd) // what its tests started
	if rec.code = cmd.ProcessState.ExitCode(); rec.code == 0 && err != nil {
		rec.code = -1
		rec.stray.add(err.Error() + "\n")
	}
	return rec
}

// watch reports what is running when nothing else has been reported for a while.
func (r *runner) watch(rec *record, ended <-chan struct{}) {
	beat := time.NewTicker(r.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ended:
			return
		case <-beat.C:
			r.mu.Lock()
			if time.Since(r.last) >= r.Heartbeat {
				r.printf("… %s: %s\n", time.Since(rec.started).Round(time.Second), cmp.Or(rec.running(3), "building"))
			}
			r.mu.Unlock()
		}
	}
}

// running names the tests that have run for longest.
func (r *record) running(most int) string {
	type one struct {
		name string
		at   time.Time
	}
	var all []one
	for _, path := range r.order {
		p := r.packages[path]
		for _, name := range p.order {
			if t := p.tests[name]; p.outcome == "" && t.outcome == "" && !t.since.IsZero() {
				all = append(all, one{short(path) + " " + name, t.since})
			}
		}
	}
	slices.SortFunc(all, func(a, b one) int { return a.at.Compare(b.at) })
	var text []string
	for _, o := range all[:min(most, len(all))] {
		text = append(text, fmt.Sprintf("%s for %s", o.name, time.Since(o.at).Round(time.Second)))
	}
	if len(all) > most {
		text = append(text, fmt.Sprintf("%d more", len(all)-most))
	}
	return strings.Join(text, ", ")
}

func (r *runner) line(rec *record, line []byte, quiet bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		rec.stray.add(string(line))
		r.printf("%s", line)
		return
	}
	p := rec.add(e)
	if e.Test != "" && e.Action == failed && !strings.Contains(e.Test, "/") {
		r.printf("--- FAIL %s %s (%.1fs)\n", short(e.Package), e.Test, e.Elapsed)
	}
	switch {
	case p == nil:
	case p.build != "":
		r.printf("FAIL  %s: does not build\n", short(p.path))
	case p.outcome == failed:
		r.printf("FAIL  %s %.1fs: %d of %d tests failed\n", short(p.path), p.seconds, len(p.failedTests()), len(p.tests))
	case p.outcome == passed && !quiet:
		r.printf("ok    %s %.1fs, %d tests\n", short(p.path), p.seconds, len(p.tests))
	}
}

// lines is a writer that hands on whole lines.
func lines(line func([]byte)) io.Writer { return &lineWriter{line: line} }

type lineWriter struct {
	rest []byte
	line func([]byte)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.line(w.rest[:i+1])
		w.rest = w.rest[i+1:]
	}
}
