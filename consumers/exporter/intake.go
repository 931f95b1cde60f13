package exporter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
)

// What can be said against an export that a person asks for.
var (
	ErrQuota    = errors.New("export quota reached")
	ErrOff      = errors.New("exports are switched off")
	ErrNoExport = errors.New("there is no such export")
)

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Intake takes what people ask for. It holds the rules: ranges, quotas, and that nothing is made twice.
type Intake struct {
	JS       jetstream.JetStream
	Bucket   *blob.Bucket
	States   States
	Settings Settings
	Closed   func(ctx context.Context, organization string, trails []schema.Trail) (time.Time, error)
	// Began is the first hour that was recorded of any of an organization's trails, zero if there is none.
	Began func(ctx context.Context, organization string, trails []schema.Trail) (time.Time, error)
	// Linger is how long a finished archive answers the same request again; that of links.
	Linger time.Duration
	Record func(ctx context.Context, e schema.Event)
	Now    func() time.Time // default time.Now
}

func (i *Intake) now() time.Time {
	if i.Now != nil {
		return i.Now().UTC()
	}
	return time.Now().UTC()
}

// Asked is what became of a request.
type Asked struct {
	Export Export `json:"export"`
	// Again tells that the same was asked for before: it is that export, and it cost nothing.
	Again bool `json:"again,omitempty"`
	// Left is what may be asked for on this day still, by trail.
	Left map[schema.Trail]int `json:"left"`
}

// Estimate is what an export would hold, told before it is asked for (requirement Z5).
type Estimate struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Rows  uint64    `json:"rows"`
	Files int       `json:"files"`
	Bytes int64     `json:"bytes"` // of the archive, to the byte, unless Approximate
	// Approximate tells that the archive is to be rendered first: Rows is the most that it can have, Files and Bytes
	// are those of the partitions as they are.
	Approximate bool                 `json:"approximate,omitempty"`
	Left        map[schema.Trail]int `json:"left"` // of today's exports
}

// complete fills in what r leaves open: both trails, and all that is rolled up, from two years ago on, but not from
// before anything was recorded (requirement Z5).
func (i *Intake) complete(ctx context.Context, r *Request) error {
	if len(r.Trails) == 0 {
		r.Trails = schema.Trails
	}
	r.Trails = slices.Compact(slices.Sorted(slices.Values(r.Trails))) // a copy: the caller's may be everybody's
	now := i.now()
	if r.To.IsZero() {
		if f := schema.CheckOrganization(r.Organization); f != nil {
			return f
		}
		closed, err := i.Closed(ctx, r.Organization, r.Trails)
		if err != nil {
			return fmt.Errorf("find which hours are rolled up: %w", err)
		}
		// The last hour that is over and sealed; before anything was, one that is over for certain.
		if r.To = closed; closed.IsZero() || closed.After(now) {
			r.To = now.Add(-time.Hour).Truncate(time.Hour)
		}
	}
	if r.From.IsZero() {
		r.From = r.To.AddDate(-2, 0, 0)
		began, err := i.Began(ctx, r.Organization, r.Trails)
		if err != nil {
			return fmt.Errorf("find when recording began: %w", err)
		}
		if began.After(r.From) && began.Before(r.To) {
			r.From = began
		}
	}
	r.From, r.To = r.From.UTC(), r.To.UTC()
	if r.To.After(now) {
		return &schema.Fault{Field: "to", Value: r.To.Format(time.RFC3339), Problem: "is in the future", Remedy: "give a time up to now; only hours that are over can be exported"}
	}
	return nil
}

// Estimate lays r out and makes nothing.
func (i *Intake) Estimate(ctx context.Context, r Request) (*Estimate, error) {
	r.ID = "estimate"
	if r.Destination == "" && len(r.MailTo) == 0 {
		r.MailTo = []string{"estimate@example.com"}
	}
	if err := i.complete(ctx, &r); err != nil {
		return nil, err
	}
	if err := i.settle(ctx, &r); err != nil {
		return nil, err
	}
	e := &Estimate{From: r.From, To: r.To, Approximate: !r.Plain()}
	r.Content = render.Content{}
	plan, err := PlanArchive(ctx, i.Bucket, &r)
	if err != nil {
		return nil, err
	}
	e.Rows, e.Files, e.Bytes = plan.Rows, plan.Len(), plan.Size()
	e.Left, err = i.left(ctx, r.Organization, r.Trails)
	return e, err
}

