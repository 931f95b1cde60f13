package settings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/schema"
)

// DestinationPrefix is that of the keys of destinations; organization and name follow, with a dot between.
const DestinationPrefix = "destination."

func destinationKey(organization, name string) string {
	return DestinationPrefix + organization + "." + name
}

// Destination is one as people see it: without its secrets.
type Destination struct {
	exporter.Destination
	Meta Meta `json:"meta"`
	// Problem is why it cannot be read, if so it is: only its name and its revision are known then. It delivers
	// nothing, and can be removed.
	Problem string `json:"problem,omitempty"`
}

// Change says who changes a setting, and what he saw.
type Change struct {
	By string `json:"by"`
	// Revision is the one that is replaced; zero for what is to be new.
	Revision uint64 `json:"revision"`
	managed  bool
}

// Destination returns one with its secrets, for those who deliver. It is an exporter.Settings.
func (s *Store) Destination(ctx context.Context, organization, name string) (exporter.Destination, error) {
	doc, ok, err := s.get(ctx, destinationKey(organization, name))
	if err != nil {
		return exporter.Destination{}, err
	}
	if !ok {
		return exporter.Destination{}, noDestination(organization, name)
	}
	return s.open(&doc)
}

func noDestination(organization, name string) error {
	return fmt.Errorf("%w: %s of %s: see kansa destination list", exporter.ErrNoDestination, name, organization)
}

func (s *Store) open(doc *document) (exporter.Destination, error) {
	var d exporter.Destination
	if err := decode(doc.Value, &d); err != nil {
		return d, fmt.Errorf("%w: destination: %w", ErrUnreadable, err)
	}
	d.FromFile = doc.Managed
	for field, secret := range d.Secrets() {
		sealed, ok := doc.Secrets[field]
		if !ok {
			continue
		}
		var err error
		if *secret, err = s.Box.Open(place(&d, field), sealed); err != nil {
			return d, err
		}
	}
	return d, nil
}

// place binds a secret to the field it is of and to the server it is for.
func place(d *exporter.Destination, field string) string {
	return strings.Join([]string{d.Organization, d.Name, field, d.Place()}, "\x00")
}

// ShowDestination returns one without its secrets.
func (s *Store) ShowDestination(ctx context.Context, organization, name string) (*Destination, error) {
	doc, ok, err := s.get(ctx, destinationKey(organization, name))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, noDestination(organization, name)
	}
	return show(&doc)
}

func show(doc *document) (*Destination, error) {
	d := Destination{Meta: doc.Meta}
	if err := decode(doc.Value, &d.Destination); err != nil {
		return nil, fmt.Errorf("%w: destination: %w", ErrUnreadable, err)
	}
	d.FromFile = doc.Managed
	for field, secret := range d.Secrets() {
		if _, ok := doc.Secrets[field]; ok {
			*secret = exporter.Hidden
		}
	}
	return &d, nil
}

// Destinations lists those of an organization, or of all if it is empty, by name and without their secrets. One that
// cannot be read is listed with its problem: it does not hide the others.
func (s *Store) Destinations(ctx context.Context, organization string) ([]Destination, error) {
	filter := DestinationPrefix + ">"
	if organization != "" {
		filter = DestinationPrefix + organization + ".*"
	}
	keys, err := s.KV.ListKeysFiltered(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("list destinations: %w", err)
	}
	var all []Destination
	for key := range keys.Keys() {
		doc, ok, err := s.get(ctx, key)
		if err == nil && !ok {
			continue
		}
		var d *Destination
		if err == nil {
			d, err = show(&doc)
		}
		if errors.Is(err, ErrUnreadable) {
			d, err = &Destination{Meta: doc.Meta, Problem: err.Error()}, nil
			d.Organization, d.Name, _ = strings.Cut(strings.TrimPrefix(key, DestinationPrefix), ".")
		}
		if err != nil {
			return nil, err
		}
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b Destination) int {
		return strings.Compare(a.Organization+"\x00"+a.Name, b.Organization+"\x00"+b.Name)
	})
	return all, nil
}

