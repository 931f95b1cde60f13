package access_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

const password = "correct horse battery"

// watch follows the store until the test ends.
func watch(t *testing.T, s *access.Store) *access.Watch {
	t.Helper()
	w := access.NewWatch(s, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := await.Receive(t, await.Limit, "the watch to end", done); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Every way in which a credential ends closes what it opened, and nothing else does.
func TestEndOfCredentialEndsWhatItOpened(t *testing.T) {
	t.Parallel()
	user := access.User{Name: "ann", Organization: "acme", Role: access.Auditor}
	for name, end := range map[string]func(t *testing.T, s *access.Store, session string) error{
		"password": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			return s.SetUser(t.Context(), user, "another long password")
		},
		"role": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			u := user
			u.Role = access.Admin
			return s.SetUser(t.Context(), u, "")
		},
		"organization": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			u := user
			u.Organization = "globex"
			return s.SetUser(t.Context(), u, "")
		},
		"sign-in": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			u := user
			u.SignIn = access.OpenID
			return s.SetUser(t.Context(), u, "")
		},
		"removal": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			_, err := s.RemoveUser(t.Context(), "ann")
			return err
		},
		"sign-out": func(t *testing.T, s *access.Store, session string) error {
			t.Helper()
			return s.SignOut(t.Context(), session)
		},
		"key": func(t *testing.T, s *access.Store, _ string) error {
			t.Helper()
			_, err := s.RevokeKey(t.Context(), "bi")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, now := open(t)
			w := watch(t, s)
			if err := s.SetUser(t.Context(), user, password); err != nil {
				t.Fatal(err)
			}
			session, _, err := s.SignIn(t.Context(), "ann", password)
			if err != nil {
				t.Fatal(err)
			}
			secret, err := s.CreateKey(t.Context(), &access.Key{Name: "bi", Organization: "acme", Role: access.Auditor, Expires: now.Add(time.Hour)})
			if err != nil {
				t.Fatal(err)
			}
			bySession := func(ctx context.Context) (*access.Principal, error) { return s.BySession(ctx, session) }
			byKey := func(ctx context.Context) (*access.Principal, error) { return w.ByKey(ctx, secret) }
			held, other := bySession, byKey
			if name == "key" {
				held, other = byKey, bySession
			}
			ctx, p, leave, err := w.Enter(t.Context(), held)
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
			stays, _, leaveOther, err := w.Enter(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			defer leaveOther()
			if err := end(t, s, session); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				t.Fatal("what the credential opened is open after a minute")
			}
			if cause := context.Cause(ctx); !errors.Is(cause, access.ErrEnded) || w.Stands(p) {
				t.Errorf("it ended by %v; it stands: %v", cause, w.Stands(p))
			}
			if err := stays.Err(); err != nil {
				t.Errorf("another credential ended, too: %v", err)
			}
			if _, _, _, err := w.Enter(t.Context(), held); !errors.Is(err, access.ErrUnknown) {
				t.Errorf("it opens again: %v", err)
			}
		})
	}
}

// A key that expires ends what it opened.
func TestExpiredKeyEndsWhatItOpened(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	s.Now = nil
	w := watch(t, s)
	secret, err := s.CreateKey(t.Context(), &access.Key{Name: "bi", Role: access.Auditor, Expires: time.Now().Add(2 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, _, leave, err := w.Enter(t.Context(), func(ctx context.Context) (*access.Principal, error) { return w.ByKey(ctx, secret) })
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("it is open after a minute")
	}
}

// A user who was removed is not the later one of the same name.
func TestOldSessionDoesNotOpenNewUserOfSameName(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	if err := s.SetUser(t.Context(), access.User{Name: "ann", Organization: "acme", Role: access.Auditor}, password); err != nil {
		t.Fatal(err)
	}
	session, before, err := s.SignIn(t.Context(), "ann", password)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RemoveUser(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUser(t.Context(), access.User{Name: "ann", Organization: "globex", Role: access.Admin}, password); err != nil {
		t.Fatal(err)
	}
	if p, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("the old session opens %+v, %v", p, err)
	}
	if _, after, err := s.SignIn(t.Context(), "ann", password); err != nil || after.UID == before.UID || after.UID == "" {
		t.Errorf("%+v, %v", after, err)
	}
}

// Users, keys and sessions as they were kept before they had ids: users and keys get one and go on, and the sessions end.
func TestDocumentsWithoutIDsAreUpgraded(t *testing.T) {
	t.Parallel()
	s, now := open(t)
	if err := s.SetUser(t.Context(), access.User{Name: "ann", Role: access.Admin}, password); err != nil {
		t.Fatal(err)
	}
	session, _, err := s.SignIn(t.Context(), "ann", password)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := s.CreateKey(t.Context(), &access.Key{Name: "bi", Role: access.Auditor, Expires: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := s.KV.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		entry, err := s.KV.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		var document map[string]any
		if json.Unmarshal(entry.Value(), &document) != nil {
			continue
		}
		delete(document, "uid")
		delete(document, "generation")
		if key == "user.ann" || key == "key.bi" {
			delete(document, "id")
		}
		data, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.KV.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("a session of nobody in particular: %v", err)
	}
	first, err := s.ByKey(t.Context(), secret)
	if err != nil || first.UID == "" {
		t.Fatalf("%+v, %v", first, err)
	}
	if again, err := watch(t, s).ByKey(t.Context(), secret); err != nil || again.UID != first.UID {
		t.Errorf("%+v, %v, was %s", again, err, first.UID)
	}
	users, err := s.Users(t.Context(), "")
	if err != nil || len(users) != 1 || users[0].ID == "" {
		t.Errorf("%+v, %v", users, err)
	}
	if _, p, err := s.SignIn(t.Context(), "ann", password); err != nil || p.UID != users[0].ID {
		t.Errorf("%+v, %v", p, err)
	}
}

// The link for the first admin, used by many at once, makes one.
func TestFirstAdminLinkMakesOneAdmin(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	token, err := s.First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.MakeFirst(t.Context(), token, "eve", "short"); err == nil || errors.Is(err, access.ErrFirst) {
		t.Errorf("a short password: %v", err)
	}
	var made atomic.Int64
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			switch _, err := s.MakeFirst(t.Context(), token, fmt.Sprint("eve-", n), password); {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, access.ErrFirst):
				t.Errorf("%d: %v", n, err)
			}
		})
	}
	await.Return(t, await.Limit, "all attempts to make the first user to end", all.Wait)
	users, err := s.Users(t.Context(), "")
	if err != nil || len(users) != 1 || made.Load() != 1 {
		t.Errorf("%d were made: %+v, %v", made.Load(), users, err)
	}
}

