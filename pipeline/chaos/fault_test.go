//go:build linux

package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// fault is one thing that goes wrong, as it was drawn.
type fault struct {
	kind   string // for counting
	what   string // for people
	at     float64
	during time.Duration
	// begin does it, and returns what undoes it; both look at nothing but s.
	begin func(s *stack) (end func() error, err error)
}

func (f *fault) String() string {
	if f.during == 0 {
		return fmt.Sprintf("%s at %.0f%%", f.what, 100*f.at)
	}
	return fmt.Sprintf("%s at %.0f%% for %s", f.what, 100*f.at, f.during)
}

func nothing() error { return nil }

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return (least + time.Duration(r.Int64N(int64(most-least)))).Round(10 * time.Millisecond)
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// kind is a kind of fault and how often it is drawn. It takes the same draws whether it is possible here or not.
type kind struct {
	name   string
	weight int
	needs  func() error // what is missing here, if anything
	draw   func(r *rand.Rand) fault
}

var kinds = []kind{
	{"kill", 30, nil, drawKill},
	{"kill all", 4, nil, drawKillAll},
	{"stop", 12, nil, drawStop},
	{"network", 30, nil, drawNetwork},
	{"full disk", 10, needsMount, drawFull},
	{"failed syncs", 10, needsTrace, drawSyncs},
}

// awayKinds are those that have an application spool: it can't reach the broker, or that takes nothing.
var awayKinds = []kind{
	{"kill", 2, nil, func(r *rand.Rand) fault { return killed(procBroker, between(r, 300*time.Millisecond, 3*time.Second)) }},
	{"network", 2, nil, func(r *rand.Rand) fault { return poisoned(r, "publisher-broker") }},
	{"full disk", 1, needsMount, func(r *rand.Rand) fault { return filled(r, procBroker) }},
}

// appKinds are those of the application.
var appKinds = []kind{
	{"kill", 3, nil, func(r *rand.Rand) fault {
		return fault{kind: procApp, what: "kill -9 " + procApp, begin: func(s *stack) (func() error, error) {
			s.app.signal(syscall.SIGKILL)
			return nothing, nil
		}}
	}},
	{"stop", 1, nil, func(r *rand.Rand) fault {
		return fault{kind: procApp, what: "SIGSTOP " + procApp, during: between(r, 200*time.Millisecond, 3*time.Second), begin: func(s *stack) (func() error, error) {
			s.app.signal(syscall.SIGSTOP)
			return func() error { s.app.signal(syscall.SIGCONT); return nil }, nil
		}}
	}},
	{"full disk", 2, needsMount, func(r *rand.Rand) fault { return filled(r, diskSpool) }},
	{"failed syncs", 2, needsTrace, func(r *rand.Rand) fault { return unsynced(r, procApp) }},
}

func needsMount() error {
	if !mountable() {
		return fmt.Errorf("full disks need the right to mount")
	}
	return nil
}

func needsTrace() error { return canTrace() }

func drawFault(r *rand.Rand) fault { return drawOf(r, kinds) }

func drawOf(r *rand.Rand, kinds []kind) fault {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	n := r.IntN(total)
	for _, k := range kinds {
		if n -= k.weight; n >= 0 {
			continue
		}
		f := k.draw(r)
		f.kind, f.at = k.name+": "+f.kind, r.Float64()
		if k.needs != nil && k.needs() != nil {
			f.begin = func(*stack) (func() error, error) { return nothing, nil }
			f.what = "(left out: " + f.what + ")"
		}
		return f
	}
	panic("not reached")
}

func drawKill(r *rand.Rand) fault {
	name := pick(r, append([]string{procBroker, procBroker, procEngine, procEngine}, roleProcs...))
	down := time.Duration(0)
	if r.IntN(3) == 0 && name != procEngine { // its supervisor starts it again at once
		down = between(r, 100*time.Millisecond, 2*time.Second)
	}
	return killed(name, down)
}

func killed(name string, down time.Duration) fault {
	return fault{kind: base(name), what: "kill -9 " + name, during: down, begin: func(s *stack) (func() error, error) {
		if name == procEngine {
			return nothing, s.signalEngine(syscall.SIGKILL)
		}
		if down == 0 {
			s.procs[name].kill()
			return nothing, nil
		}
		s.procs[name].hold()
		return func() error { s.procs[name].release(); return nil }, nil
	}}
}

// base is the role of a process: several have the same.
func base(name string) string {
	role, _, _ := strings.Cut(name, "-")
	return role
}

