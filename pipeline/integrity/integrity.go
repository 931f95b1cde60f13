// Package integrity says how what an organization's trails hold is sealed: hour by hour, where the chain has come to,
// what is in alarm; and it verifies a stretch of the store when somebody asks for it.
//
// It reads the partition store and the rollup's progress, and changes neither.
package integrity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// State is what became of an hour.
type State string

// The states.
const (
	None    State = "none"    // nothing of the trail was recorded yet
	Sealed  State = "sealed"  // with events
	Empty   State = "empty"   // sealed, and says that there were none
	Removed State = "removed" // sealed, and its events were removed on purpose
	Open    State = "open"    // not sealed yet
	Alarm   State = "alarm"   // its accounts disagree: it waits for a repair
	Fault   State = "fault"   // it was sealed, and what is there now is not that
	Differs State = "differs" // it is sealed and whole, and the table has other events
)

// Hour is one of a trail.
type Hour struct {
	Start  time.Time `json:"start"`
	State  State     `json:"state" enum:"none,sealed,empty,removed,open,alarm,fault,differs"`
	Rows   uint64    `json:"rows,omitempty"`
	Number uint64    `json:"number,omitempty"`
	// Gaps are intervals in which nothing was recorded on purpose, as the manifest states them.
	Gaps []seal.Gap `json:"gaps,omitempty"`
	// Problem says what is wrong, of a fault, or in which way the table differs.
	Problem string `json:"problem,omitempty"`
}

// Key is a verifier key.
type Key struct {
	Key string `json:"key"`
	// Fingerprint is the SHA-256 of the line with the key, which is what seal.pub holds: sha256sum seal.pub.
	Fingerprint string `json:"fingerprint"`
}

// Head is the last manifest of a chain.
type Head struct {
	Number uint64    `json:"number"`
	Hash   string    `json:"hash"` // SHA-256 of its text, as the next one names it
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Rows   uint64    `json:"rows"`
	// Key is the one that sealed it.
	Key Key `json:"key"`
}

// Chain is how a trail is sealed.
type Chain struct {
	Trail schema.Trail `json:"trail"`
	// First is the first hour of the chain; nothing was recorded before.
	First time.Time `json:"first,omitzero"`
	// SealedUntil is the end of the last hour that is sealed.
	SealedUntil time.Time `json:"sealed_until,omitzero"`
	Head        *Head     `json:"head,omitempty"`
	// Alarm is the hour whose accounts disagree, if there is one.
	Alarm time.Time `json:"alarm,omitzero"`
	// Problem says why there is no head where one should be.
	Problem string `json:"problem,omitempty"`
}

// Overview is how an organization's trails are sealed.
type Overview struct {
	Chains []Chain `json:"chains" nullable:"false"`
	// Keys are those that seal and sealed, the one that seals now first.
	Keys []Key `json:"keys" nullable:"false"`
	// HourSeconds is how long an hour is.
	HourSeconds int `json:"hour_seconds"`
	// Verification is the last one, if there was one.
	Verification *Verification `json:"verification,omitempty"`
}

// Desk looks and verifies. Run has to run for it to verify.
type Desk struct {
	// Table knows the hours from which the table differs; nil knows of none.
	Table interface {
		Differs(organization string, t schema.Trail, hour time.Time) string
	}

	bucket   *blob.Bucket
	sealed   Manifests
	progress rollup.Progress
	kept     jetstream.KeyValue
	hour     time.Duration
	log      *slog.Logger
	jobs     chan job
	now      func() time.Time
}

// New returns a desk. kept is where it keeps what it verified last; hour is the length of a partition.
func New(bucket *blob.Bucket, progress rollup.Progress, kept jetstream.KeyValue, hour time.Duration, log *slog.Logger) *Desk {
	return &Desk{bucket: bucket, sealed: Manifests{bucket}, progress: progress, kept: kept, hour: hour, log: log, jobs: make(chan job), now: time.Now}
}

func keyOf(k string) Key {
	sum := sha256.Sum256([]byte(k + "\n"))
	return Key{k, hex.EncodeToString(sum[:])}
}

// Manifests reads what a partition store states under its signatures.
type Manifests struct{ Bucket *blob.Bucket }

// Ring is that of the store by its own account; nil while nothing was ever sealed.
func (d Manifests) Ring(ctx context.Context) (*seal.Ring, error) {
	files, err := seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := d.Bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		return data, err
	})
	if err != nil || files.First == nil {
		return nil, err
	}
	return files.Ring()
}

// Overview says how an organization's trails are sealed.
func (d *Desk) Overview(ctx context.Context, organization string) (*Overview, error) {
	o := &Overview{Chains: []Chain{}, Keys: []Key{}, HourSeconds: int(d.hour.Seconds())}
	ring, err := d.sealed.Ring(ctx)
	if err != nil {
		return nil, err
	}
	if ring != nil {
		for _, k := range ring.Keys() {
			o.Keys = append([]Key{keyOf(k)}, o.Keys...)
		}
	}
	for _, t := range schema.Trails {
		c, err := d.chain(ctx, ring, organization, t)
		if err != nil {
			return nil, err
		}
		o.Chains = append(o.Chains, *c)
	}
	o.Verification, _, err = d.last(ctx, organization)
	return o, err
}

// reach is how far a trail is sealed.
type reach struct {
	first time.Time // zero: nothing was recorded
	until time.Time
	alarm time.Time // zero: none
}

func (d *Desk) reach(ctx context.Context, organization string, t schema.Trail) (r reach, err error) {
	var known, stuck bool
	if r.first, known, err = d.progress.First(ctx, organization, t); err != nil || !known {
		return r, err
	}
	if r.until, err = d.progress.Sealed(ctx, organization, []schema.Trail{t}); err != nil {
		return r, err
	}
	if r.alarm, stuck, err = d.progress.Stuck(ctx, organization, t); !stuck {
		r.alarm = time.Time{}
	}
	return r, err
}

