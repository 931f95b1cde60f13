package seal_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema/seal"
)

func aReceipt() *seal.Receipt {
	return &seal.Receipt{
		Receipt: 1, Organization: "acme", Export: "e-1", Destination: "nightly", Address: "sftp.example.com:22", User: "kansa",
		HostKey: "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Path: "/C:/in/監査.zip", Name: "監査.zip", Size: 12,
		SHA256: strings.Repeat("ab", 32), Time: time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC),
	}
}

// Requirement N4: a receipt has one form, and no bit of it can be changed unseen.
func TestReceipts(t *testing.T) {
	k := newPair(t)
	want := aReceipt()
	file, err := seal.SignReceipt(want, k)
	if err != nil {
		t.Fatal(err)
	}
	g := ring(t, k.public)
	got, err := g.OpenReceipt(file)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if !seal.IsReceipt(file) {
		t.Error("it does not look like a receipt")
	}
	for i := range file {
		for bit := range 8 {
			bad := []byte(string(file))
			bad[i] ^= 1 << bit
			if _, err := g.OpenReceipt(bad); err == nil {
				t.Fatalf("bit %d of byte %d was changed, and nobody saw", bit, i)
			}
		}
	}
	if _, err := ring(t, newPair(t).public).OpenReceipt(file); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("another's key: %v", err)
	}
	if _, err := g.Open(file); err == nil {
		t.Error("a receipt was taken for a manifest")
	}
	for name, change := range map[string]func(*seal.Receipt){
		"version": func(r *seal.Receipt) { r.Receipt = 2 }, "organization": func(r *seal.Receipt) { r.Organization = "a b" },
		"path": func(r *seal.Receipt) { r.Path = "" }, "line": func(r *seal.Receipt) { r.User = "a\nb" }, "key": func(r *seal.Receipt) { r.HostKey = "MD5:x" },
		"size": func(r *seal.Receipt) { r.Size = -1 }, "hash": func(r *seal.Receipt) { r.SHA256 = strings.Repeat("AB", 32) },
		"time": func(r *seal.Receipt) { r.Time = r.Time.Add(time.Millisecond) },
	} {
		r := aReceipt()
		change(r)
		if _, err := seal.SignReceipt(r, k); !errors.Is(err, seal.ErrReceipt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	text := strings.Replace(string(file[:strings.Index(string(file), "\n\n")+1]), `"size": 12`, `"size":  12`, 1)
	other, err := note.Sign(&note.Note{Text: text}, k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.OpenReceipt(other); !errors.Is(err, seal.ErrReceipt) {
		t.Errorf("another form: %v", err)
	}
}

// A key signs no receipt once it was rotated away; those of before hold.
func TestReceiptsOfOldKeys(t *testing.T) {
	old, next := newPair(t), newPair(t)
	at := aReceipt().Time
	for _, c := range []struct {
		signer pair
		time   time.Time
		want   error
	}{{old, at.Add(-time.Second), nil}, {old, at, nil}, {old, at.Add(time.Second), seal.ErrRetired}, {next, at, nil}, {next, at.Add(-time.Hour), nil}} {
		rotation, err := seal.SignRotation(&seal.Rotation{Version: 1, Number: 1, OldKey: old.public, NewKey: next.public, Time: at}, old, next)
		if err != nil {
			t.Fatal(err)
		}
		r := aReceipt()
		r.Time = c.time
		file, err := seal.SignReceipt(r, c.signer)
		if err != nil {
			t.Fatal(err)
		}
		for _, trusted := range []string{old.public, next.public} {
			if _, err := ring(t, trusted, rotation).OpenReceipt(file); !errors.Is(err, c.want) {
				t.Errorf("of %s: %v, want %v", c.time, err, c.want)
			}
		}
	}
}
