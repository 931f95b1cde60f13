package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Vouched is somebody whom an OpenID provider vouches for.
type Vouched struct {
	Issuer, Subject string
	Name            string
	// Role and Organization are what his groups give him; without a role he keeps what he has.
	Role         Role
	Organization string
	// Create makes him if he is not known; he needs a role then.
	Create bool
}

// SignInVouched begins a session of somebody whom a provider vouches for. Only who signs in by OpenID may: nobody comes by the name of one who
// has a password, nor by one that was somebody else's at the provider. Beside ErrUnknown stands whose name it was, as with SignIn.
func (s *Store) SignInVouched(ctx context.Context, v *Vouched) (token string, p *Principal, err error) {
	if !namePattern.MatchString(v.Name) {
		return "", nil, fmt.Errorf("%w: %.64q is no name of a user", ErrUnknown, v.Name)
	}
	for {
		u, p, err := s.vouch(ctx, v)
		if errors.Is(err, errMoved) {
			continue // the user was changed meanwhile
		}
		if err != nil {
			return "", p, err
		}
		return s.begin(ctx, u)
	}
}

// vouch finds, makes or changes the user.
func (s *Store) vouch(ctx context.Context, v *Vouched) (*keptUser, *Principal, error) {
	u, revision, err := s.user(ctx, v.Name)
	there := err == nil
	switch {
	case errors.Is(err, ErrNone) && v.Create && v.Role != "":
		u = keptUser{User: User{ID: newID(), Name: v.Name, SignIn: OpenID, Created: s.now(), By: "openid"}}
	case errors.Is(err, ErrNone):
		return nil, nil, fmt.Errorf("%w: there is no user of this name", ErrUnknown)
	case err != nil:
		return nil, nil, err
	case u.SignIn != OpenID:
		return nil, u.principal(), fmt.Errorf("%w: the user signs in by password", ErrUnknown)
	case u.Subject != "" && (u.Subject != v.Subject || u.Issuer != v.Issuer):
		return nil, u.principal(), fmt.Errorf("%w: the name belonged to another person at the provider: remove the user to give it to this one", ErrUnknown)
	}
	was := u
	u.Issuer, u.Subject = v.Issuer, v.Subject
	if v.Role != "" {
		u.Role, u.Organization = v.Role, v.Organization
	}
	if err := check(u.Name, u.Organization, u.Role); err != nil {
		return nil, nil, err
	}
	if there && changed(&was.User, &u.User) {
		u.Generation++ // sessions with the former role end
	}
	switch {
	case !there:
		if err = s.create(ctx, prefixUser+u.Name, u); errors.Is(err, ErrTaken) {
			err = errMoved
		}
	case was.Subject != u.Subject || was.User != u.User:
		_, err = s.update(ctx, prefixUser+u.Name, u, revision)
	}
	return &u, nil, err
}

const prefixPending = "pending."

type pending struct {
	Expires time.Time       `json:"expires"`
	Value   json.RawMessage `json:"value"`
}

// Keep keeps, for a while, what a sign-in that has begun will be held against; it is found by a secret.
func (s *Store) Keep(ctx context.Context, secret string, value any, ttl time.Duration) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("keep a sign-in: %w", err)
	}
	if err := s.forgetPending(ctx); err != nil {
		return err
	}
	return s.create(ctx, prefixPending+hash(secret), pending{s.now().Add(ttl), data})
}

// Take returns what was kept, once.
func (s *Store) Take(ctx context.Context, secret string, to any) error {
	key := prefixPending + hash(secret)
	entry, err := s.KV.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return ErrUnknown
	}
	if err != nil {
		return fmt.Errorf("look up a sign-in: %w", err)
	}
	// Of two who take it, one succeeds.
	if err := s.KV.Purge(ctx, key, jetstream.LastRevision(entry.Revision())); err != nil {
		return fmt.Errorf("%w: it was taken meanwhile: %w", ErrUnknown, err)
	}
	var p pending
	if err := json.Unmarshal(entry.Value(), &p); err != nil {
		return fmt.Errorf("read a sign-in: %w", err)
	}
	if !s.now().Before(p.Expires) {
		return ErrUnknown
	}
	return json.Unmarshal(p.Value, to)
}

// forgetPending removes those that were never finished.
func (s *Store) forgetPending(ctx context.Context) error {
	keys, err := s.KV.ListKeysFiltered(ctx, prefixPending+"*")
	if err != nil {
		return fmt.Errorf("list the sign-ins: %w", err)
	}
	var all []string
	for k := range keys.Keys() {
		all = append(all, k)
	}
	for _, k := range all {
		var p pending
		if err := s.read(ctx, k, &p); err == nil && s.now().After(p.Expires) {
			_ = s.KV.Purge(ctx, k) // another may have
		}
	}
	return nil
}