// Complete gives d the secrets that it leaves hidden, from what is kept. They stay with the server they were given
// for: who sends archives elsewhere has to know them.
func (s *Store) Complete(ctx context.Context, d *exporter.Destination) error {
	var kept *exporter.Destination
	for field, secret := range d.Secrets() {
		if *secret != exporter.Hidden {
			continue
		}
		if kept == nil {
			old, err := s.Destination(ctx, d.Organization, d.Name)
			if err != nil && !errors.Is(err, exporter.ErrNoDestination) {
				return err
			}
			kept = &old
		}
		had := kept.Secrets()[field]
		switch {
		case had == nil || *had == "":
			return &schema.Fault{Field: field, Value: exporter.Hidden, Problem: "stands for a secret that is kept, and there is none", Remedy: "give it"}
		case kept.Place() != d.Place():
			return &schema.Fault{Field: field, Problem: fmt.Sprintf("was given for %s, and now it is for %s", kept.Place(), d.Place()), Remedy: "give it again"}
		}
		*secret = *had
	}
	return nil
}

// SaveDestination checks d and keeps it.
func (s *Store) SaveDestination(ctx context.Context, d exporter.Destination, c Change) (*Destination, error) {
	if d.SFTP != nil { // the secrets are taken out of a copy
		server := *d.SFTP
		d.SFTP = &server
	}
	if err := s.Complete(ctx, &d); err != nil {
		return nil, err
	}
	if err := d.Normalize(); err != nil {
		return nil, err
	}
	if d.FromFile = c.managed; !c.managed {
		if err := s.CheckDestination(&d); err != nil {
			return nil, err
		}
	}
	key := destinationKey(d.Organization, d.Name)
	doc, there, err := s.get(ctx, key)
	var old *Destination
	if err == nil && there {
		old, err = show(&doc)
	}
	switch {
	case errors.Is(err, ErrUnreadable) && c.managed: // the file says what it is to be
	case errors.Is(err, ErrUnreadable):
		return nil, fmt.Errorf("destination %s of %s: %w: remove it with kansa destination remove, and add it again", d.Name, d.Organization, err)
	case err != nil:
		return nil, err
	}
	switch {
	case there && c.Revision == 0:
		return nil, fmt.Errorf("%w: destination %s of %s is there already: change it with kansa destination edit", ErrChanged, d.Name, d.Organization)
	case there && doc.Revision != c.Revision, !there && c.Revision != 0:
		return nil, fmt.Errorf("%w: destination %s of %s: look at it again, and repeat what you want", ErrChanged, d.Name, d.Organization)
	case there && doc.Managed && !c.managed:
		return nil, fmt.Errorf("destination %s of %s is that of the configuration file: change it there", d.Name, d.Organization)
	}
	var before any
	if old != nil {
		before = old.Destination
	}
	doc.Secrets = map[string]string{}
	for field, secret := range d.Secrets() {
		if *secret != "" {
			doc.Secrets[field] = s.Box.Seal(place(&d, field), *secret)
			*secret = ""
		}
	}
	if doc.Value, err = encode(d); err != nil {
		return nil, err
	}
	now := s.now()
	if doc.Created.IsZero() {
		doc.Created = now
	}
	doc.Updated, doc.By, doc.Managed = now, c.By, c.managed
	if err := s.put(ctx, key, &doc); err != nil {
		return nil, err
	}
	saved, err := show(&doc)
	if err != nil {
		return nil, err
	}
	action := "create"
	if there {
		action = "update"
	}
	s.tell(ctx, "destination", action, d.Organization+"/"+d.Name, d.Organization, c.By, before, saved.Destination)
	return saved, nil
}

// fastest is how often a schedule may be due.
const fastest = time.Minute

// CheckDestination refuses a destination that people may not save. It has been normalized.
func (s *Store) CheckDestination(d *exporter.Destination) error {
	return errors.Join(d.CheckTenant(s.Reach), s.checkSchedule(d.Schedule))
}

// checkSchedule refuses a schedule that would be due for hours that there are not, or all the time.
func (s *Store) checkSchedule(schedule *exporter.Schedule) error {
	if schedule == nil {
		return nil
	}
	if s.Hour > 0 && schedule.Period%s.Hour != 0 {
		return &schema.Fault{Field: "schedule.period", Value: schedule.Period.String(), Problem: "is not a multiple of an hour of the rollup", Remedy: "give a multiple of " + s.Hour.String()}
	}
	often := min(fastest, s.Hour)
	now := s.now()
	next, err := schedule.Next(now)
	if err != nil {
		return err
	}
	after, err := schedule.Next(next)
	if err != nil {
		return err
	}
	if after.Sub(next) < often {
		return &schema.Fault{Field: "schedule", Problem: "is due every " + after.Sub(next).String(), Remedy: "give one that is due every " + often.String() + " at most"}
	}
	return nil
}

