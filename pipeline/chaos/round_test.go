//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema/sample"
)

// round publishes under faults and heals. What happened is in the history.
func (s *stack) round(ctx context.Context, p *plan, a *account, say func(string, ...any)) error {
	began := time.Now()
	since := func() time.Duration { return time.Since(began).Round(time.Millisecond) }
	in, err := s.intake(ctx, p)
	if err != nil {
		return err
	}
	var happening sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	happen := func(f *fault) {
		happening.Go(func() {
			say("%8s  %s", since(), f)
			end, err := f.begin(s)
			if err == nil {
				time.Sleep(f.during)
				err = end()
				say("%8s  end of %s", since(), f.what)
			}
			if err != nil {
				mu.Lock()
				failed = append(failed, fmt.Errorf("%s: %w", f, err))
				mu.Unlock()
			}
		})
	}
	outcomes, err := s.publish(ctx, in, p, a, happen)
	happening.Wait()
	if err = errors.Join(append(failed, err, s.heal(ctx))...); err != nil {
		return err
	}
	flush, cancel := context.WithTimeout(ctx, 2*p.retryFor+time.Minute)
	defer cancel()
	if err := in.close(flush); err != nil {
		return err
	}
	acked := 0
	for id, outcome := range outcomes {
		if outcome(flush) == nil {
			a.acked[id] = true
			acked++
		}
	}
	a.n += acked
	say("%8s  published: %d, acknowledged: %d", since(), len(outcomes), acked)
	return nil
}

// steps of the pace at which events are published.
const steps = 20

// publish hands the events of a round over, each fault at its point among them.
func (s *stack) publish(ctx context.Context, in intake, p *plan, a *account, happen func(*fault)) (map[uuid.UUID]outcome, error) {
	pace := time.NewTicker(p.pace / steps)
	defer pace.Stop()
	events := sample.New(p.seed, nil)
	outcomes := make(map[uuid.UUID]outcome, p.events)
	next := 0
	for i := range p.events + 1 {
		for ; next < len(p.faults) && (i == p.events || p.faults[next].at*float64(p.events) <= float64(i)); next++ {
			happen(&p.faults[next])
		}
		if i == p.events {
			break
		}
		if i%(p.events/steps+1) == 0 {
			<-pace.C
		}
		e := events.Next()
		if e.Organization == "initech" {
			e.Organization = "globex" // fewer partitions an hour
		}
		a.acked[e.ID] = false
		o, err := in.publish(ctx, e)
		if err != nil {
			return outcomes, fmt.Errorf("publish: %w", err)
		}
		outcomes[e.ID] = o
	}
	return outcomes, nil
}

// heal undoes whatever may be left of faults, as an operator would who looks at each part.
func (s *stack) heal(ctx context.Context) error {
	var errs []error
	for name := range s.net.links {
		s.net.heal(name)
	}
	for _, d := range s.disks {
		errs = append(errs, d.empty())
	}
	for _, p := range s.procs {
		p.release()
		p.signal(syscall.SIGCONT)
	}
	if s.app != nil {
		s.app.signal(syscall.SIGCONT)
	}
	errs = append(errs, s.signalEngine(syscall.SIGCONT))
	select {
	case <-s.engine.Done(): // it was given up
		errs = append(errs, s.restartEngine(ctx))
	default:
	}
	return errors.Join(errs...)
}

// restartEngine starts the supervisor again, which has another address then.
func (s *stack) restartEngine(ctx context.Context) error {
	_ = s.engine.Close() // its error is why
	_ = s.table.Close()
	if err := s.startEngine(ctx); err != nil {
		return err
	}
	for name := range s.net.links {
		if strings.HasSuffix(name, "-engine") {
			if err := s.net.lead(name, s.engine.Addr()); err != nil {
				return err
			}
		}
	}
	return s.openTable(ctx)
}
