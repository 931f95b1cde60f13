package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Auditor compares all sealed hours with the table, the newest first, then again from the newest.
type Auditor struct {
	Bucket   *blob.Bucket
	Table    Table
	Progress rollup.Progress
	Findings *Findings
	// Hour is the length of a partition.
	Hour time.Duration
	// Share of the time is spent on it; 0 means never.
	Share float64
	// Expires is when an event may be removed.
	Expires func(organization string, recordedAt time.Time) time.Time
	// Record makes what is found and what was restored an event.
	Record func(ctx context.Context, e schema.Event)
	Logger *slog.Logger

	compared atomic.Uint64
}

// Compared counts the hours that were compared in this process.
func (a *Auditor) Compared() uint64 { return a.compared.Load() }

// idle is the pause when all is compared, and after an error.
const idle = 10 * time.Second

// Run compares until ctx ends.
func (a *Auditor) Run(ctx context.Context) error {
	if a.Share <= 0 {
		return nil
	}
	for {
		began := time.Now()
		did, err := a.step(ctx)
		pause := time.Duration(float64(time.Since(began)) * (1/a.Share - 1))
		if err != nil && ctx.Err() == nil {
			a.Logger.Warn("comparing the table with sealed hours failed, trying again", slog.Any("error", err))
		}
		if err != nil || !did {
			pause = max(pause, min(idle, a.Hour))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Walk is how far the comparison has come. The hours from Lower up to, and without, Upper are compared in this pass.
type Walk struct {
	Upper time.Time `json:"upper"`
	Lower time.Time `json:"lower"`
	// Passes counts those that were completed, the last of them at Completed.
	Passes    uint64    `json:"passes"`
	Completed time.Time `json:"completed,omitzero"`
}

const walkKey = "walk"

// Walk returns how far the comparison has come.
func (k *Findings) Walk(ctx context.Context) (w Walk, revision uint64, err error) {
	entry, err := k.KV.Get(ctx, walkKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return w, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &w)
	}
	if err != nil {
		return w, 0, fmt.Errorf("read how far the table is compared: %w", err)
	}
	return w, entry.Revision(), nil
}

// step compares one hour, if there is one. Of several processes each takes other hours.
func (a *Auditor) step(ctx context.Context) (did bool, err error) {
	sealed, err := a.Progress.Next(ctx)
	if err != nil || sealed.IsZero() {
		return false, err
	}
	beginnings, err := a.Progress.Beginnings(ctx)
	if err != nil {
		return false, err
	}
	first := sealed
	for _, b := range beginnings {
		if b.First.Before(first) {
			first = b.First
		}
	}
	w, revision, err := a.Findings.Walk(ctx)
	if err != nil {
		return false, err
	}
	var hour time.Time
	if w.Upper.IsZero() || w.Upper.After(sealed) || w.Upper.Before(first) {
		w.Upper, w.Lower = sealed, sealed
	}
	switch {
	case w.Upper.Before(sealed): // what was sealed since
		hour, w.Upper = w.Upper, w.Upper.Add(a.Hour)
	case w.Lower.After(first):
		w.Lower = w.Lower.Add(-a.Hour)
		hour = w.Lower
	default:
		w.Passes++
		w.Completed, w.Lower = time.Now().UTC().Truncate(time.Second), w.Upper
	}
	if err := a.keep(ctx, w, revision); err != nil || hour.IsZero() {
		return false, err
	}
	return true, a.compareHour(ctx, hour)
}

// keep keeps the walk, unless another process took the hour first.
func (a *Auditor) keep(ctx context.Context, w Walk, revision uint64) error {
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if _, err = consumers.Replace(ctx, a.Findings.KV, walkKey, data, revision); err != nil {
		return fmt.Errorf("keep how far the table is compared: %w", err)
	}
	return nil
}

type trail struct {
	organization string
	trail        schema.Trail
}

// blocked are the first hours that are not sealed, of trails that are behind the others.
func (a *Auditor) blocked(ctx context.Context) (map[trail]time.Time, error) {
	found, err := a.Progress.Blocked(ctx, a.Hour)
	if err != nil {
		return nil, err
	}
	blocked := map[trail]time.Time{}
	for _, p := range found {
		blocked[trail{p.Organization, p.Trail}] = p.Hour
	}
	return blocked, nil
}

// compareHour compares one hour of all trails.
func (a *Auditor) compareHour(ctx context.Context, hour time.Time) error {
	beginnings, err := a.Progress.Beginnings(ctx)
	if err != nil {
		return err
	}
	blocked, err := a.blocked(ctx)
	if err != nil {
		return err
	}
	ring, err := integrity.Manifests{Bucket: a.Bucket}.Ring(ctx)
	if err != nil || ring == nil {
		return err
	}
	table, err := a.digests(ctx, hour, a.Hour)
	if err != nil {
		return err
	}
	sealed := map[trail]bool{}
	var errs []error
	for _, b := range beginnings {
		of := trail{b.Organization, b.Trail}
		if stuck, ok := blocked[of]; b.First.After(hour) || ok && !hour.Before(stuck) {
			sealed[of] = ok && !b.First.After(hour) // it waits to be sealed
			continue
		}
		sealed[of] = true
		p := schema.Partition{Organization: b.Organization, Trail: b.Trail, Hour: hour, Length: a.Hour}
		m, err := integrity.Manifests{Bucket: a.Bucket}.Open(ctx, ring, p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, a.partition(ctx, p, m, table[of]))
	}
	// What is in the table, or was when it was compared last, and was never sealed.
	unsealed := maps.Clone(table)
	found, err := a.Findings.list(ctx, strconv.FormatInt(hour.Unix(), 10))
	if err != nil {
		errs = append(errs, err)
	}
	for _, f := range found {
		of := trail{f.Organization, f.Trail}
		unsealed[of] = table[of]
	}
	for of, digest := range unsealed {
		if !sealed[of] {
			p := schema.Partition{Organization: of.organization, Trail: of.trail, Hour: hour, Length: a.Hour}
			errs = append(errs, a.partition(ctx, p, nil, digest))
		}
	}
	a.compared.Add(1)
	if err := errors.Join(errs...); err != nil || a.Hour != time.Hour {
		return err
	}
	return a.recount(ctx, hour, table)
}

// digests are those of what the table has of some time, by trail.
func (a *Auditor) digests(ctx context.Context, from time.Time, length time.Duration) (map[trail]seal.Digest, error) {
	counts, err := a.Table.Counts(ctx, from, from.Add(length), true)
	if err != nil {
		return nil, err
	}
	digests := map[trail]seal.Digest{}
	for _, c := range counts {
		digests[trail{c.Organization, c.Trail}] = c.Digest
	}
	return digests, nil
}

// CorrectCounts corrects the hourly counts of an hour of the clock in which everything is sealed.
func (a *Auditor) CorrectCounts(ctx context.Context, hour time.Time) error {
	table, err := a.digests(ctx, hour, time.Hour)
	if err != nil {
		return err
	}
	return a.recount(ctx, hour, table)
}

// recount corrects the hourly counts where they are not what the table has: they are not written together with the events, so that
// a process that is killed may leave them out, or have them twice. They serve charts, and are not evidence.
func (a *Auditor) recount(ctx context.Context, hour time.Time, table map[trail]seal.Digest) error {
	counted, err := a.Table.Counted(ctx, hour)
	if err != nil {
		return err
	}
	for _, c := range counted {
		of := trail{c.Organization, c.Trail}
		if table[of].Rows != c.Rows {
			if err := a.Table.Recount(ctx, schema.Partition{Organization: c.Organization, Trail: c.Trail, Hour: hour, Length: a.Hour}); err != nil {
				return err
			}
			a.Logger.Info("hourly counts corrected", slog.String("organization", c.Organization), slog.String("trail", string(c.Trail)),
				slog.Time("hour", hour), slog.Uint64("counted", c.Rows), slog.Uint64("stored", table[of].Rows))
		}
		delete(table, of)
	}
	for of := range table { // nothing was counted of them
		if err := a.Table.Recount(ctx, schema.Partition{Organization: of.organization, Trail: of.trail, Hour: hour, Length: a.Hour}); err != nil {
			return err
		}
	}
	return nil
}

// partition compares one partition, by digests first. m is nil if none was sealed.
func (a *Auditor) partition(ctx context.Context, p schema.Partition, m *seal.Sealed, table seal.Digest) error {
	var sealed seal.Digest
	if m != nil {
		sealed = m.Digest
	}
	if sealed == table {
		return a.reconciled(ctx, p)
	}
	removed, err := a.removed(ctx, p)
	if err != nil {
		return err
	}
	if removed || a.Expires(p.Organization, p.Hour).Before(time.Now()) {
		_, err := a.Findings.clear(ctx, p.Organization, p.Trail, p.Hour) // the table removes its rows by itself
		return err
	}
	f := &Finding{
		Organization: p.Organization, Trail: p.Trail, Hour: p.Hour, Sealed: sealed.String(), Table: table.String(), Events: []Event{},
		Since: time.Now().UTC().Truncate(time.Second),
	}
	if err := compare(ctx, a.Bucket, a.Table, p, m, f.visit); err != nil {
		if ctx.Err() != nil {
			return err
		}
		f.Problem = err.Error()
	}
	if f.Problem == "" && f.Missing+f.Changed+f.Added == 0 {
		return a.reconciled(ctx, p) // it was restored meanwhile
	}
	return a.found(ctx, p, f)
}

func (a *Auditor) removed(ctx context.Context, p schema.Partition) (bool, error) {
	_, err := a.Bucket.Attributes(ctx, p.RemovedKey())
	if gcerrors.Code(err) == gcerrors.NotFound {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", p.RemovedKey(), err)
	}
	return true, nil
}

// found keeps a finding, and reports it once.
func (a *Auditor) found(ctx context.Context, p schema.Partition, f *Finding) error {
	before, err := a.Findings.get(ctx, p)
	if err != nil {
		return err
	}
	if before != nil {
		f.Since = before.Since
	}
	if err := a.Findings.put(ctx, f); err != nil || before != nil {
		return err
	}
	a.Logger.Error("the table differs from a sealed hour: kansa restore repairs it", slog.String("partition", p.Path()), slog.String("what", f.String()))
	a.record(ctx, p, "table.differs", schema.Failure, f.String())
	return nil
}

func (a *Auditor) reconciled(ctx context.Context, p schema.Partition) error {
	was, err := a.Findings.clear(ctx, p.Organization, p.Trail, p.Hour)
	if err != nil || !was {
		return err
	}
	a.Logger.Info("the table is as the hour was sealed again", slog.String("partition", p.Path()))
	a.record(ctx, p, "table.reconciled", schema.Success, "the table is as the hour was sealed")
	return nil
}

func (a *Auditor) record(ctx context.Context, p schema.Partition, event string, outcome schema.Outcome, description string) {
	data, err := json.Marshal(map[string]any{"organization": p.Organization, "trail": p.Trail, "hour": p.Hour})
	if err != nil {
		a.Logger.Error("a record has no data", slog.Any("error", err))
	}
	a.Record(ctx, schema.Event{
		Event: event, Action: "compare", Outcome: outcome, Target: schema.Target{Type: "partition", ID: p.Path()}, Description: description,
		Data: data, DataType: "kansa." + event + ".v1", Attributes: map[string]string{"organization": p.Organization},
	})
}

// compare visits the events in which the table differs from a partition.
func compare(ctx context.Context, bucket *blob.Bucket, table Table, p schema.Partition, m *seal.Sealed, visit visitor) (err error) {
	if m == nil {
		m = &seal.Sealed{Manifest: seal.New(p)}
	}
	sealed, err := openSealed(ctx, bucket, m)
	if err != nil {
		return err
	}
	rows, err := table.CSV(ctx, p, true)
	if err != nil {
		return errors.Join(err, sealed.Close())
	}
	defer rows.Close()
	err = differences(sealed, rows, visit)
	if closed := sealed.Close(); closed != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.Join(err, closed)
	}
	return err
}
