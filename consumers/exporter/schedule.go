package exporter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
)

const (
	// waitForHour is how long is waited before it is looked again whether an hour is sealed.
	waitForHour = time.Second
	// waitForDelivery is how often a schedule looks after a delivery that is under way; its end wakes the schedule.
	waitForDelivery = time.Minute
	// stalled is how old the state of a scheduled export becomes while its request is on the stream: the longest pause
	// between two attempts is five minutes. One that is older is requested again.
	stalled = 10 * time.Minute
	// stalledRunning is that of an attempt under way, whose state need not change while a large archive is checked.
	stalledRunning = 24 * time.Hour
)

// schedule requests the first period of a destination that is not delivered yet, if it is due and sealed, and returns
// when to look again; zero if only a change of the destination makes that necessary. One period is under way at a
// time, so that they arrive in order, and a destination that fails for months delays no other destination.
//
// Every exporter looks at every schedule. Requests have an id made of their period, so that they are one request.
func (x *Exporter) schedule(ctx context.Context, id scheduleID) (again time.Time, err error) {
	d, err := x.cfg.Settings.Destination(ctx, id.organization, id.name)
	if errors.Is(err, ErrNoDestination) { // it was removed; another of its name begins afresh
		return time.Time{}, x.states.forgetDestination(ctx, id)
	}
	if err != nil || d.Schedule == nil || d.Paused {
		return time.Time{}, err
	}
	next, err := x.states.next(ctx, id.organization, id.name)
	if err != nil {
		return time.Time{}, err
	}
	if next.IsZero() {
		next = d.Schedule.first(x.cfg.Now())
		if err := x.states.setNext(ctx, id.organization, id.name, next); err != nil {
			return time.Time{}, err
		}
	}
	for {
		end := next.Add(d.Schedule.Period)
		due, err := d.Schedule.Due(end)
		if err != nil {
			return time.Time{}, err
		}
		now := x.cfg.Now().UTC()
		if now.Before(due) {
			return due, nil
		}
		r := Request{
			ID:           ScheduledID(id.organization, id.name, next),
			Organization: d.Organization, Trails: d.Trails, From: next, To: end,
			Destination: d.Name, RequestedBy: "schedule", Scheduled: true, Content: d.contentOf(render.Content{}),
		}
		e, found, err := x.states.Get(ctx, r.ID)
		switch {
		case err != nil:
			return time.Time{}, err
		case found && e.State == Done: // the exporter that delivered it ended before it said so
			if err := x.states.setNext(ctx, id.organization, id.name, e.To); err != nil {
				return time.Time{}, err
			}
			next = e.To.UTC()
			continue
		case found && e.State == Failed: // its destination was removed, and is there again
			if err := forget(ctx, x.states.KV, prefixExport+r.ID); err != nil {
				return time.Time{}, err
			}
			return now.Add(waitForDelivery), submit(ctx, x.js, task{Request: &r}, fmt.Sprintf("%s.%d", r.ID, e.Updated.Unix()))
		case found && (now.Sub(e.Updated) < stalled || e.State == Running && now.Sub(e.Updated) < stalledRunning):
			return now.Add(waitForDelivery), nil
		case found:
			x.log.Warn("scheduled export has made no attempt for a while; requesting it again", slog.String("export", r.ID),
				slog.Time("last_attempt", e.Updated))
			return now.Add(waitForDelivery), submit(ctx, x.js, task{Request: &e.Request}, fmt.Sprintf("%s.%d", r.ID, e.Updated.Unix()))
		}
		closed, err := x.cfg.Closed(ctx, d.Organization, d.Trails)
		if err != nil {
			return time.Time{}, fmt.Errorf("find which hours are sealed: %w", err)
		}
		if end.After(closed) {
			if x.clock.waitsFor(id, end) {
				x.log.Info("scheduled archive waits until its last hour is sealed", slog.String("destination", id.String()),
					slog.Time("due", due), slog.Time("ends", end), slog.Time("sealed_until", closed))
			}
			return now.Add(waitForHour), nil
		}
		return now.Add(waitForDelivery), Submit(ctx, x.js, r)
	}
}

// first is where the first period begins: at Since, or in the period in which the schedule is first seen.
func (s *Schedule) first(now time.Time) time.Time {
	from := s.Since
	if from.IsZero() {
		from = now
	}
	return from.UTC().Truncate(s.Period)
}

// NextRun is when the next archive is due, after those up to a time are delivered; zero if none was looked at. It is in
// the past while that archive waits or fails.
func (s *Schedule) NextRun(delivered, now time.Time) (time.Time, error) {
	if delivered.IsZero() {
		delivered = s.first(now)
	}
	return s.Due(delivered.Add(s.Period))
}

// advance goes on to the period after a delivered one.
func (x *Exporter) advance(ctx context.Context, e *Export) error {
	next, err := x.states.next(ctx, e.Organization, e.Destination)
	if err != nil {
		return err
	}
	if next.Equal(e.From) { // or another exporter did
		if err := x.states.setNext(ctx, e.Organization, e.Destination, e.To); err != nil {
			return err
		}
	}
	x.ScheduleChanged(e.Organization, e.Destination)
	return nil
}

// ScheduledID is the id of the export of a destination's period that begins at a time.
func ScheduledID(organization, destination string, from time.Time) string {
	return organization + "." + destination + "." + from.UTC().Format("20060102T150405")
}
