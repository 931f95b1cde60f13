package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/schema"
)

// Health is how deliveries to a destination are doing (requirement B3).
type Health struct {
	Organization string `json:"organization"`
	Destination  string `json:"destination"`
	// Of the last archive that was delivered.
	LastSuccess time.Time `json:"last_success,omitzero"`
	LastFile    string    `json:"last_file,omitempty"`
	// FailingSince is zero while deliveries succeed.
	FailingSince time.Time `json:"failing_since,omitzero"`
	Failures     uint64    `json:"failures,omitempty"` // attempts in a row
	LastError    string    `json:"last_error,omitempty"`
	// Alerted tells that somebody was mailed about it.
	Alerted bool `json:"alerted,omitempty"`
	// Next is where the next period begins that is not delivered; zero if none was begun.
	Next time.Time `json:"next,omitzero"`
}

// Health returns that of a destination; of one that never had a delivery, a Health without times.
func (s States) Health(ctx context.Context, organization, destination string) (Health, error) {
	h, _, err := s.health(ctx, organization, destination)
	if err != nil {
		return h, err
	}
	h.Next, err = s.next(ctx, organization, destination)
	return h, err
}

func (s States) health(ctx context.Context, organization, destination string) (Health, uint64, error) {
	h := Health{Organization: organization, Destination: destination}
	entry, err := s.KV.Get(ctx, prefixHealth+organization+"."+destination)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return h, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &h)
	}
	if err != nil {
		return h, 0, fmt.Errorf("read the health of destination %s/%s: %w", organization, destination, err)
	}
	return h, entry.Revision(), nil
}

// setHealth keeps h if nobody changed it since, and tells whether it did.
func (s States) setHealth(ctx context.Context, h Health, revision uint64) (bool, error) {
	data, err := json.Marshal(h)
	if err != nil {
		return false, fmt.Errorf("encode the health of a destination: %w", err)
	}
	key := prefixHealth + h.Organization + "." + h.Destination
	_, err = consumers.Replace(ctx, s.KV, key, data, revision)
	if errors.Is(err, consumers.ErrReplaced) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("keep the health of destination %s/%s: %w", h.Organization, h.Destination, err)
	}
	return true, nil
}

// health keeps what became of a delivery, and mails those who are to know when it has failed for long, and when
// it works again.
func (x *Exporter) health(ctx context.Context, e *Export) error {
	now := x.cfg.Now().UTC()
	for {
		h, revision, err := x.states.health(ctx, e.Organization, e.Destination)
		if err != nil {
			return err
		}
		kind := ""
		switch e.State {
		case Done:
			if h.Alerted {
				kind = "healed"
			}
			h = Health{Organization: e.Organization, Destination: e.Destination, LastSuccess: now, LastFile: e.File}
		default:
			if h.FailingSince.IsZero() {
				h.FailingSince = now
			}
			h.Failures++
			h.LastError = e.Error
			if !h.Alerted && (now.Sub(h.FailingSince) >= x.cfg.AlertAfter || e.State == Failed) {
				h.Alerted, kind = true, "failing"
			}
		}
		kept, err := x.states.setHealth(ctx, h, revision)
		if err != nil {
			return err
		}
		if kept {
			if kind != "" {
				x.alert(ctx, e, kind, h)
			}
			return nil
		}
	}
}

// alert mails those a destination names, and puts it into the system's own trail. A mail that can't be sent is
// logged: what it says stands in the health, too.
func (x *Exporter) alert(ctx context.Context, e *Export, kind string, h Health) {
	x.log.Warn("deliveries to a destination are "+kind, slog.String("destination", e.Organization+"/"+e.Destination), slog.String("error", h.LastError))
	d, err := x.cfg.Settings.Destination(ctx, e.Organization, e.Destination)
	if err != nil || len(d.Notify) == 0 || x.mailer == nil {
		return
	}
	notice := mail.Notice{
		Organization: e.Organization, Destination: e.Destination, Healed: kind == "healed", Since: h.FailingSince, Error: h.LastError,
		Attempts: h.Failures, File: e.File, At: x.cfg.Now().UTC(),
	}
	for i, to := range d.Notify {
		m := notice.Message(to)
		m.ID = fmt.Sprintf("%s.%s.%d.%d", e.ID, kind, i, e.Attempts)
		err := x.mayMail(ctx, e.Organization)
		if err == nil {
			err = x.mailer.Send(ctx, m)
		}
		if err != nil {
			x.log.Error("alert was not mailed", slog.String("destination", e.Organization+"/"+e.Destination), slog.Any("error", err))
		}
	}
}

// record is what the system's own trail says of an attempt (requirement Q3).
func (e *Export) record() schema.Event {
	outcome := schema.Success
	code := "export.delivered"
	if e.State != Done {
		outcome, code = schema.Failure, "export.failed"
	}
	to := e.Destination
	if to == "" {
		to = fmt.Sprintf("%d mail addresses", len(e.MailTo))
	}
	data, _ := json.Marshal(e) //nolint:errchkjson // it was kept as JSON before
	return schema.Event{
		Organization: e.Organization, Event: code, Action: "export", Outcome: outcome, Target: schema.Target{Type: "export", ID: e.ID, Name: e.File},
		Description: fmt.Sprintf("Archive of %s for %s: %s", e.Organization, to, e.State), Data: data, DataType: "kansa.export.v1",
	}
}
