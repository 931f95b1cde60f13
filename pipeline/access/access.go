// Package access knows who may do what: users with passwords, API keys, sessions of browsers, and the roles they
// have in an organization or in all.
//
// It owns the bucket of users, keys and sessions. It keeps no password and no key, only what they are recognized by,
// and it opens nothing: it says who somebody is, and others ask before they answer.
package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/argon2"

	"github.com/kansa-audit/kansa/schema"
)

// Role is what somebody may do (requirement Q10).
type Role string

// The roles. An admin may do what an auditor may, too; neither may publish.
const (
	Publisher Role = "publisher" // publish events
	Auditor   Role = "auditor"   // read and export
	Admin     Role = "admin"     // and change settings, users and keys
)

// Roles lists them.
var Roles = []Role{Publisher, Auditor, Admin}

// Who can't be let in. Which of them it is is told to the log and the trail, not to who asks.
var (
	ErrUnknown   = errors.New("sign-in failed: user and password, or the key, are not known")
	ErrForbidden = errors.New("not allowed")
	ErrTaken     = errors.New("the name is taken")
	ErrNone      = errors.New("there is none of this name")
)

// Principal is who asks.
type Principal struct {
	// Kind is user or key.
	Kind string `json:"kind"`
	// ID is the name of the user or of the key.
	ID   string `json:"id"`
	Role Role   `json:"role"`
	// Organization is the one it may act for; empty is the operator's: all of them.
	Organization string `json:"organization,omitempty"`
	// Until is when a key expires.
	Until time.Time `json:"-"`
}

// May says whether p may act in a role for an organization.
func (p *Principal) May(role Role, organization string) error {
	switch {
	case p.Organization != "" && p.Organization != organization:
		return fmt.Errorf("%w: %s is of organization %s", ErrForbidden, p.ID, p.Organization)
	case p.Role == role, p.Role == Admin && role == Auditor:
		return nil
	}
	return fmt.Errorf("%w: it takes the role %s, and %s has %s", ErrForbidden, role, p.ID, p.Role)
}

// Store keeps users, keys and sessions. Now and the lifetimes have defaults.
type Store struct {
	KV  jetstream.KeyValue
	Now func() time.Time
	// SessionTTL is how long a sign-in of a browser lasts; default 12 hours.
	SessionTTL time.Duration
}

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now().UTC()
	}
	return time.Now().UTC()
}

// Key is an API key as people see it.
type Key struct {
	Name         string    `json:"name"`
	Organization string    `json:"organization,omitempty"`
	Role         Role      `json:"role"`
	Created      time.Time `json:"created"`
	By           string    `json:"by"`
	Expires      time.Time `json:"expires"`
}

// User is one as people see it.
type User struct {
	Name         string    `json:"name"`
	Organization string    `json:"organization,omitempty"`
	Role         Role      `json:"role"`
	Created      time.Time `json:"created"`
	By           string    `json:"by"`
	// SignIn is how he signs in: by password, or openid. Neither opens to who has the other.
	SignIn SignIn `json:"sign_in,omitempty" enum:"password,openid" doc:"By password if left out; openid needs api.oidc"`
}

// SignIn is a way to sign in.
type SignIn string

// The ways. The zero value is Password.
const (
	Password SignIn = "password"
	OpenID   SignIn = "openid"
)

type keptKey struct {
	Key
	Hash string `json:"hash"` // SHA-256 of the secret, in hex: it has 256 random bits, so that nothing slower is needed
}

type keptUser struct {
	User
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"` // argon2id
	// Issuer and Subject are what the OpenID provider knows him by, from his first sign-in on: his name there may become another's.
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
}

type session struct {
	Principal
	Expires time.Time `json:"expires"`
}

