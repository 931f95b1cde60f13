package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/schema"
)

const organizationPrefix = "organization."

// Organization is what one decided about its trails.
type Organization struct {
	Name string `json:"name"`
	// ExportsOff names the trails that are not exported (requirement I1).
	ExportsOff []schema.Trail `json:"exports_off,omitempty"`
	// ExportsPerDay is how many archives of a trail may be asked for on one day (requirement Z8).
	ExportsPerDay int `json:"exports_per_day"`
	// RetentionDays and RetentionBytes say for how long events are kept; whichever is reached first (requirements
	// Q11, Z4). Bytes are those of the CSV; 0 is no bound.
	RetentionDays  int   `json:"retention_days"`
	RetentionBytes int64 `json:"retention_bytes,omitempty"`
	// Hold keeps everything, whatever the retention says.
	Hold *Hold `json:"hold,omitempty"`
	Meta Meta  `json:"meta,omitzero"`
	// Problem is why the rules cannot be read, in a list and where people look at them: they are the defaults then,
	// nothing is removed, and saving them replaces what is stored.
	Problem string `json:"problem,omitempty"`
}

// Hold is a legal hold.
type Hold struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

// ShowOrganization returns the settings of one for people: one that cannot be read has a problem.
func (s *Store) ShowOrganization(ctx context.Context, name string) (*Organization, error) {
	o, err := s.Organization(ctx, name)
	if errors.Is(err, ErrUnreadable) {
		doc, _, _ := s.get(ctx, organizationPrefix+name) // its revision is there even then
		kept := s.defaults(name)
		kept.Name, kept.Meta, kept.Problem = name, Meta{Revision: doc.Revision}, err.Error()
		return &kept, nil
	}
	return o, err
}

// Organization returns the settings of one, or the defaults. It is for those who obey them: an error that answers to
// ErrUnreadable says that they are unknown.
func (s *Store) Organization(ctx context.Context, name string) (*Organization, error) {
	if f := schema.CheckOrganization(name); f != nil {
		return nil, f
	}
	doc, ok, err := s.get(ctx, organizationPrefix+name)
	if err != nil {
		return nil, err
	}
	o := s.defaults(name)
	if ok {
		if err := decode(doc.Value, &o); err != nil {
			return nil, fmt.Errorf("%w: rules of organization %s: %w", ErrUnreadable, name, err)
		}
		o.Meta = doc.Meta
	}
	o.Name = name
	return &o, nil
}

// Organizations lists those that decided something, with the problem of each that cannot be read.
func (s *Store) Organizations(ctx context.Context) ([]Organization, error) {
	keys, err := s.KV.ListKeysFiltered(ctx, organizationPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("list organizations: %w", err)
	}
	var all []Organization
	for key := range keys.Keys() {
		o, err := s.ShowOrganization(ctx, strings.TrimPrefix(key, organizationPrefix))
		if err != nil {
			return nil, err
		}
		all = append(all, *o)
	}
	slices.SortFunc(all, func(a, b Organization) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Rules are those for exports. It is an exporter.Settings.
func (s *Store) Rules(ctx context.Context, organization string) (exporter.Rules, error) {
	o, err := s.Organization(ctx, organization)
	if err != nil {
		return exporter.Rules{}, err
	}
	return exporter.Rules{Off: o.ExportsOff, PerDay: o.ExportsPerDay}, nil
}

// SaveOrganization checks o and keeps it in place of the revision in o.Meta.
func (s *Store) SaveOrganization(ctx context.Context, o Organization, by string) (*Organization, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Problem = ""
	before, err := s.ShowOrganization(ctx, o.Name)
	if err != nil {
		return nil, err
	}
	if o.Meta.Revision != before.Meta.Revision {
		return nil, fmt.Errorf("%w: organization %s: look at it again, and repeat what you want", ErrChanged, o.Name)
	}
	now := s.now()
	if o.Hold != nil {
		if before.Hold != nil {
			o.Hold.Since, o.Hold.By = before.Hold.Since, before.Hold.By
		} else {
			o.Hold.Since, o.Hold.By = now, by
		}
	}
	doc := document{Meta: Meta{Revision: before.Meta.Revision, Created: before.Meta.Created, Updated: now, By: by}}
	if doc.Created.IsZero() {
		doc.Created = now
	}
	value := o
	value.Meta = Meta{}
	if doc.Value, err = encode(value); err != nil {
		return nil, err
	}
	if err := s.put(ctx, organizationPrefix+o.Name, &doc); err != nil {
		return nil, err
	}
	was := *before
	was.Meta = Meta{}
	s.tell(ctx, "organization", "update", o.Name, o.Name, by, was, value)
	o.Meta = doc.Meta
	return &o, nil
}

func (o *Organization) check() error {
	var faults []error
	fault := func(field string, value any, problem, remedy string) {
		faults = append(faults, &schema.Fault{Field: field, Value: fmt.Sprint(value), Problem: problem, Remedy: remedy})
	}
	if f := schema.CheckOrganization(o.Name); f != nil {
		faults = append(faults, f)
	}
	for _, t := range o.ExportsOff {
		if f := schema.CheckTrail(t); f != nil {
			faults = append(faults, f)
		}
	}
	if o.ExportsPerDay < 0 || o.ExportsPerDay > 1000 {
		fault("exports_per_day", o.ExportsPerDay, "is out of bounds", "give 0 to 1000")
	}
	if o.RetentionDays < 1 || o.RetentionDays > 36500 {
		fault("retention_days", o.RetentionDays, "is out of bounds", "give 1 to 36500")
	}
	if o.RetentionBytes < 0 {
		fault("retention_bytes", o.RetentionBytes, "is negative", "give 0 for no bound")
	}
	if o.Hold != nil && strings.TrimSpace(o.Hold.Reason) == "" {
		fault("hold.reason", "", "is empty", "say why everything is to be kept; the trail repeats it")
	}
	return errors.Join(faults...)
}

func encode(v any) (json.RawMessage, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a setting: %w", err)
	}
	return data, nil
}

// remove deletes a key if it has still a revision.
func (s *Store) remove(ctx context.Context, key string, revision uint64) error {
	return s.KV.Delete(ctx, key, jetstream.LastRevision(revision))
}
