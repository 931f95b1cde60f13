package settings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrKeptOn means that a trail can not be switched off.
var ErrKeptOn = errors.New("the trail can not be switched off")

// Trails is what an organization records (requirement Z1). It is not a document of this store: that is one which
// publishers and consumers read as well, in a bucket of its own: schema.Recording.
type Trails struct {
	Organization string `json:"organization"`
	// HIPAA holds every trail on (requirement Z3).
	HIPAA    bool  `json:"hipaa"`
	Activity Trail `json:"activity"`
	Access   Trail `json:"access"`
	// Revision is zero if nothing was ever switched.
	Revision uint64    `json:"revision"`
	Updated  time.Time `json:"updated,omitzero"`
	By       string    `json:"by,omitempty"`
	// Problem is why its switches cannot be read, in a list; they are as without a decision then.
	Problem string `json:"problem,omitempty"`
}

// Trail is the switch of one, and when it was off.
type Trail struct {
	On bool `json:"on"`
	// Gaps are the intervals in which it was off, the last one without an end while it is.
	Gaps []schema.RecordingGap `json:"gaps" nullable:"false"`
}

// Of is the one of a name.
func (t *Trails) Of(trail schema.Trail) *Trail {
	if trail == schema.Access {
		return &t.Access
	}
	return &t.Activity
}

// SwitchTrails says what is to be switched. What is nil stays.
type SwitchTrails struct {
	// HIPAA switches every trail on and holds them on.
	HIPAA    *bool `json:"hipaa,omitempty"`
	Activity *bool `json:"activity,omitempty"`
	Access   *bool `json:"access,omitempty"`
	// Reason has to be given for switching off.
	Reason string `json:"reason,omitempty"`
}

// Set says it of a trail.
func (s *SwitchTrails) Set(trail schema.Trail, on bool) {
	if trail == schema.Access {
		s.Access = &on
	} else {
		s.Activity = &on
	}
}

func (s *SwitchTrails) wants() map[schema.Trail]*bool {
	return map[schema.Trail]*bool{schema.Activity: s.Activity, schema.Access: s.Access}
}

const (
	longestReason = 500
	// An organization's document has to stay small. Of a switch that was turned so often, the oldest gaps are let go once
	// they are older than turnsKept: by then the manifests state them.
	mostTurns = 1000
	turnsKept = 60 * 24 * time.Hour
)

// recording reads the document of an organization, or what holds without one.
func (s *Store) recording(ctx context.Context, organization string) (*schema.Recording, *Trails, error) {
	if f := schema.CheckOrganization(organization); f != nil {
		return nil, nil, f
	}
	entry, err := s.Trails.Get(ctx, organization)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		r, err := schema.ParseRecording(nil, time.Time{})
		if err != nil {
			return nil, nil, err
		}
		r.HIPAA = s.HIPAA
		return r, shown(organization, r), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the switches of the trails of %s: %w", organization, err)
	}
	r, err := schema.ParseRecording(entry.Value(), entry.Created())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: switches of the trails of %s: %w", ErrUnreadable, organization, err)
	}
	t := shown(organization, r)
	t.Revision, t.Updated = entry.Revision(), entry.Created().UTC()
	return r, t, nil
}

func shown(organization string, r *schema.Recording) *Trails {
	t := &Trails{Organization: organization, HIPAA: r.HIPAA, By: r.By}
	for _, trail := range schema.Trails {
		*t.Of(trail) = Trail{On: r.On(trail), Gaps: append([]schema.RecordingGap{}, r.Gaps(trail)...)}
	}
	return t
}

// ShowTrails returns what an organization records.
func (s *Store) ShowTrails(ctx context.Context, organization string) (*Trails, error) {
	_, t, err := s.recording(ctx, organization)
	return t, err
}

// ListTrails lists the organizations that ever switched something.
func (s *Store) ListTrails(ctx context.Context) ([]Trails, error) {
	keys, err := s.Trails.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the switches of the trails: %w", err)
	}
	all := []Trails{}
	for key := range keys.Keys() {
		t, err := s.ShowTrails(ctx, key)
		if errors.Is(err, ErrUnreadable) {
			t, err = &Trails{Organization: key, Problem: err.Error()}, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b Trails) int { return strings.Compare(a.Organization, b.Organization) })
	return all, nil
}

// states is what the own trail is told of a change.
type states struct {
	HIPAA    bool `json:"hipaa"`
	Activity bool `json:"activity"`
	Access   bool `json:"access"`
}