// Of two admins who make a user of the same name at once, one makes it: the other's check sees the user that is there.
func TestUserOfAnotherOrganizationIsNotTakenOver(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	var made atomic.Int64
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			organization := fmt.Sprint("organization-", n)
			_, err := s.ChangeUser(t.Context(), access.User{Name: "ann", Organization: organization, Role: access.Admin}, password, func(before *access.User) error {
				if before != nil && before.Organization != organization {
					return access.ErrTaken
				}
				return nil
			})
			switch {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, access.ErrTaken):
				t.Errorf("%d: %v", n, err)
			}
		})
	}
	await.Return(t, await.Limit, "all attempts to make the user to end", all.Wait)
	if made.Load() != 1 {
		t.Errorf("%d organizations made the same user", made.Load())
	}
}

// The sessions that a change has ended are removed and counted; others stay.
func TestForgetSessionsCountsThoseThatEnded(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for _, name := range []string{"ann", "ben"} {
		if err := s.SetUser(t.Context(), access.User{Name: name, Role: access.Admin}, password); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, _, err := s.SignIn(t.Context(), "ann", password); err != nil {
			t.Fatal(err)
		}
	}
	stays, _, err := s.SignIn(t.Context(), "ben", password)
	if err != nil {
		t.Fatal(err)
	}
	change, err := s.ChangeUser(t.Context(), access.User{Name: "ann", Role: access.Auditor}, "", nil)
	if err != nil || !change.Ended || change.Before.Role != access.Admin || change.After.Role != access.Auditor {
		t.Fatalf("%+v, %v", change, err)
	}
	if n, err := s.ForgetSessions(t.Context(), change.After.ID); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := s.BySession(t.Context(), stays); err != nil {
		t.Error(err)
	}
}

// A flood of sign-ins from one network leaves those of another their turn.
func TestSignInsOfOneNetworkLeaveOthersTheirTurn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	if err := s.SetUser(t.Context(), access.User{Name: "ann", Role: access.Admin}, password); err != nil {
		t.Fatal(err)
	}
	flood, stop := context.WithCancel(access.WithNetwork(t.Context(), "192.0.2.1"))
	var all sync.WaitGroup
	var busy atomic.Int64
	for range 40 {
		all.Go(func() {
			for flood.Err() == nil {
				if _, _, err := s.SignIn(flood, "ann", "wrong"); errors.Is(err, access.ErrBusy) {
					busy.Add(1)
				}
			}
		})
	}
	for range 3 {
		if _, _, err := s.SignIn(access.WithNetwork(t.Context(), "192.0.2.2"), "ann", password); err != nil {
			t.Error(err)
		}
	}
	stop()
	await.Return(t, await.Limit, "the flood of sign-ins to end", all.Wait)
	if busy.Load() == 0 {
		t.Error("the flood waited without a bound")
	}
}

// A watch that the broker has forgotten is noticed and made again: what ends meanwhile ends what it opened, and each request is looked up.
func TestBrokenWatchIsNoticed(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	kv, err := c.JS.KeyValue(t.Context(), broker.BucketAccess)
	if err != nil {
		t.Fatal(err)
	}
	s := &access.Store{KV: kv}
	w := watch(t, s)
	secret, err := s.CreateKey(t.Context(), &access.Key{Name: "bi", Role: access.Auditor, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	byKey := func(ctx context.Context) (*access.Principal, error) { return w.ByKey(ctx, secret) }
	ctx, _, leave, err := w.Enter(t.Context(), byKey)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	stream, err := c.JS.Stream(t.Context(), "KV_"+broker.BucketAccess)
	if err != nil {
		t.Fatal(err)
	}
	forgotten := 0
	await.True(t, await.Limit, "a consumer of the watch, which may not have begun", func() bool {
		names := stream.ConsumerNames(t.Context())
		for name := range names.Name() {
			if err := stream.DeleteConsumer(t.Context(), name); err != nil {
				t.Error(err)
			}
			forgotten++
		}
		return forgotten > 0
	})
	if _, err := s.RevokeKey(t.Context(), "bi"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it ended after %s", took)
		}
	case <-time.After(time.Minute):
		t.Fatal("it is open after a minute")
	}
	if _, _, _, err := w.Enter(t.Context(), byKey); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("it opens again: %v", err)
	}
}