// settle checks r and settles what it holds: what it says, else what its destination says.
func (i *Intake) settle(ctx context.Context, r *Request) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if r.Destination == "" {
		r.ForLink()
		return nil
	}
	d, err := i.Settings.Destination(ctx, r.Organization, r.Destination)
	if err != nil {
		return err
	}
	r.Content = d.contentOf(r.Content)
	return nil
}

// Ask takes a request. Without an id it gets one; the same request as one before, by whomever, is that one, as long
// as its archive can be had.
func (i *Intake) Ask(ctx context.Context, r Request) (*Asked, error) {
	if r.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make an id: %w", err)
		}
		r.ID = id.String()
	}
	if err := i.complete(ctx, &r); err != nil {
		return nil, err
	}
	if err := i.settle(ctx, &r); err != nil {
		return nil, err
	}
	rules, err := i.Settings.Rules(ctx, r.Organization)
	if err != nil {
		return nil, err
	}
	for _, t := range r.Trails {
		if slices.Contains(rules.Off, t) {
			return nil, fmt.Errorf("%w: %s of %s: switch them on with kansa organization set", ErrOff, t, r.Organization)
		}
	}
	answer := &Asked{}
	var revision uint64
	if answer.Export, revision, answer.Again, err = i.before(ctx, &r); err != nil {
		return nil, err
	}
	if !answer.Again {
		if err := i.spend(ctx, &r, rules.PerDay); err != nil {
			return nil, err
		}
		now := i.now()
		answer.Export = Export{Request: r, State: Waiting, Created: now, Updated: now}
		if err := i.States.Put(ctx, answer.Export); err != nil {
			return nil, errors.Join(err, i.giveBack(ctx, &r, r.Trails))
		}
		if err := Submit(ctx, i.JS, r); err != nil {
			return nil, errors.Join(err, i.giveBack(ctx, &r, r.Trails))
		}
		if err := i.remember(ctx, &r, revision); err != nil {
			return nil, err
		}
	}
	i.Record(ctx, schema.Event{
		Organization: r.Organization, Event: "export.requested", Action: "export", Target: schema.Target{Type: "export", ID: answer.Export.ID}, Actor: schema.Actor{Type: "user", ID: r.RequestedBy},
		Description: fmt.Sprintf("%s of %s from %s to %s", trailList(r.Trails), r.Organization, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339)),
	})
	answer.Left, err = i.left(ctx, r.Organization, r.Trails)
	return answer, err
}

// Revoke has the links of an export open nothing from now on.
func (i *Intake) Revoke(ctx context.Context, id, by string) (*Export, error) {
	e, ok, err := i.States.Get(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("%w: %s: see kansa export list", ErrNoExport, id)
	case e.Revoked != nil:
		return &e, nil
	case e.Expires == nil:
		return nil, fmt.Errorf("export %s has no link that could be revoked", id)
	}
	now := i.now()
	e.Revoked, e.Updated = &now, now
	if err := i.States.Put(ctx, e); err != nil {
		return nil, err
	}
	i.Record(ctx, schema.Event{
		Organization: e.Organization, Event: "export.revoked", Action: "revoke", Target: schema.Target{Type: "export", ID: id, Name: e.File}, Actor: schema.Actor{Type: "user", ID: by},
		Description: "Its links open nothing any more",
	})
	return &e, nil
}

// same is the key of all requests that ask for the same as r.
func same(r *Request) string {
	text, _ := json.Marshal(struct { //nolint:errchkjson // strings and times
		Organization, Destination string
		Trails                    []schema.Trail
		From, To                  time.Time
		MailTo                    []string
		Content                   string `json:",omitempty"`
	}{r.Organization, r.Destination, r.Trails, r.From, r.To, slices.Sorted(slices.Values(r.MailTo)), r.Content.Key()})
	sum := sha256.Sum256(text)
	return prefixSame + hex.EncodeToString(sum[:])
}

// before finds the export that asked for the same, if its archive can still be had.
func (i *Intake) before(ctx context.Context, r *Request) (_ Export, revision uint64, found bool, _ error) {
	entry, err := i.States.KV.Get(ctx, same(r))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Export{}, 0, false, nil
	}
	if err != nil {
		return Export{}, 0, false, fmt.Errorf("look for the same export: %w", err)
	}
	e, ok, err := i.States.Get(ctx, string(entry.Value()))
	now := i.now()
	old := !ok || e.State == Failed || e.Revoked != nil || e.Expires != nil && !now.Before(*e.Expires) || e.State == Done && now.Sub(e.Updated) > i.Linger
	if err == nil && !old {
		var gone *Gone
		if err = Available(ctx, i.Bucket, &e); errors.As(err, &gone) {
			old, err = true, nil
		}
	}
	return e, entry.Revision(), !old, err
}

