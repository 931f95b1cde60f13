package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
)

// sweepEvery is how often Housekeep sweeps.
const sweepEvery = 10 * time.Minute

// Swept counts what a sweep took away.
type Swept struct {
	Areas  int // working areas
	Links  int // that had expired
	States int // of exports that were over long ago
}

// Housekeep sweeps now and then until ctx ends. Any number of exporters may do so at once.
func (x *Exporter) Housekeep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		s, err := x.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			x.log.Warn("sweep of exports goes on with the next", slog.Any("error", err))
		case s != Swept{}:
			x.log.Info("swept exports", slog.Int("working_areas", s.Areas), slog.Int("links", s.Links), slog.Int("states", s.States))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep removes working areas that nobody needs any more, and forgets links that have expired and exports that were
// over KeepStates ago.
func (x *Exporter) Sweep(ctx context.Context) (s Swept, err error) {
	now := x.cfg.Now()
	var errs [3]error
	s.Areas, errs[0] = x.sweepAreas(ctx, now)
	s.Links, errs[1] = x.links.sweep(ctx, now)
	s.States, errs[2] = x.sweepStates(ctx, now)
	return s, errors.Join(errs[:]...)
}

// areaIsOver tells that nobody will read the working area of e again: it was delivered, given up, or its links open
// nothing any more.
func (e *Export) areaIsOver(now time.Time) bool {
	switch e.State {
	case Failed:
		return true
	case Done:
		return e.Expires == nil || e.Revoked != nil || !now.Before(*e.Expires)
	default:
		return false
	}
}

// mark notes that an export has a working area, before it has.
func (s States) mark(ctx context.Context, id string) error {
	if _, err := s.KV.Put(ctx, prefixArea+id, nil); err != nil {
		return fmt.Errorf("note the working area of export %s: %w", id, err)
	}
	return nil
}

// removeArea removes a working area, and then the note of it.
func (x *Exporter) removeArea(ctx context.Context, id string) error {
	a := render.Area{Bucket: x.bucket, Export: id}
	if err := a.Remove(ctx); err != nil {
		return err
	}
	return forget(ctx, x.states.KV, prefixArea+id)
}

// gone reports whether an archive that was delivered by a link is gone: what was rendered for it goes with its hours.
func (x *Exporter) gone(ctx context.Context, e *Export) bool {
	var gone *Gone
	return e.State == Done && errors.As(Available(ctx, x.bucket, e), &gone)
}

func (x *Exporter) sweepAreas(ctx context.Context, now time.Time) (n int, _ error) {
	ids, err := keysOf(ctx, x.states.KV, prefixArea)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		e, found, err := x.states.Get(ctx, id)
		if err != nil {
			return n, err
		}
		if found && !e.areaIsOver(now) && !x.gone(ctx, &e) {
			continue
		}
		if err := x.removeArea(ctx, id); err != nil {
			return n, err
		}
		n++
	}
	return n, purge(ctx, x.states.KV, n)
}

// sweep forgets the links that have expired.
func (l Links) sweep(ctx context.Context, now time.Time) (n int, _ error) {
	tokens, err := keysOf(ctx, l.KV, "")
	if err != nil {
		return 0, err
	}
	for _, hash := range tokens {
		entry, err := l.KV.Get(ctx, hash)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("read a link: %w", err)
		}
		var link Link
		if err := json.Unmarshal(entry.Value(), &link); err != nil || now.Before(link.Expires) {
			continue // what can't be read is not forgotten silently: Open tells of it
		}
		if err := forget(ctx, l.KV, hash); err != nil {
			return n, err
		}
		n++
	}
	return n, purge(ctx, l.KV, n)
}

// sweepStates forgets exports that are over, what was asked for by them, and the quotas of days that are past.
func (x *Exporter) sweepStates(ctx context.Context, now time.Time) (n int, _ error) {
	kv := x.states.KV
	ids, err := keysOf(ctx, kv, prefixExport)
	if err != nil {
		return 0, err
	}
	gone := 0
	for _, id := range ids {
		e, found, err := x.states.Get(ctx, id)
		if err != nil {
			return n, err
		}
		old := found && now.Sub(e.Updated) > x.cfg.KeepStates && e.areaIsOver(now)
		if !old {
			continue
		}
		if err := x.removeArea(ctx, id); err != nil {
			return n, err
		}
		if err := forget(ctx, kv, prefixExport+id); err != nil {
			return n, err
		}
		n++
	}
	if n > 0 { // those that led to them
		same, err := keysOf(ctx, kv, prefixSame)
		if err != nil {
			return n, err
		}
		for _, hash := range same {
			entry, err := kv.Get(ctx, prefixSame+hash)
			if errors.Is(err, jetstream.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return n, fmt.Errorf("read what was asked for: %w", err)
			}
			if _, found, err := x.states.Get(ctx, string(entry.Value())); err != nil {
				return n, err
			} else if !found {
				if err := forget(ctx, kv, prefixSame+hash); err != nil {
					return n, err
				}
				gone++
			}
		}
	}
	quotas, err := keysOf(ctx, kv, prefixQuota)
	if err != nil {
		return n, err
	}
	for _, key := range quotas {
		day, err := time.Parse("20060102", key[strings.LastIndexByte(key, '.')+1:])
		if err != nil || now.Sub(day) < 7*24*time.Hour {
			continue
		}
		if err := forget(ctx, kv, prefixQuota+key); err != nil {
			return n, err
		}
		gone++
	}
	waiting, err := x.sweepWaiting(ctx)
	if err != nil {
		return n, err
	}
	return n, purge(ctx, kv, n+gone+waiting)
}

// keysOf lists the keys with a prefix, without it.
func keysOf(ctx context.Context, kv jetstream.KeyValue, prefix string) (all []string, _ error) {
	list, err := kv.ListKeysFiltered(ctx, prefix+">")
	if err != nil {
		return nil, fmt.Errorf("list keys of %s: %w", kv.Bucket(), err)
	}
	for key := range list.Keys() {
		all = append(all, strings.TrimPrefix(key, prefix))
	}
	return all, ctx.Err()
}

func forget(ctx context.Context, kv jetstream.KeyValue, key string) error {
	if err := kv.Purge(ctx, key); err != nil {
		return fmt.Errorf("forget %s of %s: %w", key, kv.Bucket(), err)
	}
	return nil
}

// purge removes the markers of what was forgotten.
func purge(ctx context.Context, kv jetstream.KeyValue, forgotten int) error {
	if forgotten == 0 {
		return nil
	}
	if err := kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(-1)); err != nil {
		return fmt.Errorf("clear up %s: %w", kv.Bucket(), err)
	}
	return nil
}
