package access_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
)

// Who signs in by OpenID has no password, the other way about, and is whom the provider knew at first.
func TestVouched(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	set := func(u access.User, password, fault string) {
		t.Helper()
		if err := s.SetUser(t.Context(), u, password); (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%+v: %v, want %q", u, err, fault)
		}
	}
	ann := access.User{Name: "ann", Role: access.Auditor, Organization: "acme"}
	set(ann, password, "")
	by := func(subject string, role access.Role, create bool) error {
		_, _, err := s.SignInVouched(t.Context(), &access.Vouched{Issuer: "https://i", Subject: subject, Name: "ann", Role: role, Create: create})
		return err
	}
	if err := by("1", access.Admin, true); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("who has a password came by OpenID: %v", err)
	}
	ann.SignIn = access.OpenID
	set(ann, password, "leave it out")
	set(ann, "", "")
	if _, _, err := s.SignIn(t.Context(), "ann", password); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("who has OpenID came by the old password: %v", err)
	}
	if err := by("1", "", false); err != nil {
		t.Error(err)
	}
	if err := by("2", "", false); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("another person of the same name: %v", err)
	}
	ann.SignIn, ann.Role = "", access.Admin
	set(ann, "", "") // it stays
	token, p, err := s.SignInVouched(t.Context(), &access.Vouched{Issuer: "https://i", Subject: "1", Name: "ann"})
	if err != nil || p.Role != access.Admin {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := s.BySession(t.Context(), token); err != nil || p.ID != "ann" {
		t.Errorf("%+v, %v", p, err)
	}
	ann.SignIn = access.Password
	set(ann, "", "12 to")
	set(ann, password, "")
	if _, _, err := s.SignIn(t.Context(), "ann", password); err != nil {
		t.Error(err)
	}
	if err := by("1", "", false); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("who has a password again came by OpenID: %v", err)
	}
}

// What a sign-in is held against is given out once, and not for ever.
func TestTakenOnce(t *testing.T) {
	t.Parallel()
	s, now := open(t)
	for _, secret := range []string{"a", "b", "c"} {
		if err := s.Keep(t.Context(), secret, secret+secret, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	var got string
	if err := s.Take(t.Context(), "a", &got); err != nil || got != "aa" {
		t.Errorf("%q, %v", got, err)
	}
	if err := s.Take(t.Context(), "a", &got); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("again: %v", err)
	}
	*now = now.Add(2 * time.Minute)
	if err := s.Take(t.Context(), "b", &got); !errors.Is(err, access.ErrUnknown) {
		t.Errorf("too late: %v", err)
	}
	if err := s.Keep(t.Context(), "d", "dd", time.Minute); err != nil {
		t.Fatal(err)
	}
	keys, err := s.KV.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Errorf("kept are %v, %v", keys, err)
	}
}
