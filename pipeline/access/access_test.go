package access_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) (*access.Store, *time.Time) {
	t.Helper()
	c := brokertest.SetUp(t)
	kv, err := c.JS.KeyValue(t.Context(), broker.BucketAccess)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	return &access.Store{KV: kv, Now: func() time.Time { return now }}, &now
}

// Requirement Q10: what each role may, and for whom.
func TestRoles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		has  access.Principal
		want access.Role
		org  string
		ok   bool
	}{
		{access.Principal{Role: access.Auditor, Organization: "acme"}, access.Auditor, "acme", true},
		{access.Principal{Role: access.Auditor, Organization: "acme"}, access.Auditor, "globex", false},
		{access.Principal{Role: access.Auditor, Organization: "acme"}, access.Admin, "acme", false},
		{access.Principal{Role: access.Auditor, Organization: "acme"}, access.Auditor, "", false},
		{access.Principal{Role: access.Admin, Organization: "acme"}, access.Auditor, "acme", true},
		{access.Principal{Role: access.Admin}, access.Auditor, "globex", true},
		{access.Principal{Role: access.Admin}, access.Publisher, "acme", false},
		{access.Principal{Role: access.Publisher, Organization: "acme"}, access.Publisher, "acme", true},
		{access.Principal{Role: access.Publisher, Organization: "acme"}, access.Auditor, "acme", false},
	} {
		if err := c.has.May(c.want, c.org); (err == nil) != c.ok || err != nil && !errors.Is(err, access.ErrForbidden) {
			t.Errorf("%+v as %s of %q: %v", c.has, c.want, c.org, err)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s, now := open(t)
	k := access.Key{Name: "bi", Organization: "acme", Role: access.Auditor, By: "ann", Expires: now.Add(time.Hour)}
	secret, err := s.CreateKey(t.Context(), &k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateKey(t.Context(), &k); !errors.Is(err, access.ErrTaken) {
		t.Errorf("got %v", err)
	}
	entry, err := s.KV.Get(t.Context(), "key.bi")
	if err != nil || strings.Contains(string(entry.Value()), secret) {
		t.Errorf("it is kept as %s, %v", entry.Value(), err)
	}
	p, err := s.ByKey(t.Context(), secret)
	if err != nil || p.ID != "bi" || p.Role != access.Auditor || p.Organization != "acme" {
		t.Errorf("%+v, %v", p, err)
	}
	for _, wrong := range []string{"", "kansa_", secret + "x", secret[:len(secret)-1], "x" + secret} {
		if _, err := s.ByKey(t.Context(), wrong); !errors.Is(err, access.ErrUnknown) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	*now = now.Add(2 * time.Hour)
	if _, err := s.ByKey(t.Context(), secret); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("expired: %v", err)
	}
	*now = now.Add(-2 * time.Hour)
	if _, err := s.RevokeKey(t.Context(), "bi"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ByKey(t.Context(), secret); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("revoked: %v", err)
	}
	k.Name, k.Role, k.Expires = "a b", "root", *now
	if _, err := s.CreateKey(t.Context(), &k); err == nil || !strings.Contains(err.Error(), "role") {
		t.Errorf("got %v", err)
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	s, now := open(t)
	token, err := s.First(t.Context())
	if err != nil || token == "" {
		t.Fatal(token, err)
	}
	if _, err := s.MakeFirst(t.Context(), token+"x", "ann", "correct horse battery"); !errors.Is(err, access.ErrFirst) {
		t.Errorf("got %v", err)
	}
	if _, err := s.MakeFirst(t.Context(), token, "ann", "short"); err == nil || !strings.Contains(err.Error(), "12 to") {
		t.Errorf("got %v", err)
	}
	if _, err := s.MakeFirst(t.Context(), token, "ann", "correct horse battery"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.MakeFirst(t.Context(), token, "eve", "correct horse battery"); !errors.Is(err, access.ErrFirst) {
		t.Errorf("used twice: %v", err)
	}
	if again, err := s.First(t.Context()); err != nil || again != "" {
		t.Errorf("there is somebody already: %q, %v", again, err)
	}
	for _, wrong := range [][2]string{{"ann", "wrong"}, {"nobody", "correct horse battery"}, {"user.ann", "x"}, {"*", "x"}, {"", ""}} {
		if _, _, err := s.SignIn(t.Context(), wrong[0], wrong[1]); !errors.Is(err, access.ErrUnknown) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	session, p, err := s.SignIn(t.Context(), "ann", "correct horse battery")
	if err != nil || p.Role != access.Admin || p.Organization != "" {
		t.Fatal(p, err)
	}
	if p, err = s.BySession(t.Context(), session); err != nil || p.ID != "ann" {
		t.Errorf("%+v, %v", p, err)
	}
	if err := s.SetUser(t.Context(), access.User{Name: "ann", Role: access.Auditor, Organization: "acme"}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("after a change: %v", err)
	}
	if session, p, err = s.SignIn(t.Context(), "ann", "correct horse battery"); err != nil || p.Role != access.Auditor || p.Organization != "acme" {
		t.Fatal(p, err)
	}
	*now = now.Add(13 * time.Hour)
	if _, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("expired: %v", err)
	}
	*now = now.Add(-13 * time.Hour)
	if err := s.SignOut(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("signed out: %v", err)
	}
	session, _, err = s.SignIn(t.Context(), "ann", "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RemoveUser(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BySession(t.Context(), session); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("removed: %v", err)
	}
}