func (i *Intake) remember(ctx context.Context, r *Request, revision uint64) error {
	// If two ask at once, both get theirs, and either is found later.
	if _, err := consumers.Replace(ctx, i.States.KV, same(r), []byte(r.ID), revision); err != nil && !errors.Is(err, consumers.ErrReplaced) {
		return fmt.Errorf("remember export %s: %w", r.ID, err)
	}
	return nil
}

// spend takes one of today's exports of each trail, or of none. An export counts from the request on, so that several
// at once cannot exceed the quota, and no more once it has failed: only what is delivered uses the day up.
func (i *Intake) spend(ctx context.Context, r *Request, perDay int) error {
	for n, t := range r.Trails {
		if err := i.spendOne(ctx, r, t, perDay); err != nil {
			return errors.Join(err, i.giveBack(ctx, r, r.Trails[:n]))
		}
	}
	return nil
}

func (i *Intake) spendOne(ctx context.Context, r *Request, t schema.Trail, perDay int) error {
	return i.States.change(ctx, i.quotaKey(r.Organization, t), func(spent []string) ([]string, error) {
		if slices.Contains(spent, r.ID) {
			return spent, nil
		}
		spent, err := i.counted(ctx, spent)
		if err != nil {
			return nil, err
		}
		if len(spent) >= perDay {
			day := i.now().Truncate(24*time.Hour).AddDate(0, 0, 1)
			return nil, fmt.Errorf("%w: %d of %d %s exports used today for %s; resets at %s. Repeating an earlier export is free",
				ErrQuota, len(spent), perDay, t, r.Organization, day.Format(time.RFC3339))
		}
		return append(spent, r.ID), nil
	})
}

// counted are the exports of a list that were delivered, or may still be.
func (i *Intake) counted(ctx context.Context, spent []string) ([]string, error) {
	var count []string
	for _, id := range spent {
		e, found, err := i.States.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if !found || e.State != Failed { // one without a state is just being requested
			count = append(count, id)
		}
	}
	return count, nil
}

func (i *Intake) giveBack(ctx context.Context, r *Request, trails []schema.Trail) error {
	var errs []error
	for _, t := range trails {
		errs = append(errs, i.States.change(ctx, i.quotaKey(r.Organization, t), func(spent []string) ([]string, error) {
			return slices.DeleteFunc(spent, func(id string) bool { return id == r.ID }), nil
		}))
	}
	return errors.Join(errs...)
}

func (i *Intake) left(ctx context.Context, organization string, trails []schema.Trail) (map[schema.Trail]int, error) {
	rules, err := i.Settings.Rules(ctx, organization)
	if err != nil {
		return nil, err
	}
	left := map[schema.Trail]int{}
	for _, t := range trails {
		var spent []string
		entry, err := i.States.KV.Get(ctx, i.quotaKey(organization, t))
		if err == nil {
			err = json.Unmarshal(entry.Value(), &spent)
		} else if errors.Is(err, jetstream.ErrKeyNotFound) {
			err = nil
		}
		if err == nil {
			spent, err = i.counted(ctx, spent)
		}
		if err != nil {
			return nil, fmt.Errorf("read what is left of today's exports: %w", err)
		}
		left[t] = max(rules.PerDay-len(spent), 0)
	}
	return left, nil
}

func (i *Intake) quotaKey(organization string, t schema.Trail) string {
	return prefixQuota + organization + "." + string(t) + "." + i.now().Format("20060102")
}

// change replaces a list by another one, however many others do the same.
func (s States) change(ctx context.Context, key string, edit func([]string) ([]string, error)) error {
	for {
		var list []string
		var revision uint64
		entry, err := s.KV.Get(ctx, key)
		switch {
		case err == nil:
			revision = entry.Revision()
			err = json.Unmarshal(entry.Value(), &list)
		case errors.Is(err, jetstream.ErrKeyNotFound):
			err = nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		if list, err = edit(list); err != nil {
			return err
		}
		data, err := json.Marshal(list)
		if err != nil {
			return fmt.Errorf("encode %s: %w", key, err)
		}
		if _, err = consumers.Replace(ctx, s.KV, key, data, revision); err == nil {
			return nil
		} else if !errors.Is(err, consumers.ErrReplaced) {
			return fmt.Errorf("keep %s: %w", key, err)
		}
	}
}

func trailList(trails []schema.Trail) string {
	names := make([]string, len(trails))
	for i, t := range trails {
		names[i] = string(t)
	}
	return strings.Join(names, ",")
}
