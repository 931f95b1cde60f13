package keys_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

var hour = schema.Partition{
	Organization: "acme", Trail: schema.Access, Hour: time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC), Length: time.Hour,
}

type place struct {
	dir    string
	bucket *blob.Bucket
}

func newPlace(t *testing.T) place {
	t.Helper()
	p := place{t.TempDir(), memblob.OpenBucket(nil)}
	t.Cleanup(func() { _ = p.bucket.Close() })
	return p
}

func (p place) open(t *testing.T) *keys.Keys {
	t.Helper()
	k, err := keys.Open(t.Context(), p.dir, p.bucket)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

func (p place) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(p.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// seal puts a manifest into the store.
func (p place) seal(t *testing.T, k *keys.Keys, h int) *seal.Sealed {
	t.Helper()
	of := hour
	of.Hour = of.Hour.Add(time.Duration(h) * time.Hour)
	file, err := k.Seal(t.Context(), seal.New(of))
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.bucket.WriteAll(t.Context(), of.ManifestKey(), file, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKeyIsMadeOnceAndKeptSecret(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	k := p.open(t)
	for name, mode := range map[string]os.FileMode{keys.PrivateFile: 0o600, keys.PublicFile: 0o644} {
		if info, err := os.Stat(p.path(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, mode)
		}
	}
	if got := p.read(t, keys.PublicFile); got != k.Public()+"\n" {
		t.Errorf("%s holds %q", keys.PublicFile, got)
	}
	if got := p.read(t, keys.PrivateFile); !strings.HasPrefix(got, "PRIVATE+KEY+kansa+") {
		t.Error("the private key is not in the form of notes")
	}
	p.seal(t, k, 0)
	if again := p.open(t); again.Public() != k.Public() {
		t.Errorf("at the next start it is %s, it was %s", again.Public(), k.Public())
	}
	if files, err := os.ReadDir(p.dir); err != nil || len(files) != 2 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// Whatever is wrong, it is said what, where and what to do, and no new key is made.
func TestFaultsOfKeys(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(p place) error
		want  error
		says  string
	}{
		"missing":        {func(p place) error { return os.Remove(p.path(keys.PrivateFile)) }, keys.ErrMissing, "backup"},
		"mode":           {func(p place) error { return os.Chmod(p.path(keys.PrivateFile), 0o640) }, keys.ErrMode, "chmod 600"},
		"damaged":        {func(p place) error { return os.WriteFile(p.path(keys.PrivateFile), []byte("PRIVATE+KEY+x\n"), 0o600) }, keys.ErrDamaged, "backup"},
		"empty":          {func(p place) error { return os.WriteFile(p.path(keys.PrivateFile), nil, 0o600) }, keys.ErrDamaged, "backup"},
		"public damaged": {func(p place) error { return os.WriteFile(p.path(keys.PublicFile), []byte("x\n"), 0o644) }, keys.ErrDamaged, "remove it"},
		"of another": {func(p place) error {
			other := newPlace(t)
			other.open(t)
			return os.WriteFile(p.path(keys.PrivateFile), []byte(other.read(t, keys.PrivateFile)), 0o600)
		}, keys.ErrForeign, "copy seal.key"},
		"first key lost": {func(p place) error { return p.bucket.Delete(t.Context(), seal.FirstKey) }, keys.ErrForeign, seal.FirstKey},
		"all keys lost": {func(p place) error {
			return errors.Join(os.Remove(p.path(keys.PrivateFile)), p.bucket.Delete(t.Context(), seal.FirstKey))
		}, keys.ErrMissing, "backup"},
		"first key damaged": {func(p place) error {
			return p.bucket.WriteAll(t.Context(), seal.FirstKey, []byte("x"), nil)
		}, nil, seal.FirstKey},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			running := p.open(t)
			p.seal(t, running, 0)
			if err := c.spoil(p); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(p.path(keys.PrivateFile))
			for what, err := range map[string]error{
				"open": func() error { _, err := keys.Open(t.Context(), p.dir, p.bucket); return err }(),
				"rotate": func() error {
					_, err := keys.Rotate(t.Context(), p.dir, p.bucket, hour.Hour)
					return err
				}(),
			} {
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: got %v, want %v and %q", what, err, c.want, c.says)
				}
			}
			after, _ := os.ReadFile(p.path(keys.PrivateFile))
			if string(after) != string(before) {
				t.Error("the key was replaced")
			}
		})
	}
}

func TestRotationWhileRunning(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	running := p.open(t)
	first := running.Public()
	p.seal(t, running, 0)
	for n := 1; n <= 3; n++ {
		old := running.Public()
		r, err := keys.Rotate(t.Context(), p.dir, p.bucket, hour.Hour.Add(time.Duration(n)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if r.OldKey != old || r.Number != uint64(n) {
			t.Errorf("got %+v", r)
		}
		if s := p.seal(t, running, n); s.Generation != n || running.Public() != r.NewKey {
			t.Errorf("after rotation %d it seals with generation %d", n, s.Generation)
		}
	}
	ring := p.open(t).Ring()
	for h := range 4 {
		of := hour
		of.Hour = of.Hour.Add(time.Duration(h) * time.Hour)
		file, err := p.bucket.ReadAll(t.Context(), of.ManifestKey())
		if err != nil {
			t.Fatal(err)
		}
		if s, err := ring.Open(file); err != nil || s.Generation != h {
			t.Errorf("hour %d: %+v, %v", h, s, err)
		}
	}
	if ring.Keys()[0] != first {
		t.Error("the ring does not begin with the first key")
	}
	if files, err := os.ReadDir(p.dir); err != nil || len(files) != 2 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// A rotation that is cut off leaves either key in office, and the next start knows which.
func TestRotationIsCutOff(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	k := p.open(t)
	p.seal(t, k, 0)
	old := p.read(t, keys.PrivateFile)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keys.Rotate(gone, p.dir, p.bucket, hour.Hour); err == nil {
		t.Fatal("it rotated without a store")
	}
	if p.open(t).Public() != k.Public() {
		t.Error("the key changed though nothing was stated")
	}
	r, err := keys.Rotate(t.Context(), p.dir, p.bucket, hour.Hour.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// As if it had ended before the new key took its place, and before seal.pub was written.
	fresh := p.read(t, keys.PrivateFile)
	for name, text := range map[string]string{keys.PrivateFile: old, keys.PrivateFile + ".next": fresh, keys.PublicFile: r.OldKey + "\n"} {
		if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.open(t); got.Public() != r.NewKey || p.read(t, keys.PublicFile) != r.NewKey+"\n" {
		t.Errorf("it seals with %s, want %s", got.Public(), r.NewKey)
	}
	if files, err := os.ReadDir(p.dir); err != nil || len(files) != 2 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// Two processes that start at once in different places end up with one key, or one of them with an error.
func TestTwoFirstStarts(t *testing.T) {
	t.Parallel()
	a := newPlace(t)
	b := place{t.TempDir(), a.bucket}
	a.open(t)
	if _, err := keys.Open(t.Context(), b.dir, b.bucket); !errors.Is(err, keys.ErrMissing) {
		t.Errorf("a machine without the key: %v", err)
	}
	if err := os.WriteFile(b.path(keys.PrivateFile), []byte(a.read(t, keys.PrivateFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if b.open(t).Public() != a.open(t).Public() {
		t.Error("two keys")
	}
}
