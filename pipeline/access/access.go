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
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/argon2"

	"github.com/kansa-audit/kansa/consumers"
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
	// ErrFirst answers a link for the first admin that makes no admin.
	ErrFirst = errors.New("this link makes no admin: it was used, a later start replaced it, or there are users already: sign in, or ask an operator for an account")
	// ErrBusy answers a network that has too many passwords checked at once.
	ErrBusy = errors.New("too many sign-ins at once from this network: try again in a few seconds")
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
	// UID is the stable id of the user or key. A later one of the same name has another.
	UID string `json:"uid,omitempty" doc:"Stable id of the user or key; a later one of the same name has another"`
	// Mapping is that of the key.
	Mapping string `json:"-"`
	// Until is when the key or session expires.
	Until time.Time `json:"-"`

	generation uint64 // of the user's credentials
	session    string // hash of the session's token
	// revision of the key or user in the bucket, and of the session, when they were looked up.
	revision, began uint64
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
	// ID is random and never used again.
	ID           string `json:"id,omitempty" doc:"Stable id; a later key of the same name has another"`
	Name         string `json:"name"`
	Organization string `json:"organization,omitempty"`
	Role         Role   `json:"role"`
	// Mapping makes events of the records that a publisher sends over HTTP; none if it is empty.
	Mapping string    `json:"mapping,omitempty" doc:"Mapping of the records that this publisher sends over HTTP"`
	Created time.Time `json:"created"`
	By      string    `json:"by"`
	Expires time.Time `json:"expires"`
}

// User is one as people see it.
type User struct {
	// ID is random and never used again.
	ID           string    `json:"id,omitempty" doc:"Stable id; a later user of the same name has another"`
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
	// Generation counts the changes of what a session rests on. A session of an earlier one has ended.
	Generation uint64 `json:"generation,omitempty"`
	Salt       []byte `json:"salt"`
	Hash       []byte `json:"hash"` // argon2id
	// Issuer and Subject are what the OpenID provider knows him by, from his first sign-in on: his name there may become another's.
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
}

type session struct {
	Principal
	Generation uint64    `json:"generation,omitempty"`
	Expires    time.Time `json:"expires"`
}

const (
	prefixKey     = "key."
	prefixUser    = "user."
	prefixSession = "session."
	prefixSecret  = "secret."
	// prefixNetworks leads to those that a user signed in from, by the user's id.
	prefixNetworks = "networks."
	keyFirst       = "first"

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

// newID names a user or key for good.
func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
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
	if k.Mapping != "" && k.Role != Publisher {
		return "", &schema.Fault{Field: "mapping", Value: k.Mapping, Problem: "is for keys that publish", Remedy: "make a key of the role publisher, or leave it out"}
	}
	k.ID, k.Created = newID(), s.now()
	secret = keyStart + random()
	kept := keptKey{*k, hash(secret)}
	if err := s.create(ctx, prefixKey+k.Name, kept); err != nil {
		return "", err
	}
	// The secret leads to the name by its hash.
	if err := s.create(ctx, prefixSecret+kept.Hash, k.Name); err != nil {
		return "", err
	}
	return secret, nil
}

// RevokeKey has a key open nothing any more.
func (s *Store) RevokeKey(ctx context.Context, name string) (*Key, error) {
	for {
		k, revision, err := s.key(ctx, name)
		if err != nil {
			return nil, err
		}
		switch err := s.remove(ctx, prefixKey+name, revision); {
		case errors.Is(err, errMoved):
			continue
		case err != nil:
			return nil, err
		}
		return &k.Key, s.remove(ctx, prefixSecret+k.Hash, 0)
	}
}

// key reads one, and gives it an id if it was made before keys had any.
func (s *Store) key(ctx context.Context, name string) (k keptKey, revision uint64, err error) {
	for {
		k = keptKey{}
		if revision, err = s.readAt(ctx, prefixKey+name, &k); err != nil || k.ID != "" {
			return k, revision, err
		}
		k.ID = newID()
		if revision, err = s.update(ctx, prefixKey+name, k, revision); !errors.Is(err, errMoved) {
			return k, revision, err
		}
	}
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
	return list(ctx, s, prefixKey, organization, func(name string) (Key, string, error) {
		k, _, err := s.key(ctx, name)
		return k.Key, k.Organization, err
	})
}

