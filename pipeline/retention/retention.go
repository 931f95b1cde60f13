// Package retention removes what is older than an organization keeps, or more than it keeps: the files of partitions,
// the rows, and the messages in the stream. The manifest of a removed file stays, and beside it a signed statement says
// that the file was removed and why, so that an auditor can tell it from a loss.
//
// It owns the decision what is removed and the order in which: first the statement, then the file, then the rows and
// the messages. Under a legal hold it removes nothing.
package retention

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Rows are those of the table.
type Rows interface {
	SetExpiry(ctx context.Context, organization string, days int, held bool) error
	RemoveBefore(ctx context.Context, organization string, trail schema.Trail, before time.Time) error
}

// Sealer signs statements.
type Sealer interface {
	SealRemoval(ctx context.Context, r *seal.Removal) ([]byte, error)
}

// Keeper keeps to the retention.
type Keeper struct {
	Bucket   *blob.Bucket
	Settings *settings.Store
	Rows     Rows
	Sealer   Sealer
	// Stream is AUDIT.
	Stream jetstream.Stream
	// Hour is the length of a partition.
	Hour   time.Duration
	Record func(ctx context.Context, e schema.Event)
	Logger *slog.Logger
	Now    func() time.Time // default time.Now
}

// Run looks every so often what is to be removed, until ctx ends. Rows get another time to expire as soon as the rules of
// their organization change: a legal hold must not wait until the engine has removed what it holds.
func (k *Keeper) Run(ctx context.Context, every time.Duration) error {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		_ = k.Settings.FollowOrganizations(ctx, func(name string) {
			o, err := k.Settings.Organization(ctx, name)
			if err == nil {
				err = k.expiry(ctx, o)
			}
			if err != nil && ctx.Err() == nil {
				k.Logger.Error("stored events do not expire by the new rules yet, trying again", slog.String("organization", name), slog.Duration("in", every), slog.Any("error", err))
			}
		})
	})
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := k.Once(ctx); err != nil && ctx.Err() == nil {
			k.Logger.Error("retention failed, trying again", slog.Duration("in", every), slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Once removes what is to be removed now. What it began is finished by the next, whoever that is.
func (k *Keeper) Once(ctx context.Context) error {
	organizations, err := k.organizations(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range organizations {
		o, err := k.Settings.Organization(ctx, name)
		if err == nil {
			err = k.one(ctx, o)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("retention of %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// organizations are those that have partitions.
func (k *Keeper) organizations(ctx context.Context) ([]string, error) {
	var names []string
	list := k.Bucket.List(&blob.ListOptions{Delimiter: "/"})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list the partitions: %w", err)
		}
		if name := strings.TrimSuffix(o.Key, "/"); o.IsDir && schema.CheckOrganization(name) == nil {
			names = append(names, name)
		}
	}
}

func (k *Keeper) one(ctx context.Context, o *settings.Organization) error {
	if err := k.expiry(ctx, o); err != nil {
		return err
	}
	if o.Hold != nil {
		return nil
	}
	hours := map[schema.Trail][]hour{}
	for _, t := range schema.Trails {
		found, err := k.list(ctx, o.Name, t)
		if err != nil {
			return err
		}
		hours[t] = found
	}
	for _, t := range schema.Trails {
		old, reason := k.old(o, hours, t)
		if err := k.remove(ctx, o, t, old, reason); err != nil {
			return err
		}
	}
	return nil
}

// expiry has the rows that are stored expire as it was decided since.
func (k *Keeper) expiry(ctx context.Context, o *settings.Organization) error {
	if o.Meta.Revision == 0 {
		return nil // the writer's default
	}
	want := o.Retention()
	var err error
	for range applyTries {
		var have settings.Retention
		var revision uint64
		if have, revision, err = k.Settings.Applied(ctx, o.Name); err != nil || have == want {
			return err
		}
		if err = k.Rows.SetExpiry(ctx, o.Name, want.Days, want.Held); err != nil {
			return err
		}
		// Another process may have applied the same, or what was decided before that: then the rows have its expiry.
		if err = k.Settings.SetApplied(ctx, o.Name, want, revision); !errors.Is(err, settings.ErrChanged) {
			return err
		}
	}
	return err
}

// applyTries is how often rows are given their expiry while other processes do the same.
const applyTries = 5

// hour is a partition whose file is there.
type hour struct {
	partition schema.Partition
	bytes     int64 // of the file
}

// list finds the files of a trail, the oldest first.
func (k *Keeper) list(ctx context.Context, organization string, t schema.Trail) ([]hour, error) {
	prefix := organization + "/" + string(t) + "/"
	list := k.Bucket.List(&blob.ListOptions{Prefix: prefix})
	var found []hour
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list the partitions of %s: %w", prefix, err)
		}
		text, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, prefix), schema.CSVSuffix)
		if !ok {
			continue
		}
		layout := "2006/01/02/15"
		if k.Hour != time.Hour {
			layout = "2006/01/02/15-04-05"
		}
		start, err := time.Parse(layout, text)
		if err != nil {
			continue // of another length of the hour: it is not ours to decide
		}
		found = append(found, hour{schema.Partition{Organization: organization, Trail: t, Hour: start, Length: k.Hour}, o.Size})
	}
	slices.SortFunc(found, func(a, b hour) int { return a.partition.Hour.Compare(b.partition.Hour) })
	return found, nil
}

// old are the hours of a trail that are to go, and why: those that ended before the retention's days, and those beyond
// its bytes, counted from the newest of all trails back.
func (k *Keeper) old(o *settings.Organization, hours map[schema.Trail][]hour, t schema.Trail) (old []hour, reason string) {
	before := k.now().AddDate(0, 0, -o.RetentionDays)
	reason = fmt.Sprintf("retention of %d days", o.RetentionDays)
	if o.RetentionBytes > 0 {
		all := slices.Concat(hours[schema.Activity], hours[schema.Access])
		slices.SortFunc(all, func(a, b hour) int { return b.partition.Hour.Compare(a.partition.Hour) })
		var sum int64
		for i := range all {
			// An hour is kept with all its trails, or with none.
			if sum += all[i].bytes; sum > o.RetentionBytes {
				if end := all[i].partition.End(); end.After(before) {
					before, reason = end, fmt.Sprintf("retention of %d bytes", o.RetentionBytes)
				}
				break
			}
		}
	}
	for _, h := range hours[t] {
		if !h.partition.End().After(before) {
			old = append(old, h)
		}
	}
	return old, reason
}

func (k *Keeper) remove(ctx context.Context, o *settings.Organization, t schema.Trail, old []hour, reason string) error {
	if len(old) == 0 {
		return nil
	}
	var rows, last uint64
	for _, h := range old {
		m, err := k.removeOne(ctx, h.partition, reason)
		if err != nil {
			return err
		}
		rows, last = rows+m.Rows, max(last, m.LastSeq)
	}
	end := old[len(old)-1].partition.End()
	if err := k.Rows.RemoveBefore(ctx, o.Name, t, end); err != nil {
		return err
	}
	if last > 0 {
		// Sealed hours are stored, so that nobody needs these messages any more.
		for _, subject := range []string{schema.EventSubject(o.Name, t), schema.EventSubject(o.Name, t) + ".*"} {
			if err := k.Stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(last+1)); err != nil {
				return fmt.Errorf("remove the messages of %s/%s up to %d: %w", o.Name, t, last, err)
			}
		}
	}
	data, err := json.Marshal(map[string]any{"partitions": len(old), "rows": rows, "from": old[0].partition.Hour, "to": end, "reason": reason})
	if err != nil {
		return fmt.Errorf("encode what was removed: %w", err)
	}
	k.Logger.Info("removed by retention", slog.String("trail", o.Name+"/"+string(t)), slog.Int("partitions", len(old)), slog.Uint64("rows", rows), slog.Time("to", end))
	k.Record(ctx, schema.Event{
		Organization: o.Name, Event: "retention.removed", Action: "delete", Target: schema.Target{Type: "trail", ID: o.Name + "/" + string(t)}, Description: reason,
		Data: data, DataType: "kansa.retention.v1",
	})
	return nil
}

// removeOne says that a file is removed, and then removes it.
func (k *Keeper) removeOne(ctx context.Context, p schema.Partition, reason string) (*seal.Sealed, error) {
	file, err := k.Bucket.ReadAll(ctx, p.ManifestKey())
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", p.ManifestKey(), err)
	}
	m, err := seal.Parse(file)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", p.ManifestKey(), err)
	}
	there, err := k.Bucket.Exists(ctx, p.RemovedKey())
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", p.RemovedKey(), err)
	}
	if !there {
		statement, err := k.Sealer.SealRemoval(ctx, seal.NewRemoval(m, k.now(), reason))
		if err != nil {
			return nil, err
		}
		if err := k.Bucket.WriteAll(ctx, p.RemovedKey(), statement, nil); err != nil {
			return nil, fmt.Errorf("keep %s: %w", p.RemovedKey(), err)
		}
	}
	if err := k.Bucket.Delete(ctx, p.CSVKey()); err != nil {
		return nil, fmt.Errorf("remove %s: %w", p.CSVKey(), err)
	}
	return m, nil
}

func (k *Keeper) now() time.Time {
	if k.Now != nil {
		return k.Now().UTC()
	}
	return time.Now().UTC()
}
