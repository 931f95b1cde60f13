package reconcile

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// mostEvents bounds the events that a finding names.
const mostEvents = 200

// Event is one in which the table differs from the sealed partition.
type Event struct {
	codec.Place
	Kind Kind `json:"kind"`
}

// Finding is a sealed hour that the table does not have as it was sealed.
type Finding struct {
	Organization string       `json:"organization"`
	Trail        schema.Trail `json:"trail"`
	Hour         time.Time    `json:"hour"`
	// Sealed and Table are the digests, as seal.Digest writes them.
	Sealed string `json:"sealed"`
	Table  string `json:"table"`
	// How many events differ.
	Missing uint64 `json:"missing"`
	Changed uint64 `json:"changed"`
	Added   uint64 `json:"added"`
	// Events are the first of these.
	Events []Event `json:"events" nullable:"false"`
	// Problem says why the events could not be compared one by one, if so.
	Problem string    `json:"problem,omitempty"`
	Since   time.Time `json:"since"`
}

func (f *Finding) visit(kind Kind, e *codec.Stored) error {
	switch kind {
	case Missing:
		f.Missing++
	case Changed:
		f.Changed++
	case Added:
		f.Added++
	}
	if len(f.Events) < mostEvents {
		f.Events = append(f.Events, Event{e.Place(), kind})
	}
	return nil
}

// String says what differs.
func (f *Finding) String() string {
	if f.Problem != "" {
		return f.Problem
	}
	var parts []string
	for _, of := range []struct {
		n    uint64
		what Kind
	}{{f.Missing, Missing}, {f.Changed, Changed}, {f.Added, Added}} {
		if of.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", of.n, of.what))
		}
	}
	return "events in the table: " + strings.Join(parts, ", ")
}

// Findings keeps what was found.
type Findings struct {
	KV jetstream.KeyValue

	mu    sync.RWMutex
	known map[string]Finding // by key, once Follow runs
}

const differs = "differs."

// key is one for whatever somebody has written into the table.
func key(organization string, trail schema.Trail, hour time.Time) string {
	return differs + hex.EncodeToString([]byte(organization)) + "_" + hex.EncodeToString([]byte(trail)) + "." + strconv.FormatInt(hour.Unix(), 10)
}

func (k *Findings) put(ctx context.Context, f *Finding) error {
	data, err := json.Marshal(f)
	if err == nil {
		_, err = k.KV.Put(ctx, key(f.Organization, f.Trail, f.Hour), data)
	}
	if err != nil {
		return fmt.Errorf("keep what differs in %s/%s: %w", f.Organization, f.Trail, err)
	}
	return nil
}

// get returns the finding of a partition, or nil.
func (k *Findings) get(ctx context.Context, p schema.Partition) (*Finding, error) {
	entry, err := k.KV.Get(ctx, key(p.Organization, p.Trail, p.Hour))
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return nil, nil
	}
	var f Finding
	if err == nil {
		err = json.Unmarshal(entry.Value(), &f)
	}
	if err != nil {
		return nil, fmt.Errorf("read what differs in %s: %w", p, err)
	}
	return &f, nil
}

// clear forgets a finding, and says whether there was one.
func (k *Findings) clear(ctx context.Context, organization string, trail schema.Trail, hour time.Time) (bool, error) {
	name := key(organization, trail, hour)
	_, err := k.KV.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return false, nil
	}
	if err == nil {
		err = k.KV.Purge(ctx, name)
	}
	if err != nil {
		return false, fmt.Errorf("forget what differed in %s/%s: %w", organization, trail, err)
	}
	return true, nil
}

// List returns all findings, the newest hours first.
func (k *Findings) List(ctx context.Context) ([]Finding, error) { return k.list(ctx, "*") }

// list returns those of an hour, in seconds since 1970, or of any.
func (k *Findings) list(ctx context.Context, hour string) (all []Finding, err error) {
	keys, err := k.KV.ListKeysFiltered(ctx, differs+"*."+hour)
	if err != nil {
		return nil, fmt.Errorf("list what differs: %w", err)
	}
	defer func() { _ = keys.Stop() }()
	for name := range keys.Keys() {
		entry, err := k.KV.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // it was restored meanwhile
		}
		var f Finding
		if err == nil {
			err = json.Unmarshal(entry.Value(), &f)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(b.Hour.Compare(a.Hour), cmp.Compare(a.Organization, b.Organization), cmp.Compare(a.Trail, b.Trail))
	})
	return all, nil
}

// Follow keeps what Differs and Known answer up to date until ctx ends.
func (k *Findings) Follow(ctx context.Context) error {
	for ctx.Err() == nil {
		watch, err := k.KV.Watch(ctx, differs+">")
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		k.mu.Lock()
		k.known = map[string]Finding{}
		k.mu.Unlock()
		k.follow(ctx, watch)
		_ = watch.Stop() // its connection may be gone
	}
	return nil
}

func (k *Findings) follow(ctx context.Context, watch jetstream.KeyWatcher) {
	for {
		select {
		case <-ctx.Done():
			return
		case entry, ok := <-watch.Updates():
			if !ok {
				return
			}
			if entry == nil {
				continue // all that was there came
			}
			var f Finding
			k.mu.Lock()
			if entry.Operation() == jetstream.KeyValuePut && json.Unmarshal(entry.Value(), &f) == nil {
				k.known[entry.Key()] = f
			} else {
				delete(k.known, entry.Key())
			}
			k.mu.Unlock()
		}
	}
}

// Differs says how the table differs from a sealed hour; nothing if it does not, as far as Follow knows.
func (k *Findings) Differs(organization string, trail schema.Trail, hour time.Time) string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if f, ok := k.known[key(organization, trail, hour)]; ok {
		return f.String()
	}
	return ""
}

// Event says how an event of the table differs from what was sealed; nothing if it does not, as far as Follow knows. Of an hour in
// which more events differ than a finding names, those that come later are not told apart.
func (k *Findings) Event(e *codec.Stored) Kind {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, f := range k.known { // there are none, or few
		if f.Organization != e.Organization || f.Trail != e.Trail || e.RecordedAt.Before(f.Hour) {
			continue
		}
		for _, d := range f.Events {
			if d.Kind != Missing && d.Place == e.Place() {
				return d.Kind
			}
		}
	}
	return ""
}
