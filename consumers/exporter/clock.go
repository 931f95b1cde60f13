package exporter

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// clockCheck is how often the clock is compared with what is due, in case it was set.
	clockCheck = 10 * time.Second
	// lookLimit bounds a look at one schedule, so that one that hangs holds up the others only for so long.
	lookLimit = 30 * time.Second
	// lookAgain is when a schedule that could not be looked at is looked at again.
	lookAgain = 10 * time.Second
)

// scheduleID names a destination.
type scheduleID struct{ organization, name string }

func (id scheduleID) String() string { return id.organization + "/" + id.name }

// clock knows when to look at which schedule. The zero value is ready.
type clock struct {
	mu sync.Mutex
	at map[scheduleID]time.Time
	// waits has the end of the period whose wait for its last hour was logged.
	waits map[scheduleID]time.Time
	// problems has why a schedule could not be looked at.
	problems map[scheduleID]string
	changed  chan struct{} // made by New, with room for one
}

// look has a schedule looked at at a time, or before that if so it was.
func (c *clock) look(id scheduleID, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before, ok := c.at[id]; ok && before.Before(at) {
		return
	}
	if c.at == nil {
		c.at = map[scheduleID]time.Time{}
	}
	c.at[id] = at
}

// take returns the schedules that are to be looked at now. Each is looked at again only after another call of look.
func (c *clock) take(now time.Time) []scheduleID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []scheduleID
	for id, at := range c.at {
		if !now.Before(at) {
			all = append(all, id)
			delete(c.at, id)
		}
	}
	slices.SortFunc(all, func(a, b scheduleID) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// pause is how long there is nothing to look at.
func (c *clock) pause(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := clockCheck
	for _, at := range c.at {
		pause = min(pause, at.Sub(now))
	}
	return max(pause, 0)
}

// waitsFor reports whether it is new that a schedule waits for the hours up to end.
func (c *clock) waitsFor(id scheduleID, end time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits[id].Equal(end) {
		return false
	}
	if c.waits == nil {
		c.waits = map[scheduleID]time.Time{}
	}
	c.waits[id] = end
	return true
}

// found keeps why a schedule could not be looked at, nil if it could, and reports whether that is new.
func (c *clock) found(id scheduleID, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.problems, id)
		return false
	}
	if c.problems == nil {
		c.problems = map[scheduleID]string{}
	}
	before := c.problems[id]
	c.problems[id] = err.Error()
	return before != err.Error()
}

// RunSchedules requests the archives that schedules make due, by this process's own clock, until ctx ends. It returns
// nil. It knows the schedules that ScheduleChanged names.
func (x *Exporter) RunSchedules(ctx context.Context) error {
	for ctx.Err() == nil {
		for _, id := range x.clock.take(x.cfg.Now()) {
			x.lookAt(ctx, id)
		}
		timer := time.NewTimer(x.clock.pause(x.cfg.Now()))
		select {
		case <-ctx.Done():
		case <-x.clock.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

func (x *Exporter) lookAt(ctx context.Context, id scheduleID) {
	limited, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	again, err := x.schedule(limited, id)
	if ctx.Err() != nil {
		return
	}
	if x.clock.found(id, err) {
		x.log.Warn("schedule is skipped until it can be read", slog.String("destination", id.String()), slog.Any("error", err))
	}
	if err != nil {
		again = x.cfg.Now().Add(lookAgain)
	}
	if !again.IsZero() {
		x.clock.look(id, again)
	}
}

// ScheduleChanged has the schedule of a destination looked at now: it is new, was changed or removed, or an archive of
// it was delivered.
func (x *Exporter) ScheduleChanged(organization, name string) {
	x.clock.look(scheduleID{organization, name}, time.Time{})
	select {
	case x.clock.changed <- struct{}{}:
	default: // it is to be looked at as it is
	}
}

// SkippedSchedules says of each schedule that cannot be looked at why.
func (x *Exporter) SkippedSchedules() []string {
	c := &x.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, id := range slices.SortedFunc(maps.Keys(c.problems), func(a, b scheduleID) int { return strings.Compare(a.String(), b.String()) }) {
		list = append(list, fmt.Sprintf("destination %s: %s", id, c.problems[id]))
	}
	return list
}