// RemoveDestination forgets one, with its secrets.
func (s *Store) RemoveDestination(ctx context.Context, organization, name string, c Change) error {
	key := destinationKey(organization, name)
	doc, there, err := s.get(ctx, key)
	if err == nil && !there {
		return noDestination(organization, name)
	}
	var old *Destination
	if err == nil {
		old, err = show(&doc)
	}
	if errors.Is(err, ErrUnreadable) { // it can be removed, by name
		old, err = &Destination{Destination: exporter.Destination{Organization: organization, Name: name}, Meta: doc.Meta}, nil
	}
	if err != nil {
		return err
	}
	if old.Meta.Managed && !c.managed {
		return fmt.Errorf("destination %s of %s is that of the configuration file: remove it there", name, organization)
	}
	if c.Revision == 0 {
		c.Revision = old.Meta.Revision
	}
	if err := changed(s.remove(ctx, key, c.Revision), "remove", key); err != nil {
		return err
	}
	s.tell(ctx, "destination", "delete", organization+"/"+name, organization, c.By, old.Destination, nil)
	return nil
}

// Provision makes the destinations of the configuration file those that are managed by it, and removes managed ones
// that it has no more.
func (s *Store) Provision(ctx context.Context, file []exporter.Destination) error {
	const by = "configuration file"
	wanted := map[string]bool{}
	for i := range file {
		d := file[i]
		if err := d.Normalize(); err != nil {
			return err
		}
		wanted[destinationKey(d.Organization, d.Name)] = true
		if err := s.provision(ctx, d, Change{By: by, managed: true}); err != nil {
			return err
		}
	}
	kept, err := s.Destinations(ctx, "")
	if err != nil {
		return err
	}
	for _, k := range kept {
		if k.Meta.Managed && !wanted[destinationKey(k.Organization, k.Name)] {
			err := s.RemoveDestination(ctx, k.Organization, k.Name, Change{By: by, managed: true})
			if err != nil && !errors.Is(err, exporter.ErrNoDestination) && !errors.Is(err, ErrChanged) {
				return err
			}
		}
	}
	return nil
}

// provisionTries bounds how often a destination of the file is looked at again because another process changed it.
const provisionTries = 5

// provision makes one destination what the file says. Of several processes that start at once, one is first; the
// others find it made.
func (s *Store) provision(ctx context.Context, d exporter.Destination, c Change) (err error) {
	for range provisionTries {
		var have *Destination
		have, err = s.ShowDestination(ctx, d.Organization, d.Name)
		switch {
		case errors.Is(err, exporter.ErrNoDestination):
			c.Revision = 0
		case errors.Is(err, ErrUnreadable):
			doc, _, _ := s.get(ctx, destinationKey(d.Organization, d.Name)) // its revision is there even then
			c.Revision = doc.Revision
		case err != nil:
			return err
		case !have.Meta.Managed:
			return fmt.Errorf("destination %s of %s is in the configuration file, and there is one that was made without: rename one of the two", d.Name, d.Organization)
		default:
			// Whether it is paused is not the file's to say.
			d.Paused = have.Paused
			if s.equal(ctx, &d) {
				return nil
			}
			c.Revision = have.Meta.Revision
		}
		if _, err = s.SaveDestination(ctx, d, c); !errors.Is(err, ErrChanged) {
			return err
		}
	}
	return fmt.Errorf("keep destination %s of %s of the configuration file: %w", d.Name, d.Organization, err)
}

// equal tells whether d is what is kept, secrets included.
func (s *Store) equal(ctx context.Context, d *exporter.Destination) bool {
	have, err := s.Destination(ctx, d.Organization, d.Name)
	if err != nil {
		return false
	}
	a, errA := encode(have)
	b, errB := encode(*d)
	return errA == nil && errB == nil && string(a) == string(b)
}

// PauseDestination holds one back or lets it go on. That is allowed for those of the configuration file, too.
func (s *Store) PauseDestination(ctx context.Context, organization, name, by string, paused bool) (*Destination, error) {
	d, err := s.Destination(ctx, organization, name)
	if err != nil {
		return nil, err
	}
	old, err := s.ShowDestination(ctx, organization, name)
	if err != nil {
		return nil, err
	}
	if d.Paused == paused {
		return old, nil
	}
	d.Paused = paused
	return s.SaveDestination(ctx, d, Change{By: by, Revision: old.Meta.Revision, managed: old.Meta.Managed})
}