// drawKillAll kills everything at once: what a power cut leaves of processes.
func drawKillAll(r *rand.Rand) fault {
	down := between(r, 100*time.Millisecond, time.Second)
	return fault{kind: "everything", what: "kill -9 everything", during: down, begin: func(s *stack) (func() error, error) {
		var all sync.WaitGroup
		for _, p := range s.procs {
			all.Go(p.hold)
		}
		err := s.signalEngine(syscall.SIGKILL)
		all.Wait()
		return func() error {
			for _, p := range s.procs {
				p.release()
			}
			return nil
		}, err
	}}
}

// drawStop stops a process and lets it go on: a writer for longer than its leases, with another beside it.
func drawStop(r *rand.Rand) fault {
	name := pick(r, []string{"writer-1", "writer-1", "writer-2", "rollup-1", "exporter-1", procBroker, procEngine, procEngine})
	during := between(r, 200*time.Millisecond, 1500*time.Millisecond)
	long := r.IntN(2) == 0
	beyond := between(r, ackWait, ackWait+2*time.Second)
	if kind := base(name); long && kind != procBroker {
		during = beyond
	}
	return fault{kind: base(name), what: "SIGSTOP " + name, during: during, begin: func(s *stack) (func() error, error) {
		if name == procEngine {
			pid := s.engine.PID()
			return func() error {
				if s.engine.PID() != pid {
					return nil // another fault has killed it
				}
				return s.signalEngine(syscall.SIGCONT)
			}, s.signalEngine(syscall.SIGSTOP)
		}
		s.procs[name].signal(syscall.SIGSTOP)
		return func() error { s.procs[name].signal(syscall.SIGCONT); return nil }, nil
	}}
}

func (s *stack) signalEngine(sig syscall.Signal) error {
	pid := s.engine.PID()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("signal the engine: %w", err)
	}
	return nil
}

func drawNetwork(r *rand.Rand) fault {
	return poisoned(r, pick(r, linkNames))
}

func poisoned(r *rand.Rand, link string) fault {
	trouble := pick(r, troubles)
	toxics := trouble.draw(r)
	during := between(r, 100*time.Millisecond, 2*time.Second)
	return fault{kind: trouble.name, what: trouble.name + " " + link, during: during, begin: func(s *stack) (func() error, error) {
		return func() error { s.net.heal(link); return nil }, s.net.poison(link, toxics)
	}}
}

func drawFull(r *rand.Rand) fault {
	return filled(r, pick(r, diskNames))
}

func filled(r *rand.Rand, name string) fault {
	leave := int64(r.IntN(4)) * 24 << 10
	during := between(r, 300*time.Millisecond, 2*time.Second)
	return fault{kind: name, what: "full disk of " + name, during: during, begin: func(s *stack) (func() error, error) {
		d := s.disks[name]
		return d.empty, d.fill(leave)
	}}
}

func drawSyncs(r *rand.Rand) fault {
	return unsynced(r, pick(r, []string{procBroker, procEngine, "rollup-1", "rollup-2"}))
}

func unsynced(r *rand.Rand, name string) fault {
	nth, once := 1+r.IntN(8), r.IntN(2) == 0
	during := between(r, 500*time.Millisecond, 2*time.Second)
	return fault{kind: base(name), what: fmt.Sprintf("EIO at sync %d (once: %t) of %s", nth, once, name), during: during, begin: func(s *stack) (func() error, error) {
		var pid int
		switch name {
		case procEngine:
			pid = s.engine.PID()
		case procApp:
			pid = s.app.pid()
		default:
			pid = s.procs[name].pid()
		}
		if pid == 0 {
			return nothing, nil // another fault has killed it
		}
		t, err := failSyncs(pid, nth, once)
		if err != nil {
			return nothing, err
		}
		return func() error { t.stop(); return nil }, nil
	}}
}

// plan is what one round does, all of it drawn beforehand.
type plan struct {
	way        string
	events     int
	perMessage int
	pace       time.Duration // for all of them
	retryFor   time.Duration
	seed       uint64
	faults     []fault
}

func drawPlan(r *rand.Rand) plan {
	p := plan{
		events: 200 + r.IntN(1300), perMessage: pick(r, []int{1, 5, 20, 100, 500}), pace: between(r, 200*time.Millisecond, 1500*time.Millisecond),
		retryFor: pick(r, []time.Duration{time.Second, 20 * time.Second, 20 * time.Second}), seed: r.Uint64(),
	}
	if p.perMessage == 1 {
		p.events = min(p.events, 400)
	}
	if p.way = pick(r, []string{byLibrary, byHTTP, bySpool}); p.way == byHTTP {
		p.perMessage = max(p.perMessage, 20)
	}
	for range 1 + r.IntN(3) {
		p.faults = append(p.faults, drawFault(r))
	}
	if p.way == bySpool {
		p.faults = append(p.faults, drawOf(r, awayKinds), drawOf(r, appKinds))
	}
	slices.SortStableFunc(p.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return p
}