func statesOf(r *schema.Recording) states {
	return states{r.HIPAA, r.On(schema.Activity), r.On(schema.Access)}
}

// SwitchTrails turns switches of an organization, in place of the revision that was seen. A trail stops being recorded
// with the moment at which the broker stores that, and goes on schema.RecordingDelay after the one at which it stores
// that it is on again (requirement Z2).
func (s *Store) SwitchTrails(ctx context.Context, organization string, want SwitchTrails, c Change) (*Trails, error) {
	r, was, err := s.recording(ctx, organization)
	if err != nil {
		return nil, err
	}
	if c.Revision != was.Revision {
		return nil, fmt.Errorf("%w: the trails of %s: look at them again, and repeat what you want", ErrChanged, organization)
	}
	if err := want.check(organization, r, c.By); err != nil {
		return nil, err
	}
	before := statesOf(r)
	if want.HIPAA != nil {
		r.HIPAA = *want.HIPAA
	}
	for trail, on := range want.wants() {
		if r.HIPAA {
			always := true
			on = &always
		}
		if on == nil {
			continue
		}
		r.Turn(trail, *on, c.By, strings.TrimSpace(want.Reason))
		if err := forget(r, trail, s.now()); err != nil {
			return nil, err
		}
	}
	after := statesOf(r)
	if before == after {
		return was, nil
	}
	r.By = c.By
	data, err := r.Encode()
	if err != nil {
		return nil, err
	}
	revision, err := consumers.Replace(ctx, s.Trails, organization, data, was.Revision)
	if err != nil {
		return nil, changed(err, "keep", "trails of "+organization)
	}
	e := s.event("trails", "update", organization, organization, c.By, before, after)
	e.Description = strings.TrimSpace(want.Reason)
	if !before.Activity || !after.Activity { // then its own trail records nothing, at this moment at least
		e.Organization, e.Attributes = "", map[string]string{"organization": organization}
	}
	s.Record(ctx, e)
	for {
		t, err := s.ShowTrails(ctx, organization)
		if err != nil || t.Revision >= revision {
			return t, err
		}
		select { // a copy of the bucket may be a moment behind
		case <-ctx.Done():
			return nil, fmt.Errorf("read the switches of the trails of %s: %w", organization, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *SwitchTrails) check(organization string, r *schema.Recording, by string) error {
	hipaa := r.HIPAA
	if s.HIPAA != nil {
		hipaa = *s.HIPAA
	}
	for _, trail := range schema.Trails {
		on := s.wants()[trail]
		if on == nil || *on {
			continue
		}
		switch {
		case organization == owntrail.Organization:
			return fmt.Errorf("%w: %s of %s: it says what the system and its operators did", ErrKeptOn, trail, organization)
		case hipaa:
			return fmt.Errorf("%w: %s of %s: the organization is under HIPAA, which holds its trails on", ErrKeptOn, trail, organization)
		case r.On(trail) && strings.TrimSpace(s.Reason) == "":
			return &schema.Fault{Field: "reason", Problem: "is empty", Remedy: "say why " + string(trail) + " is not to be recorded; every archive of that time repeats it"}
		}
	}
	if len(s.Reason) > longestReason || !seal.Plain(strings.TrimSpace(s.Reason)) {
		return &schema.Fault{Field: "reason", Value: s.Reason, Problem: fmt.Sprintf("is no line of text of up to %d bytes", longestReason), Remedy: "leave out line breaks and control characters, and be brief"}
	}
	if by == "" || len(by) > longestReason || !seal.Plain(by) {
		return &schema.Fault{Field: "by", Value: by, Problem: "is no name that a manifest could state", Remedy: "use a name without control characters"}
	}
	return nil
}

// forget lets the oldest gaps of a trail go if there are too many.
func forget(r *schema.Recording, trail schema.Trail, now time.Time) error {
	turns := r.Turns[trail]
	for len(turns) > mostTurns && turns[1].At.Before(now.Add(-turnsKept)) { // they begin with one off, the next is one on
		turns = turns[2:]
	}
	if len(turns) > mostTurns {
		return &schema.Fault{
			Field: string(trail), Problem: fmt.Sprintf("was switched %d times within %d days", len(turns), turnsKept/(24*time.Hour)),
			Remedy: "leave it as it is for a while; whoever switches it so often does not want a switch",
		}
	}
	r.Turns[trail] = turns
	return nil
}