// ByKey says whose a secret is. Beside ErrUnknown stands whose it was, for the trail alone, if it has expired.
func (s *Store) ByKey(ctx context.Context, secret string) (*Principal, error) {
	if !strings.HasPrefix(secret, keyStart) {
		return nil, ErrUnknown
	}
	var name string
	var k keptKey
	var revision uint64
	h := hash(secret)
	err := s.read(ctx, prefixSecret+h, &name)
	if err == nil {
		k, revision, err = s.key(ctx, name)
	}
	switch {
	case errors.Is(err, ErrNone):
		return nil, ErrUnknown
	case err != nil:
		return nil, err
	case subtle.ConstantTimeCompare([]byte(k.Hash), []byte(h)) != 1:
		return nil, ErrUnknown
	}
	p := k.principal()
	p.revision = revision
	if !s.now().Before(k.Expires) {
		return p, ErrUnknown
	}
	return p, nil
}

func (k *Key) principal() *Principal {
	return &Principal{Kind: "key", ID: k.Name, UID: k.ID, Role: k.Role, Organization: k.Organization, Mapping: k.Mapping, Until: k.Expires}
}

// The cost of a password: the second choice of RFC 9106, section 4.
const (
	argonTime, argonMemory, argonThreads, argonLength = 3, 64 << 10, 4, 32

	shortestPassword = 12
	longestPassword  = 1024
)

// passwords bounds how many are checked at once: each takes 64 MiB.
var passwords = make(chan struct{}, 4)

type networkKey struct{}

// WithNetwork names the network that a sign-in comes from. Each network has one password checked at a time, so that a flood
// from one leaves the others their turn.
func WithNetwork(ctx context.Context, network string) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

// turns has each network wait for its own turn first.
type turns struct {
	mu sync.Mutex
	of map[string]*turn
}

type turn struct {
	free    chan struct{}
	waiting int
}

// mostWaiting bounds the sign-ins of one network that wait for its turn.
const mostWaiting = 8

var networks = turns{of: map[string]*turn{}}