func (d *Desk) chain(ctx context.Context, ring *seal.Ring, organization string, t schema.Trail) (*Chain, error) {
	r, err := d.reach(ctx, organization, t)
	if err != nil {
		return nil, err
	}
	c := &Chain{Trail: t, First: r.first, Alarm: r.alarm}
	if r.first.IsZero() || !r.first.Before(r.until) || ring == nil {
		return c, nil
	}
	c.SealedUntil = r.until
	p := schema.Partition{Organization: organization, Trail: t, Hour: r.until.Add(-d.hour), Length: d.hour}
	m, err := d.sealed.Open(ctx, ring, p)
	var wrong *problem
	if errors.As(err, &wrong) {
		c.Problem = wrong.Error()
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	c.Head = &Head{Number: m.Number, Hash: m.TextHash(), Start: m.HourStart, End: m.HourEnd, Rows: m.Rows, Key: keyOf(ring.Keys()[m.Generation])}
	return c, nil
}

// problem is what is wrong with what was sealed, rather than with reading it.
type problem struct{ error }

// Open reads the manifest of a partition. An error that is not about reading says what is wrong with what was sealed.
func (d Manifests) Open(ctx context.Context, ring *seal.Ring, p schema.Partition) (*seal.Sealed, error) {
	data, err := d.Bucket.ReadAll(ctx, p.ManifestKey())
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, &problem{fmt.Errorf("%s is missing", p.ManifestKey())}
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.ManifestKey(), err)
	}
	m, err := ring.Open(data)
	if err == nil && m.Partition().ManifestKey() != p.ManifestKey() {
		err = fmt.Errorf("it speaks of %s", m.Partition())
	}
	if err != nil {
		return nil, &problem{fmt.Errorf("%s: %w", p.ManifestKey(), err)}
	}
	return m, nil
}

// MostHours bounds what is looked at at once: more than a month of whole hours.
const MostHours = 800

// readsAtOnce bounds how many manifests are read at the same time.
const readsAtOnce = 16

// Hours says what became of each hour of a trail that begins in a range: what its manifest states, under its signature.
// Whether its events are what was sealed, a verification says.
func (d *Desk) Hours(ctx context.Context, organization string, t schema.Trail, from, to time.Time) ([]Hour, error) {
	from, to = from.UTC().Truncate(d.hour), to.UTC()
	if !from.Before(to) {
		return nil, &schema.Fault{Field: "to", Value: to.Format(time.RFC3339), Problem: "is not after from", Remedy: "give a later time"}
	}
	if n := to.Sub(from) / d.hour; n > MostHours {
		return nil, &schema.Fault{Field: "from", Value: from.Format(time.RFC3339), Problem: fmt.Sprintf("is %d hours before to", n), Remedy: fmt.Sprintf("ask for %d at most at once", MostHours)}
	}
	r, err := d.reach(ctx, organization, t)
	if err != nil {
		return nil, err
	}
	ring, err := d.sealed.Ring(ctx)
	if err != nil {
		return nil, err
	}
	hours := []Hour{}
	for at := from; at.Before(to); at = at.Add(d.hour) {
		h := Hour{Start: at, State: Open}
		switch {
		case at.Equal(r.alarm):
			h.State = Alarm
		case r.first.IsZero() || at.Before(r.first):
			if h.State = None; at.After(d.now()) {
				h.State = Open
			}
		case at.Before(r.until) && ring != nil:
			h.State = Sealed
		}
		hours = append(hours, h)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	for i := range hours {
		if h := &hours[i]; h.State == Sealed {
			g.Go(func() error {
				return d.look(ctx, ring, schema.Partition{Organization: organization, Trail: t, Hour: h.Start, Length: d.hour}, h)
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return hours, nil
}

// look says what became of an hour that was sealed.
func (d *Desk) look(ctx context.Context, ring *seal.Ring, p schema.Partition, h *Hour) error {
	m, err := d.sealed.Open(ctx, ring, p)
	var wrong *problem
	if errors.As(err, &wrong) {
		h.State, h.Problem = Fault, wrong.Error()
		return nil
	}
	if err != nil {
		return err
	}
	h.Rows, h.Number, h.Gaps = m.Rows, m.Number, m.Gaps
	if d.Table != nil {
		if h.Problem = d.Table.Differs(p.Organization, p.Trail, p.Hour); h.Problem != "" {
			h.State = Differs
			return nil
		}
	}
	if m.Rows == 0 {
		h.State = Empty
		return nil
	}
	file, err := d.bucket.Attributes(ctx, p.CSVKey())
	switch {
	case err == nil && file.Size == m.FileBytes:
		return nil
	case err == nil:
		h.State, h.Problem = Fault, fmt.Sprintf("%s has %d bytes, and was sealed with %d", p.CSVKey(), file.Size, m.FileBytes)
		return nil
	case gcerrors.Code(err) != gcerrors.NotFound:
		return fmt.Errorf("look for %s: %w", p.CSVKey(), err)
	}
	statement, err := d.bucket.ReadAll(ctx, p.RemovedKey())
	if gcerrors.Code(err) == gcerrors.NotFound {
		h.State, h.Problem = Fault, p.CSVKey()+" is missing"
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", p.RemovedKey(), err)
	}
	h.State = Removed
	removal, err := ring.OpenRemoval(statement)
	if err == nil {
		err = removal.Of(m.Manifest, m.TextHash())
	}
	if err != nil {
		h.State, h.Problem = Fault, p.RemovedKey()+": "+err.Error()
	}
	return nil
}
