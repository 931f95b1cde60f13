// Package owntrail records what the system itself has to answer for, as events, by the same library as everybody's: what
// concerns an organization in that organization's own trails, and what concerns none in the operator's.
//
// In access stand reading, signing in, downloads and what was refused; in activity changes, exports and deliveries.
package owntrail

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Organization is the operator's own. No other publisher can use it.
const Organization = schema.SystemOrganization

// Source is the source of the events. No other publisher can use it.
const Source = schema.SystemSource

// Trail takes events.
type Trail struct {
	Publisher *producers.Publisher
	Logger    *slog.Logger
}

// place fills in whose event e is and in which trail it stands.
func place(e *schema.Event) {
	if e.Trail == "" {
		e.Trail = schema.Activity
	}
	if of := e.Organization; of == "" || schema.CheckOrganization(of) != nil {
		toOperator(e)
	}
}

// toOperator makes an event the operator's, who is told whom it concerns.
func toOperator(e *schema.Event) {
	of := e.Organization
	e.Organization = Organization
	if of != "" && of != Organization {
		e.Attributes = maps.Clone(e.Attributes)
		if e.Attributes == nil {
			e.Attributes = map[string]string{}
		}
		e.Attributes["organization"] = of
	}
}

// Record publishes an event of the system. It fills in who speaks, when, and, where nobody is named, that the system
// itself acted; an event that names no organization is the operator's, and so is one whose trail is switched off. It does not wait: what is recorded here must not
// hold up what it is about. A failure is logged.
func (t Trail) Record(ctx context.Context, e schema.Event) { t.publish(ctx, complete(ctx, e)) }

// RecordNow is Record, and returns nil when the event is on the broker's disk: for what must not be
// done without a record of it.
func (t Trail) RecordNow(ctx context.Context, e schema.Event) error {
	e = complete(ctx, e)
	ack, err := t.Publisher.PublishAsync(ctx, e)
	if err == nil && ack.Unrecorded() && e.Organization != Organization {
		toOperator(&e)
		ack, err = t.Publisher.PublishAsync(ctx, e)
	}
	if err == nil {
		err = ack.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Event, err)
	}
	return nil
}

func complete(ctx context.Context, e schema.Event) schema.Event {
	place(&e)
	e.OccurredAt, e.Source = time.Now(), Source
	if e.Actor.ID == "" {
		e.Actor = schema.Actor{Type: "system", ID: Source}
	}
	if id := request.ID(ctx); id != "" {
		e.Attributes = maps.Clone(e.Attributes)
		if e.Attributes == nil {
			e.Attributes = map[string]string{}
		}
		e.Attributes[request.Attribute] = id
	}
	return e
}

func (t Trail) publish(ctx context.Context, e schema.Event) {
	failed := func(err error) {
		t.Logger.ErrorContext(ctx, "own event was not recorded", slog.String("event", e.Event), slog.Any("error", err))
	}
	ack, err := t.Publisher.PublishAsync(ctx, e)
	switch {
	case err != nil:
		failed(err)
	case ack.Unrecorded() && e.Organization != Organization:
		toOperator(&e)
		t.publish(ctx, e)
	default:
		go func() {
			<-ack.Done() // within the publisher's own time, and before its Close returns
			if err := ack.Wait(context.Background()); err != nil {
				failed(err)
			}
		}()
	}
}
