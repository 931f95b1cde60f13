package settings

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Retention is for how long the events of an organization are kept.
type Retention struct {
	Days int  `json:"days"`
	Held bool `json:"held,omitempty"`
}

// Retentions are those of all organizations, kept up to date for those who need one for every message.
type Retentions struct {
	store *Store
	mu    sync.RWMutex
	of    map[string]Retention
}

// Retentions reads what is decided. Follow keeps it up to date.
func (s *Store) Retentions(ctx context.Context) (*Retentions, error) {
	all, err := s.Organizations(ctx)
	if err != nil {
		return nil, err
	}
	r := &Retentions{store: s, of: map[string]Retention{}}
	for i := range all {
		r.of[all[i].Name] = all[i].Retention()
	}
	return r, nil
}

// Retention is for how long events are kept. That of an organization whose rules cannot be read holds everything: it may be
// under a legal hold.
func (o *Organization) Retention() Retention {
	return Retention{o.RetentionDays, o.Hold != nil || o.Problem != ""}
}

// Of is the retention of an organization.
func (r *Retentions) Of(organization string) Retention {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if own, ok := r.of[organization]; ok {
		return own
	}
	return Retention{Days: r.store.defaults(organization).RetentionDays}
}

// Expires is when an event that is recorded now may be removed.
func (r *Retentions) Expires(organization string, recordedAt time.Time) time.Time {
	of := r.Of(organization)
	if of.Held {
		return schema.Forever
	}
	return schema.Expires(recordedAt, of.Days)
}

// Follow keeps r up to date until ctx ends.
func (r *Retentions) Follow(ctx context.Context) error {
	return r.store.FollowOrganizations(ctx, func(name string) {
		o, err := r.store.ShowOrganization(ctx, name)
		if err != nil {
			r.store.Logger.Warn("retention of an organization not read; the next change or start does", slog.Any("error", err))
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.of[name] = o.Retention()
	})
}

// FollowOrganizations calls changed with each organization that has rules, and again whenever its rules change, until ctx
// ends.
func (s *Store) FollowOrganizations(ctx context.Context, changed func(name string)) error {
	return s.Follow(ctx, func(key string) {
		if name, ok := strings.CutPrefix(key, organizationPrefix); ok {
			changed(name)
		}
	})
}

const appliedPrefix = "applied."

// Applied is the retention that the stored rows of an organization have, zero if none was set since they were written.
func (s *Store) Applied(ctx context.Context, organization string) (r Retention, revision uint64, err error) {
	doc, ok, err := s.get(ctx, appliedPrefix+organization)
	if err != nil || !ok {
		return r, 0, err
	}
	return r, doc.Revision, decode(doc.Value, &r)
}

// SetApplied keeps what the stored rows have now.
func (s *Store) SetApplied(ctx context.Context, organization string, r Retention, revision uint64) error {
	value, err := encode(r)
	if err != nil {
		return err
	}
	now := s.now()
	return s.put(ctx, appliedPrefix+organization, &document{Value: value, Meta: Meta{Revision: revision, Created: now, Updated: now}})
}
