// Package analyst keeps the accounts of analysts, who query ClickHouse with read-only SQL and see
// one organization or all.
//
// It owns their part of the bucket of users and keys, the verbs by which they are managed, and the
// SQL that makes them on a ClickHouse server. It keeps a hash of each password, never the password,
// and runs no query of theirs: the embedded engine or the server confines those.
package analyst

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/schema"
)

var (
	// ErrNone means that there is no analyst of a name.
	ErrNone = errors.New("there is no such analyst")
	// ErrTaken means that there is one already.
	ErrTaken = errors.New("an analyst with this name exists")
)

// Analyst is an account as people see it.
type Analyst struct {
	ID           string    `json:"id"` // of this account alone; a later one with the same name has another
	Name         string    `json:"name"`
	Organization string    `json:"organization,omitempty"` // empty is all
	Username     string    `json:"username"`               // in ClickHouse
	Created      time.Time `json:"created"`
	By           string    `json:"by"`
	Expires      time.Time `json:"expires"`
}

// Account is an analyst with the SHA-256 of the password, which has 256 random bits, so nothing
// slower is needed.
type Account struct {
	Analyst
	Digest []byte `json:"digest"`
}

// FullName is how the analyst is addressed: acme/ann, or ann for one of all organizations.
func (a *Analyst) FullName() string {
	if a.Organization == "" {
		return a.Name
	}
	return a.Organization + "/" + a.Name
}

// Store keeps accounts. It is safe for concurrent use.
type Store struct{ KV jetstream.KeyValue }

const (
	prefix = "analyst."
	// LongestDays bounds how long an account works.
	LongestDays = 3650
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// reserved are ClickHouse users that an analyst of all organizations would be taken for.
var reserved = []string{"default", "kansa"}

func key(organization, name string) string {
	if organization == "" {
		return prefix + "all." + name
	}
	return prefix + "of." + organization + "." + name
}

func check(a *Analyst, days int) error {
	var faults []error
	if !namePattern.MatchString(a.Name) || a.Organization == "" && slices.Contains(reserved, strings.ToLower(a.Name)) {
		faults = append(faults, &schema.Fault{Field: "name", Value: a.Name, Problem: "is not a name for an analyst", Remedy: "use 1 to 64 of A-Z a-z 0-9 _ -, a letter or digit first, and not default or kansa"})
	}
	if a.Organization != "" {
		if f := schema.CheckOrganization(a.Organization); f != nil {
			faults = append(faults, f)
		}
	}
	if days < 1 || days > LongestDays {
		faults = append(faults, &schema.Fault{Field: "days", Value: fmt.Sprint(days), Problem: "is out of range", Remedy: fmt.Sprintf("give 1 to %d", LongestDays)})
	}
	return errors.Join(faults...)
}

// Add makes an account and returns its password, which is kept nowhere.
func (s *Store) Add(ctx context.Context, organization, name, by string, days int) (*Account, string, error) {
	now := time.Now().UTC().Truncate(time.Second)
	a := &Account{Analyst: Analyst{ID: uuid.NewString(), Name: name, Organization: organization, Username: name, Created: now, By: by, Expires: now.AddDate(0, 0, days)}}
	if organization != "" {
		a.Username = organization + "." + name
	}
	if err := check(&a.Analyst, days); err != nil {
		return nil, "", err
	}
	password := rand.Text() + rand.Text()
	digest := sha256.Sum256([]byte(password))
	a.Digest = digest[:]
	data, err := json.Marshal(a)
	if err != nil {
		return nil, "", fmt.Errorf("keep analyst %s: %w", a.FullName(), err)
	}
	_, err = s.KV.Create(ctx, key(organization, name), data)
	if errors.Is(consumers.Replaced(err), consumers.ErrReplaced) {
		return nil, "", fmt.Errorf("%w: %s: remove it first, or choose another name", ErrTaken, a.FullName())
	}
	if err != nil {
		return nil, "", fmt.Errorf("keep analyst %s: %w", a.FullName(), err)
	}
	return a, password, nil
}

// Get returns an account, or ErrNone.
func (s *Store) Get(ctx context.Context, organization, name string) (*Account, error) {
	a := &Account{}
	if err := check(&Analyst{Organization: organization, Name: name}, 1); err != nil {
		return nil, err
	}
	entry, err := s.KV.Get(ctx, key(organization, name))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNone, (&Analyst{Organization: organization, Name: name}).FullName())
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), a)
	}
	if err != nil {
		return nil, fmt.Errorf("look up an analyst: %w", err)
	}
	return a, nil
}

// Remove forgets an account. When it returns, the account is gone from the bucket; Follow ends what
// it runs.
func (s *Store) Remove(ctx context.Context, a *Account) error {
	if err := s.KV.Delete(ctx, key(a.Organization, a.Name)); err != nil {
		return fmt.Errorf("remove analyst %s: %w", a.FullName(), err)
	}
	return nil
}

// List returns the analysts of an organization, or all, by organization and name.
func (s *Store) List(ctx context.Context, organization string) ([]Account, error) {
	filter := prefix + ">"
	if organization != "" {
		filter = prefix + "of." + organization + ".>"
	}
	w, err := s.KV.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("list analysts: %w", err)
	}
	defer func() { _ = w.Stop() }() // nothing depends on it any more
	all := map[string]Account{}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list analysts: %w", ctx.Err())
		case entry, ok := <-w.Updates():
			switch {
			case !ok:
				return nil, errors.New("list analysts: the watch has ended")
			case entry == nil:
				return sorted(all), nil
			}
			if err := update(all, entry); err != nil {
				return nil, err
			}
		}
	}
}

// Follow calls changed with all accounts: at first, and after each change, until ctx ends or
// something fails.
func (s *Store) Follow(ctx context.Context, changed func([]Account) error) error {
	w, err := s.KV.Watch(ctx, prefix+">")
	if err != nil {
		return fmt.Errorf("follow the analysts: %w", err)
	}
	defer func() { _ = w.Stop() }() // nothing depends on it any more
	all, complete := map[string]Account{}, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, ok := <-w.Updates():
			switch {
			case !ok:
				return errors.New("follow the analysts: the watch has ended")
			case entry == nil:
				complete = true
			default:
				if err := update(all, entry); err != nil {
					return err
				}
			}
			if complete {
				if err := changed(sorted(all)); err != nil {
					return err
				}
			}
		}
	}
}

func update(all map[string]Account, entry jetstream.KeyValueEntry) error {
	if entry.Operation() != jetstream.KeyValuePut {
		delete(all, entry.Key())
		return nil
	}
	var a Account
	if err := json.Unmarshal(entry.Value(), &a); err != nil {
		return fmt.Errorf("read analyst %s: %w", entry.Key(), err)
	}
	all[entry.Key()] = a
	return nil
}

func sorted(all map[string]Account) []Account {
	list := make([]Account, 0, len(all))
	for _, a := range all {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b Account) int { return strings.Compare(a.FullName(), b.FullName()) })
	return list
}