const (
	prefixKey     = "key."
	prefixUser    = "user."
	prefixSession = "session."
	keyFirst      = "first"

	keyStart = "kansa_" // how a secret of a key begins, so that it is recognized where it was left lying
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

func check(name, organization string, role Role) error {
	var faults []error
	if !namePattern.MatchString(name) {
		faults = append(faults, &schema.Fault{Field: "name", Value: name, Problem: "is no name", Remedy: "use 1 to 64 of A-Z a-z 0-9 _ -, a letter or digit first"})
	}
	if organization != "" {
		if f := schema.CheckOrganization(organization); f != nil {
			faults = append(faults, f)
		}
	}
	if f := schema.CheckReserved(organization, ""); f != nil && role == Publisher {
		faults = append(faults, f)
	}
	if !slices.Contains(Roles, role) {
		faults = append(faults, &schema.Fault{Field: "role", Value: string(role), Problem: "is none", Remedy: "use publisher, auditor or admin"})
	}
	return errors.Join(faults...)
}

func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CreateKey makes a key, says when in k, and returns its secret, which nobody is shown again.
func (s *Store) CreateKey(ctx context.Context, k *Key) (secret string, err error) {
	if err := check(k.Name, k.Organization, k.Role); err != nil {
		return "", err
	}
	if !k.Expires.After(s.now()) {
		return "", &schema.Fault{Field: "expires", Value: k.Expires.Format(time.RFC3339), Problem: "is past", Remedy: "give a time to come"}
	}
	k.Created = s.now()
	secret = keyStart + random()
	kept := keptKey{*k, hash(secret)}
	if err := s.create(ctx, prefixKey+k.Name, kept); err != nil {
		return "", err
	}
	// The secret leads to the name by its hash.
	if err := s.create(ctx, "secret."+kept.Hash, k.Name); err != nil {
		return "", err
	}
	return secret, nil
}

// RevokeKey has a key open nothing any more.
func (s *Store) RevokeKey(ctx context.Context, name string) (*Key, error) {
	var k keptKey
	if err := s.read(ctx, prefixKey+name, &k); err != nil {
		return nil, err
	}
	return &k.Key, errors.Join(s.KV.Delete(ctx, prefixKey+name), s.KV.Delete(ctx, "secret."+k.Hash))
}

// FollowKeys calls began when it follows, and then revoked whenever a key was, until ctx ends or something fails. What was revoked before
// it began, Keys tells.
func (s *Store) FollowKeys(ctx context.Context, began func() error, revoked func(name string)) error {
	w, err := s.KV.Watch(ctx, prefixKey+"*", jetstream.UpdatesOnly(), jetstream.MetaOnly())
	if err != nil {
		return fmt.Errorf("follow the keys: %w", err)
	}
	defer func() { _ = w.Stop() }() // nothing depends on it any more
	if err := began(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, ok := <-w.Updates():
			if !ok {
				return errors.New("follow the keys: the watch has ended")
			}
			if entry != nil && entry.Operation() != jetstream.KeyValuePut {
				revoked(strings.TrimPrefix(entry.Key(), prefixKey))
			}
		}
	}
}

// Keys lists the keys of an organization, or all.
func (s *Store) Keys(ctx context.Context, organization string) ([]Key, error) {
	return list(ctx, s, prefixKey, organization, func(k *keptKey) (Key, string) { return k.Key, k.Organization })
}

// ByKey says whose a secret is. Beside ErrUnknown stands whose it was, for the trail alone, if it has expired.
func (s *Store) ByKey(ctx context.Context, secret string) (*Principal, error) {
	if !strings.HasPrefix(secret, keyStart) {
		return nil, ErrUnknown
	}
	var name string
	var k keptKey
	h := hash(secret)
	err := s.read(ctx, "secret."+h, &name)
	if err == nil {
		err = s.read(ctx, prefixKey+name, &k)
	}
	switch {
	case errors.Is(err, ErrNone):
		return nil, ErrUnknown
	case err != nil:
		return nil, err
	case subtle.ConstantTimeCompare([]byte(k.Hash), []byte(h)) != 1:
		return nil, ErrUnknown
	}
	p := &Principal{Kind: "key", ID: k.Name, Role: k.Role, Organization: k.Organization, Until: k.Expires}
	if !s.now().Before(k.Expires) {
		return p, ErrUnknown
	}
	return p, nil
}

// The cost of a password: the second choice of RFC 9106, section 4.
const (
	argonTime, argonMemory, argonThreads, argonLength = 3, 64 << 10, 4, 32

	shortestPassword = 12
	longestPassword  = 1024
)

// passwords bounds how many are checked at once: each takes 64 MiB.
var passwords = make(chan struct{}, 4)

func derive(ctx context.Context, password string, salt []byte) ([]byte, error) {
	select {
	case passwords <- struct{}{}:
		defer func() { <-passwords }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonLength), nil
}

// SetUser makes a user, or changes his role and, unless it is empty, his password.
func (s *Store) SetUser(ctx context.Context, u User, password string) error {
	if err := check(u.Name, u.Organization, u.Role); err != nil {
		return err
	}
	var kept keptUser
	err := s.read(ctx, prefixUser+u.Name, &kept)
	there := err == nil
	if err != nil && !errors.Is(err, ErrNone) {
		return err
	}
	switch {
	case u.SignIn == "" && kept.SignIn == OpenID && password == "":
		u.SignIn = OpenID // it stays
	case u.SignIn == OpenID && password != "":
		return &schema.Fault{Field: "password", Problem: "is given to who signs in by OpenID", Remedy: "leave it out"}
	case u.SignIn == Password:
		u.SignIn = ""
	}
	if u.SignIn == OpenID {
		kept.Salt, kept.Hash = nil, nil
	} else {
		kept.Issuer, kept.Subject = "", ""
	}
	if u.SignIn != OpenID && (password != "" || !there || kept.Hash == nil) {
		if n := len(password); n < shortestPassword || n > longestPassword {
			return &schema.Fault{Field: "password", Problem: fmt.Sprintf("has %d bytes", n), Remedy: fmt.Sprintf("give %d to %d", shortestPassword, longestPassword)}
		}
		kept.Salt = make([]byte, 16)
		_, _ = rand.Read(kept.Salt) // never fails
		if kept.Hash, err = derive(ctx, password, kept.Salt); err != nil {
			return err
		}
	}
	if !there {
		u.Created = s.now()
	} else {
		u.Created = kept.Created
	}
	kept.User = u
	return s.put(ctx, prefixUser+u.Name, kept)
}

