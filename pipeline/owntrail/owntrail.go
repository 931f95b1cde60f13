// Package owntrail records what the system itself has to answer for, as events of its own organization, by the
// same library as everybody's.
package owntrail

import (
	"context"
	"encoding/json"
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

// Record publishes an event of the system about a target of an organization. It does not wait: what is
// recorded here must not hold up what it is about. A failure is logged.
func (t Trail) Record(ctx context.Context, code, action string, outcome schema.Outcome, target schema.Target, description string, data map[string]any) {
	e := schema.Event{
		OccurredAt: time.Now(), Organization: Organization, Trail: schema.Activity, Source: Source, Event: code, Action: action,
		Outcome: outcome, Actor: schema.Actor{Type: "system", ID: Source}, Target: target, Description: description,
	}
	if data != nil {
		raw, err := json.Marshal(data)
		if err != nil {
			t.Logger.Error("own event has no data", slog.String("event", code), slog.Any("error", err))
		}
		e.Data, e.DataType = raw, "kansa."+code+".v1"
	}
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
