// Package settings keeps what people decide while the system runs: destinations, the rules of each organization, and
// the switches of its trails. A setting is kept whole, with a revision: who changes one says which revision he saw, so that of
// two at once one is told. Every change is checked before it is kept, and told to the system's own trail with
// what was there before and after it, without secrets.
//
// It owns the bucket of settings, the form of its documents and their upgrades, and the sealing of secrets. The
// switches lie in a bucket of their own, in the form of package schema, since others than us read them. It
// delivers nothing and obeys nothing: others look here each time they need to know.
package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/schema"
)

var (
	// ErrChanged means that a setting is not any more what was looked at.
	ErrChanged = errors.New("the setting was changed meanwhile")
	// ErrUnreadable means that what is stored is not a setting that this program knows: it is damaged, or another
	// version wrote it. It concerns that setting alone, which can be removed or replaced.
	ErrUnreadable = errors.New("the stored setting cannot be read")
)

// Store keeps settings. It is safe for concurrent use, by any number of processes.
type Store struct {
	KV  jetstream.KeyValue
	Box *Box
	// Trails has the switches of the trails: see SwitchTrails. HIPAA holds for organizations that never switched one.
	Trails jetstream.KeyValue
	HIPAA  bool
	// Record tells the own trail of changes.
	Record func(ctx context.Context, e schema.Event)
	Logger *slog.Logger
	Now    func() time.Time // default time.Now
	// Defaults hold for organizations that decided nothing, but for the days of those that the configuration names.
	Defaults Organization
	Days     map[string]int
	// Reach is what destinations may connect to that people save; nil allows everything. Hour is the length of a partition.
	Reach *reach.Policy
	Hour  time.Duration
}

func (s *Store) defaults(organization string) Organization {
	o := s.Defaults
	if days, ok := s.Days[organization]; ok {
		o.RetentionDays = days
	}
	return o
}

// Meta is what is known of a setting besides itself.
type Meta struct {
	// Revision is zero for what is not there yet.
	Revision uint64    `json:"revision"`
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	By       string    `json:"by,omitempty"`
	// Managed tells that the configuration file says so, and that only the file can change it.
	Managed bool `json:"managed,omitempty"`
}

// version is that of the documents this package writes; older ones are brought up to it as they are read.
const version = 2

// document is what a key holds.
type document struct {
	Version int             `json:"version"`
	Value   json.RawMessage `json:"value"`
	// Secrets are sealed, by the names of their fields.
	Secrets map[string]string `json:"secrets,omitempty"`
	Meta
}

// get returns the document of a key, brought up to date, and false if there is none. An error that answers to
// ErrUnreadable comes with the revision of what is there.
func (s *Store) get(ctx context.Context, key string) (document, bool, error) {
	var d document
	entry, err := s.KV.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return d, false, nil
	}
	if err != nil {
		return d, false, fmt.Errorf("read setting %s: %w", key, err)
	}
	if d, err = read(entry.Value()); err != nil {
		return document{Meta: Meta{Revision: entry.Revision()}}, true, fmt.Errorf("%w: %s: %w", ErrUnreadable, key, err)
	}
	d.Revision = entry.Revision()
	return d, true, nil
}

func read(data []byte) (document, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return d, err
	}
	if d.Version < 1 || d.Version > version {
		return d, fmt.Errorf("it has version %d, this program knows 1 to %d: use the program that wrote it, or a newer one", d.Version, version)
	}
	for ; d.Version < version; d.Version++ {
		if err := upgrades[d.Version](&d); err != nil {
			return d, fmt.Errorf("bring it from version %d to the next: %w", d.Version, err)
		}
	}
	return d, nil
}

// put keeps a document in place of the revision it was made from.
func (s *Store) put(ctx context.Context, key string, d *document) error {
	d.Version = version
	revision := d.Revision
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode setting %s: %w", key, err)
	}
	d.Revision, err = consumers.Replace(ctx, s.KV, key, data, revision)
	return changed(err, "keep", key)
}

func changed(err error, action, key string) error {
	if errors.Is(consumers.Replaced(err), consumers.ErrReplaced) {
		return fmt.Errorf("%w: %s: look at it again, and repeat what you want", ErrChanged, key)
	}
	if err != nil {
		return fmt.Errorf("%s setting %s: %w", action, key, err)
	}
	return nil
}

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now().UTC()
	}
	return time.Now().UTC()
}

// tell puts a change into the own trail. before is nil for what is new, after for what is gone.
func (s *Store) tell(ctx context.Context, kind, action, id, organization, by string, before, after any) {
	s.Record(ctx, s.event(kind, action, id, organization, by, before, after))
}

func (s *Store) event(kind, action, id, organization, by string, before, after any) schema.Event {
	e := schema.Event{
		Organization: organization, Event: kind + "." + action + "d", Action: action, Target: schema.Target{Type: kind, ID: id}, Actor: schema.Actor{Type: "user", ID: by},
	}
	for field, v := range map[*json.RawMessage]any{&e.Before: before, &e.After: after} {
		if v == nil {
			continue
		}
		var err error
		if *field, err = json.Marshal(v); err != nil {
			s.Logger.Error("change of a setting is told without its values", slog.String("setting", id), slog.Any("error", err))
		}
	}
	return e
}

// decode reads a value strictly.
func decode(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

// Follow calls changed with the key of each setting that is there, and of each that is changed or removed, until ctx
// ends. A watch that breaks is begun anew, with all keys again. It returns nil.
func (s *Store) Follow(ctx context.Context, changed func(key string)) error {
	for ctx.Err() == nil {
		if err := s.watch(ctx, changed); err != nil && ctx.Err() == nil {
			s.Logger.Warn("following the settings again", slog.Any("error", err))
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

func (s *Store) watch(ctx context.Context, changed func(key string)) error {
	w, err := s.KV.WatchAll(ctx, jetstream.MetaOnly())
	if err != nil {
		return fmt.Errorf("watch the settings: %w", err)
	}
	defer func() { _ = w.Stop() }() // nothing depends on it any more
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, ok := <-w.Updates():
			if !ok {
				return errors.New("watch the settings: the watch has ended")
			}
			if entry != nil {
				changed(entry.Key())
			}
		}
	}
}