// take waits for the turn of a network, and returns what ends it.
func (t *turns) take(ctx context.Context, network string) (end func(), err error) {
	t.mu.Lock()
	own := t.of[network]
	if own == nil {
		own = &turn{free: make(chan struct{}, 1)}
		t.of[network] = own
	}
	if own.waiting >= mostWaiting {
		t.mu.Unlock()
		return nil, ErrBusy
	}
	own.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.waiting--; own.waiting == 0 {
			delete(t.of, network)
		}
	}
	select {
	case own.free <- struct{}{}:
		return func() { <-own.free; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

func derive(ctx context.Context, password string, salt []byte) ([]byte, error) {
	if network, ok := ctx.Value(networkKey{}).(string); ok {
		end, err := networks.take(ctx, network)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	select {
	case passwords <- struct{}{}:
		defer func() { <-passwords }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonLength), nil
}

// Change is what became of a user.
type Change struct {
	Before *User // nil if the user is new
	After  User
	// Password tells that it has another password.
	Password bool
	// Ended tells that the sessions which it had have ended.
	Ended bool
}

// SetUser makes a user, or changes its role and, unless it is empty, its password.
func (s *Store) SetUser(ctx context.Context, u User, password string) error {
	_, err := s.ChangeUser(ctx, u, password, nil)
	return err
}

// ChangeUser makes or changes a user as SetUser does. allow is asked about the user that the change replaces, nil if there is none; no
// other change comes between its answer and the write. It may be called several times.
func (s *Store) ChangeUser(ctx context.Context, u User, password string, allow func(before *User) error) (*Change, error) {
	if err := check(u.Name, u.Organization, u.Role); err != nil {
		return nil, err
	}
	var derived *keptUser
	for {
		kept, revision, err := s.user(ctx, u.Name)
		there := err == nil
		if err != nil && !errors.Is(err, ErrNone) {
			return nil, err
		}
		change := &Change{}
		if there {
			before := kept.User
			change.Before = &before
		}
		if allow != nil {
			if err := allow(change.Before); err != nil {
				return nil, err
			}
		}
		fresh, err := kept.become(u, password, there)
		if err != nil {
			return nil, err
		}
		if fresh {
			// Of a change that is tried again, the password is derived once.
			if derived == nil {
				if derived, err = deriveUser(ctx, password); err != nil {
					return nil, err
				}
			}
			kept.Salt, kept.Hash = derived.Salt, derived.Hash
		}
		if !there {
			kept.ID, kept.Created = newID(), s.now()
		}
		change.After, change.Password = kept.User, fresh
		change.Ended = there && (fresh || changed(change.Before, &kept.User))
		if change.Ended {
			kept.Generation++
		}
		if there {
			_, err = s.update(ctx, prefixUser+u.Name, kept, revision)
		} else if err = s.create(ctx, prefixUser+u.Name, kept); errors.Is(err, ErrTaken) {
			err = errMoved
		}
		if !errors.Is(err, errMoved) {
			return change, err
		}
	}
}

// changed says whether a user's sessions end by a change, besides one of the password.
func changed(before, after *User) bool {
	return before.Role != after.Role || before.Organization != after.Organization || before.SignIn != after.SignIn
}

func deriveUser(ctx context.Context, password string) (*keptUser, error) {
	u := &keptUser{Salt: make([]byte, 16)}
	_, _ = rand.Read(u.Salt) // never fails
	var err error
	u.Hash, err = derive(ctx, password, u.Salt)
	return u, err
}

// become takes over what is asked for, and says whether the password is to be derived.
func (u *keptUser) become(to User, password string, there bool) (fresh bool, err error) {
	switch {
	case to.SignIn == "" && u.SignIn == OpenID && password == "":
		to.SignIn = OpenID // it stays
	case to.SignIn == OpenID && password != "":
		return false, &schema.Fault{Field: "password", Problem: "is given to who signs in by OpenID", Remedy: "leave it out"}
	case to.SignIn == Password:
		to.SignIn = ""
	}
	if to.SignIn == OpenID {
		u.Salt, u.Hash = nil, nil
	} else {
		u.Issuer, u.Subject = "", ""
	}
	if to.SignIn != OpenID && (password != "" || !there || u.Hash == nil) {
		if err := checkPassword(password); err != nil {
			return false, err
		}
		fresh = true
	}
	to.ID, to.Created = u.ID, u.Created
	u.User = to
	return fresh, nil
}

func checkPassword(password string) error {
	if n := len(password); n < shortestPassword || n > longestPassword {
		return &schema.Fault{Field: "password", Problem: fmt.Sprintf("has %d bytes", n), Remedy: fmt.Sprintf("give %d to %d", shortestPassword, longestPassword)}
	}
	return nil
}

// user reads one, and gives it an id if it was made before users had any.
func (s *Store) user(ctx context.Context, name string) (u keptUser, revision uint64, err error) {
	for {
		u = keptUser{}
		if revision, err = s.readAt(ctx, prefixUser+name, &u); err != nil || u.ID != "" {
			return u, revision, err
		}
		u.ID = newID()
		if revision, err = s.update(ctx, prefixUser+name, u, revision); !errors.Is(err, errMoved) {
			return u, revision, err
		}
	}
}

// RemoveUser forgets a user, and its sessions end. allow is asked about it as by ChangeUser, and may be nil.
func (s *Store) RemoveUser(ctx context.Context, name string, allow ...func(*User) error) (*User, error) {
	for {
		u, revision, err := s.user(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, a := range allow {
			if err := a(&u.User); err != nil {
				return nil, err
			}
		}
		if err := s.remove(ctx, prefixUser+name, revision); !errors.Is(err, errMoved) {
			return &u.User, errors.Join(err, s.remove(ctx, prefixNetworks+u.ID, 0))
		}
	}
}

// network is one that a user signed in from.
type network struct {
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
}

// mostNetworks bounds those that are remembered of a user, and networkAgain how often one is written again.
const (
	mostNetworks = 16
	networkAgain = 24 * time.Hour
)

// RememberNetwork keeps from which network a user has signed in, as a hash.
func (s *Store) RememberNetwork(ctx context.Context, name, from string) error {
	u, _, err := s.user(ctx, name)
	if err != nil {
		return err
	}
	h := hash(u.ID + " " + from)
	var seen []network
	if err := s.read(ctx, prefixNetworks+u.ID, &seen); err != nil && !errors.Is(err, ErrNone) {
		return err
	}
	if i := slices.IndexFunc(seen, func(n network) bool { return n.Hash == h }); i >= 0 {
		if s.now().Sub(seen[i].At) < networkAgain {
			return nil
		}
		seen = slices.Delete(seen, i, i+1)
	}
	seen = append(seen, network{h, s.now()})
	return s.put(ctx, prefixNetworks+u.ID, seen[max(0, len(seen)-mostNetworks):])
}

// SignedInFrom says whether a user has signed in from a network.
func (s *Store) SignedInFrom(ctx context.Context, name, from string) (bool, error) {
	if !namePattern.MatchString(name) {
		return false, nil
	}
	u, _, err := s.user(ctx, name)
	var seen []network
	if err == nil {
		err = s.read(ctx, prefixNetworks+u.ID, &seen)
	}
	if err != nil && !errors.Is(err, ErrNone) {
		return false, err
	}
	h := hash(u.ID + " " + from)
	return slices.ContainsFunc(seen, func(n network) bool { return n.Hash == h }), nil
}

// ForgetSessions removes the sessions of a user that have ended, and those of everybody that have expired. It returns how many of that
// user's it removed. They open nothing in any case.
func (s *Store) ForgetSessions(ctx context.Context, uid string) (ended int, err error) {
	keys, err := s.KV.ListKeysFiltered(ctx, prefixSession+"*")
	if err != nil {
		return 0, fmt.Errorf("list the sessions: %w", err)
	}
	var all []string
	for k := range keys.Keys() {
		all = append(all, k)
	}
	for _, k := range all {
		var se session
		if err := s.read(ctx, k, &se); errors.Is(err, ErrNone) {
			continue
		} else if err != nil {
			return ended, err
		}
		expired := !s.now().Before(se.Expires)
		if se.UID != uid && !expired {
			continue
		}
		if u, _, err := s.user(ctx, se.ID); err == nil && u.ID == se.UID && u.Generation == se.Generation && !expired {
			continue
		} else if err != nil && !errors.Is(err, ErrNone) {
			return ended, err
		}
		if err := s.KV.Purge(ctx, k); err != nil {
			return ended, fmt.Errorf("forget a session: %w", err)
		}
		if se.UID == uid && !expired {
			ended++
		}
	}
	return ended, nil
}

// Users lists the users of an organization, or all.
func (s *Store) Users(ctx context.Context, organization string) ([]User, error) {
	return list(ctx, s, prefixUser, organization, func(name string) (User, string, error) {
		u, _, err := s.user(ctx, name)
		return u.User, u.Organization, err
	})
}

// SignIn checks a password and begins a session; token is what the browser brings back. Beside ErrUnknown stands whose
// name it was, for the trail alone, if it is somebody's.
func (s *Store) SignIn(ctx context.Context, name, password string) (token string, p *Principal, err error) {
	var u keptUser
	err = ErrNone
	if namePattern.MatchString(name) {
		u, _, err = s.user(ctx, name)
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
	return s.begin(ctx, &u)
}

func (s *Store) begin(ctx context.Context, u *keptUser) (string, *Principal, error) {
	ttl := s.SessionTTL
	if ttl == 0 {
		ttl = 12 * time.Hour
	}
	p := u.principal()
	token := random()
	return token, p, s.create(ctx, prefixSession+hash(token), session{*p, u.Generation, s.now().Add(ttl)})
}

// BySession says whose a session is. It has ended if the user was removed, or its password, role, organization or way to sign in changed.
func (s *Store) BySession(ctx context.Context, token string) (*Principal, error) {
	var se session
	var u keptUser
	key := hash(token)
	var revision uint64
	began, err := s.readAt(ctx, prefixSession+key, &se)
	if err == nil {
		u, revision, err = s.user(ctx, se.ID)
	}
	if errors.Is(err, ErrNone) || err == nil && (!s.now().Before(se.Expires) || se.UID != u.ID || se.Generation != u.Generation) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	p := u.principal()
	p.Until, p.session, p.began, p.revision = se.Expires, key, began, revision
	return p, nil
}

func (u *keptUser) principal() *Principal {
	return &Principal{Kind: "user", ID: u.Name, UID: u.ID, Role: u.Role, Organization: u.Organization, generation: u.Generation}
}

// SignOut ends a session.
func (s *Store) SignOut(ctx context.Context, token string) error {
	return s.KV.Purge(ctx, prefixSession+hash(token))
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

// MakeFirst makes the first admin, an operator, with the token of First: of several calls at once, one succeeds. The others, and those
// that come when there are users, get ErrFirst. A name or password that is refused leaves the token as it is.
func (s *Store) MakeFirst(ctx context.Context, token, name, password string) (*User, error) {
	var want string
	revision, err := s.readAt(ctx, keyFirst, &want)
	if errors.Is(err, ErrNone) {
		return nil, ErrFirst
	} else if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(hash(token))) != 1 {
		return nil, ErrFirst
	}
	u := User{ID: newID(), Name: name, Role: Admin, By: "first start", Created: s.now()}
	if err := errors.Join(check(u.Name, "", u.Role), checkPassword(password)); err != nil {
		return nil, err
	}
	if users, err := s.Users(ctx, ""); err != nil {
		return nil, err
	} else if len(users) > 0 {
		return nil, ErrFirst
	}
	kept, err := deriveUser(ctx, password)
	if err != nil {
		return nil, err
	}
	kept.User = u
	// The call that takes the token by its revision makes the admin.
	switch err := s.remove(ctx, keyFirst, revision); {
	case errors.Is(err, errMoved):
		return nil, ErrFirst
	case err != nil:
		return nil, err
	}
	if err := s.create(ctx, prefixUser+name, kept); err != nil {
		if errors.Is(err, ErrTaken) {
			return nil, ErrFirst
		}
		return nil, errors.Join(err, s.create(ctx, keyFirst, want)) // the link works still
	}
	return &u, nil
}

func (s *Store) read(ctx context.Context, key string, to any) error {
	_, err := s.readAt(ctx, key, to)
	return err
}

// readAt returns the revision, too, against which a change is made.
func (s *Store) readAt(ctx context.Context, key string, to any) (uint64, error) {
	entry, err := s.KV.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return 0, ErrNone
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), to)
	}
	if err != nil {
		return 0, fmt.Errorf("look up users and keys: %w", err)
	}
	return entry.Revision(), nil
}

// errMoved means that another change came first: read again.
var errMoved = errors.New("it was changed meanwhile")

func moved(err error) bool {
	return errors.Is(consumers.Replaced(err), consumers.ErrReplaced)
}

// update replaces what had a revision.
func (s *Store) update(ctx context.Context, key string, v any, revision uint64) (uint64, error) {
	data, err := json.Marshal(v)
	if err == nil {
		revision, err = consumers.Replace(ctx, s.KV, key, data, revision)
	}
	switch {
	case errors.Is(err, consumers.ErrReplaced):
		return 0, errMoved
	case err != nil:
		return 0, fmt.Errorf("write users and keys: %w", err)
	}
	return revision, nil
}

// remove deletes a key at a revision; at any if that is 0.
func (s *Store) remove(ctx context.Context, key string, revision uint64) error {
	var o []jetstream.KVDeleteOpt
	if revision != 0 {
		o = append(o, jetstream.LastRevision(revision))
	}
	switch err := s.KV.Delete(ctx, key, o...); {
	case err != nil && moved(err):
		return errMoved
	case err != nil:
		return fmt.Errorf("remove from users and keys: %w", err)
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
	if err != nil && moved(err) {
		return ErrTaken
	}
	if err != nil {
		return fmt.Errorf("keep who may do what: %w", err)
	}
	return nil
}

func list[V any](ctx context.Context, s *Store, prefix, organization string, read func(name string) (V, string, error)) ([]V, error) {
	keys, err := s.KV.ListKeysFiltered(ctx, prefix+"*")
	if err != nil {
		return nil, fmt.Errorf("list who may do what: %w", err)
	}
	var names []string
	for k := range keys.Keys() {
		names = append(names, strings.TrimPrefix(k, prefix))
	}
	slices.Sort(names)
	all := []V{}
	for _, name := range names {
		v, of, err := read(name)
		if errors.Is(err, ErrNone) {
			continue
		} else if err != nil {
			return nil, err
		}
		if organization == "" || of == organization {
			all = append(all, v)
		}
	}
	return all, nil
}
