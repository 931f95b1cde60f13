// Package owntrail records what the system itself has to answer for, as events, by the same library as everybody's: what
// concerns an organization in that organization's own trails, and what concerns none in the operator's.
//
// In access stand reading, signing in, downloads and what was refused; in activity changes, exports and deliveries.
package owntrail

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Organization is the operator's own. No application should publish for it.
const Organization = "kansa"

// Source is what the events name as the service that speaks. By it they are told from those of applications.
const Source = "kansa"

// Trail takes events.
type Trail struct {
	Publisher *producers.Publisher
	// Off tells that an organization records nothing in a trail: what concerns it stands in the operator's then. May be nil.
	Off    func(organization string, t schema.Trail) bool
	Logger *slog.Logger
}

// place fills in whose event e is and in which trail it stands.
func (t Trail) place(e *schema.Event) {
	if e.Trail == "" {
		e.Trail = schema.Activity
	}
	of := e.Organization
	if of != "" && schema.CheckOrganization(of) == nil && (t.Off == nil || !t.Off(of, e.Trail)) {
		return
	}
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
// itself acted; an event that names no organization is the operator's. It does not wait: what is recorded here must not
// hold up what it is about. A failure is logged.
func (t Trail) Record(ctx context.Context, e schema.Event) {
	t.place(&e)
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
	code := e.Event
	ack, err := t.Publisher.PublishAsync(ctx, e)
	if err != nil {
		t.Logger.ErrorContext(ctx, "own event was not recorded", slog.String("event", code), slog.Any("error", err))
		return
	}
	go func() {
		<-ack.Done() // within the publisher's own time, and before its Close returns
		if err := ack.Wait(context.Background()); err != nil {
			t.Logger.ErrorContext(ctx, "own event was not recorded", slog.String("event", code), slog.Any("error", err))
		}
	}()
}
