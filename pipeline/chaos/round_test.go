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

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// account is what the publisher knows: every id it handed over, and whether it was acknowledged.
type account struct {
	acked map[uuid.UUID]bool
	n     int // of those
}

// round publishes under faults, heals, and waits until all is well again. What happened is in the history.
func (s *stack) round(ctx context.Context, p *plan, a *account, say func(string, ...any)) error {
	began := time.Now()
	since := func() time.Duration { return time.Since(began).Round(time.Millisecond) }
	client, err := broker.Connect(ctx, broker.Options{URL: "nats://" + s.net.links["publisher-broker"].Listen, Name: "publisher", Logger: s.log})
	if err != nil {
		return err
	}
	defer client.NC.Close() // without a flush: nothing of it matters any more
	publisher, err := producers.New(client.JS, producers.Config{
		MaxEvents: p.perMessage, RetryFor: p.retryFor, AckTimeout: 2 * time.Second, Logger: s.log,
	})
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
	type sent struct {
		id  uuid.UUID
		ack producers.Ack
	}
	events := sample.New(p.seed, nil)
	all := make([]sent, 0, p.events)
	next := 0
	due := func(i int) {
		for ; next < len(p.faults) && p.faults[next].at*float64(p.events) <= float64(i); next++ {
			happen(&p.faults[next])
		}
	}
	const steps = 20
	for i := range p.events {
		due(i)
		if i%(p.events/steps+1) == 0 {
			time.Sleep(p.pace / steps) // a pace, not a wait for anything
		}
		e := events.Next()
		if e.Organization == "initech" {
			e.Organization = "globex" // fewer partitions an hour
		}
		a.acked[e.ID] = false
		ack, err := publisher.PublishAsync(ctx, e)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		all = append(all, sent{e.ID, ack})
	}
	due(p.events)
	happening.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if err := s.heal(ctx); err != nil {
		return err
	}
	flush, cancel := context.WithTimeout(ctx, 2*p.retryFor+10*time.Second)
	defer cancel()
	_ = publisher.Close(flush) // each event's outcome is looked at
	given := 0
	for _, e := range all {
		if err := e.ack.Wait(flush); err == nil {
			a.acked[e.id] = true
			a.n++
		} else {
			given++
		}
	}
	say("%8s  published: %d, given up %d", since(), len(all), given)
	return nil
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
