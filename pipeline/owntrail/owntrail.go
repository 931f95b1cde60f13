// Package owntrail records what the system itself has to answer for, as events of its own organization, by the
// same library as everybody's.
package owntrail

import (
	"context"
	"log/slog"
	"time"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Organization is the system's own. No application should publish for it.
const Organization = "kansa"

// Source is what the events name as the service that speaks.
const Source = "kansa"

// Trail takes events.
type Trail struct {
	Publisher *producers.Publisher
	Logger    *slog.Logger
}

// Record publishes an event of the system. It fills in who speaks, when, and, where nobody is named, that the system
// itself acted. It does not wait: what is recorded here must not hold up what it is about. A failure is logged.
func (t Trail) Record(ctx context.Context, e schema.Event) {
	e.OccurredAt, e.Organization, e.Source = time.Now(), Organization, Source
	if e.Trail == "" {
		e.Trail = schema.Activity
	}
	if e.Actor.ID == "" {
		e.Actor = schema.Actor{Type: "system", ID: Source}
	}
	code := e.Event
	ack, err := t.Publisher.PublishAsync(ctx, e)
	if err != nil {
		t.Logger.Error("own event was not recorded", slog.String("event", code), slog.Any("error", err))
		return
	}
	go func() {
		<-ack.Done() // within the publisher's own time, and before its Close returns
		if err := ack.Wait(context.Background()); err != nil {
			t.Logger.Error("own event was not recorded", slog.String("event", code), slog.Any("error", err))
		}
	}()
}
