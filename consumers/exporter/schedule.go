package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
)

// schedule asks for the first period of a destination that is not delivered yet, if it is rolled up. One period
// is under way at a time, so that they arrive in order, and a destination that fails for months holds up nobody
// else's exports.
func (x *Exporter) schedule(ctx context.Context, organization, name string) error {
	d, err := x.cfg.Settings.Destination(ctx, organization, name)
	if errors.Is(err, ErrNoDestination) {
		return nil // it was removed since
	}
	if err != nil || d.Schedule == nil {
		return err
	}
	next, err := x.states.next(ctx, organization, name)
	if err != nil {
		return err
	}
	if next.IsZero() {
		if next = d.Schedule.Since.UTC(); next.IsZero() {
			next = x.cfg.Now().UTC()
		}
		next = next.Truncate(d.Schedule.Period)
		if err := x.states.setNext(ctx, organization, name, next); err != nil {
			return err
		}
	}
	closed, err := x.cfg.Closed(ctx, d.Organization, d.Trails)
	if err != nil {
		return fmt.Errorf("find which hours are rolled up: %w", err)
	}
	if next.Add(d.Schedule.Period).After(closed) {
		return nil
	}
	r := Request{
		ID:           ScheduledID(organization, name, next),
		Organization: d.Organization, Trails: d.Trails, From: next, To: next.Add(d.Schedule.Period),
		Destination: name, RequestedBy: "schedule", Scheduled: true, Content: d.contentOf(render.Content{}),
	}
	switch e, found, err := x.states.Get(ctx, r.ID); {
	case err != nil:
		return err
	case found && e.State == Done: // whoever delivered it did not come to say so
		return x.advance(ctx, &e)
	case found:
		return nil // it is being delivered, or tried again
	}
	return Submit(ctx, x.js, r)
}

// advance goes on to the period after a delivered one.
func (x *Exporter) advance(ctx context.Context, e *Export) error {
	next, err := x.states.next(ctx, e.Organization, e.Destination)
	if err != nil {
		return err
	}
	if !next.Equal(e.From) {
		return nil // somebody else did
	}
	if err := x.states.setNext(ctx, e.Organization, e.Destination, e.To); err != nil {
		return err
	}
	return x.schedule(ctx, e.Organization, e.Destination)
}

// ScheduledID is the id of the export of a destination's period that begins at a time.
func ScheduledID(organization, destination string, from time.Time) string {
	return organization + "." + destination + "." + from.UTC().Format("20060102T150405")
}

// LookAtSchedule has an exporter look at the schedule of a destination now.
func LookAtSchedule(ctx context.Context, js jetstream.JetStream, organization, name string) error {
	body, err := EncodeSchedule(name)
	if err != nil {
		return fmt.Errorf("encode the schedule of %s: %w", name, err)
	}
	if _, err := js.Publish(ctx, schema.SubjectExports+"."+organization, body); err != nil {
		return fmt.Errorf("look at the schedule of destination %s/%s: %w", organization, name, err)
	}
	return nil
}
