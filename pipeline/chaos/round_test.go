//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	say("%8s  published: %d, acknowledged: %d; again since the beginning: %d", since(), len(outcomes), acked, a.republished)
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
	draw := rand.New(rand.NewPCG(p.seed, 0))
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
		// Some are published again, in another message: what was published just now, or in an earlier round.
		a.published = append(a.published, e)
		if draw.IntN(10) > 0 {
			continue
		}
		e = a.published[draw.IntN(len(a.published))]
		if o, err = in.publish(ctx, e); err != nil {
			return outcomes, fmt.Errorf("publish again: %w", err)
		}
		outcomes[e.ID] = either(outcomes[e.ID], o)
		a.republished++
		a.published = a.published[max(0, len(a.published)-mostPublished):]
	}
	return outcomes, nil
}

// mostPublished bounds the events that are kept to be published again.
const mostPublished = 1000

// either is the outcome of an event that was published twice.
func either(first, second outcome) outcome {
	if first == nil {
		return second
	}
	return func(ctx context.Context) error {
		if err := first(ctx); err == nil {
			return nil
		}
		return second(ctx)
	}
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