// RemoveUser forgets a user. His sessions end with their next request.
func (s *Store) RemoveUser(ctx context.Context, name string) (*User, error) {
	var u keptUser
	if err := s.read(ctx, prefixUser+name, &u); err != nil {
		return nil, err
	}
	return &u.User, s.KV.Delete(ctx, prefixUser+name)
}

// Users lists the users of an organization, or all.
func (s *Store) Users(ctx context.Context, organization string) ([]User, error) {
	return list(ctx, s, prefixUser, organization, func(u *keptUser) (User, string) { return u.User, u.Organization })
}

// SignIn checks a password and begins a session; token is what the browser brings back. Beside ErrUnknown stands whose
// name it was, for the trail alone, if it is somebody's.
func (s *Store) SignIn(ctx context.Context, name, password string) (token string, p *Principal, err error) {
	var u keptUser
	err = ErrNone
	if namePattern.MatchString(name) {
		err = s.read(ctx, prefixUser+name, &u)
	}
	if err != nil && !errors.Is(err, ErrNone) {
		return "", nil, err
	}
	// It takes as long for one that there is not.
	got, deriveErr := derive(ctx, password[:min(len(password), longestPassword)], append(u.Salt, make([]byte, 16-len(u.Salt))...))
	if deriveErr != nil {
		return "", nil, deriveErr
	}
	if err != nil {
		return "", nil, ErrUnknown
	}
	if u.SignIn == OpenID || subtle.ConstantTimeCompare(got, u.Hash) != 1 {
		return "", u.principal(), ErrUnknown
	}
	return s.begin(ctx, &u.User)
}

func (s *Store) begin(ctx context.Context, u *User) (string, *Principal, error) {
	ttl := s.SessionTTL
	if ttl == 0 {
		ttl = 12 * time.Hour
	}
	p := u.principal()
	token := random()
	return token, p, s.create(ctx, prefixSession+hash(token), session{*p, s.now().Add(ttl)})
}

// BySession says whose a session is. A user who was removed, or whose role was changed, has what he has now.
func (s *Store) BySession(ctx context.Context, token string) (*Principal, error) {
	var se session
	var u keptUser
	err := s.read(ctx, prefixSession+hash(token), &se)
	if err == nil {
		err = s.read(ctx, prefixUser+se.ID, &u)
	}
	if errors.Is(err, ErrNone) || err == nil && !s.now().Before(se.Expires) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	return u.principal(), nil
}

func (u *User) principal() *Principal {
	return &Principal{Kind: "user", ID: u.Name, Role: u.Role, Organization: u.Organization}
}

// SignOut ends a session.
func (s *Store) SignOut(ctx context.Context, token string) error {
	return s.KV.Delete(ctx, prefixSession+hash(token))
}

// First returns a token with which the first admin is made, once, and nothing if there are users already.
func (s *Store) First(ctx context.Context) (token string, err error) {
	users, err := s.Users(ctx, "")
	if err != nil || len(users) > 0 {
		return "", err
	}
	token = random()
	return token, s.put(ctx, keyFirst, hash(token))
}

// MakeFirst makes the first admin, an operator, with the token of First.
func (s *Store) MakeFirst(ctx context.Context, token, name, password string) (*User, error) {
	var want string
	if err := s.read(ctx, keyFirst, &want); errors.Is(err, ErrNone) {
		return nil, ErrUnknown
	} else if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(hash(token))) != 1 {
		return nil, ErrUnknown
	}
	u := User{Name: name, Role: Admin, By: "first start"}
	if err := s.SetUser(ctx, u, password); err != nil {
		return nil, err
	}
	return &u, s.KV.Delete(ctx, keyFirst)
}

func (s *Store) read(ctx context.Context, key string, to any) error {
	entry, err := s.KV.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return ErrNone
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), to)
	}
	if err != nil {
		return fmt.Errorf("look up who may do what: %w", err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = s.KV.Put(ctx, key, data)
	}
	if err != nil {
		return fmt.Errorf("keep who may do what: %w", err)
	}
	return nil
}

func (s *Store) create(ctx context.Context, key string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = s.KV.Create(ctx, key, data)
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		return ErrTaken
	}
	if err != nil {
		return fmt.Errorf("keep who may do what: %w", err)
	}
	return nil
}

func list[K, V any](ctx context.Context, s *Store, prefix, organization string, show func(*K) (V, string)) ([]V, error) {
	keys, err := s.KV.ListKeysFiltered(ctx, prefix+"*")
	if err != nil {
		return nil, fmt.Errorf("list who may do what: %w", err)
	}
	var names []string
	for k := range keys.Keys() {
		names = append(names, k)
	}
	slices.Sort(names)
	all := []V{}
	for _, k := range names {
		var kept K
		if err := s.read(ctx, k, &kept); errors.Is(err, ErrNone) {
			continue
		} else if err != nil {
			return nil, err
		}
		if v, of := show(&kept); organization == "" || of == organization {
			all = append(all, v)
		}
	}
	return all, nil
}
