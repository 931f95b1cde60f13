package partitions_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/age"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/pipeline/partitions"
)

func identity(t *testing.T) age.Identity {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func encrypt(t *testing.T, dir string, identities ...age.Identity) *blob.Bucket {
	t.Helper()
	inner, err := partitions.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := partitions.Encrypt(inner, identities)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// Z11: nothing of what is stored is in the files, any part of it can be read, and age itself can read them.
func TestNothingIsStoredInPlain(t *testing.T) {
	t.Parallel()
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]age.Identity{"X25519": identity(t), "post-quantum": hybrid} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			b := encrypt(t, dir, key)
			for _, size := range []int{0, 1, 100, 64 << 10, 64<<10 + 1, 300_001} {
				text := make([]byte, size)
				_, _ = rand.Read(text)
				if err := b.WriteAll(t.Context(), "acme/04.csv.gz", text, nil); err != nil {
					t.Fatal(err)
				}
				file, err := os.ReadFile(filepath.Join(dir, "acme", "04.csv.gz"))
				if err != nil {
					t.Fatal(err)
				}
				if size >= 100 && bytes.Contains(file, text[:50]) {
					t.Errorf("%d bytes are there in plain", size)
				}
				whole, err := age.Decrypt(bytes.NewReader(file), key)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(whole); err != nil || !bytes.Equal(got, text) {
					t.Errorf("age reads other bytes, %v", err)
				}
				if _, sizes := listSizes(t, b, "", 10); sizes["acme/04.csv.gz"] != int64(size) {
					t.Errorf("it is told to have %d bytes, not %d", sizes["acme/04.csv.gz"], size)
				}
				for _, at := range [][2]int{{0, size}, {0, 10}, {size - min(size, 8), 8}, {size / 2, 70_000}, {size, 1}} {
					r, err := b.NewRangeReader(t.Context(), "acme/04.csv.gz", int64(at[0]), int64(at[1]), nil)
					if err != nil {
						t.Fatal(err)
					}
					want := text[at[0]:min(size, at[0]+at[1])]
					if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) || r.Size() != int64(size) {
						t.Errorf("%d bytes from %d on of %d: %d bytes of %d, %v", at[1], at[0], size, len(got), r.Size(), err)
					}
					if err := r.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// What was there in plain stays readable; with a new key in front, so does what the old one has, until all is
// written anew.
func TestKeysAtRestAreRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain, err := partitions.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	put(t, plain, "acme/03", "from before")
	put(t, plain, "acme/.exports/x.zip.age", "age-encryption.org/v1\nto somebody else")
	first, second, third := identity(t), identity(t), identity(t)
	put(t, encrypt(t, dir, first), "acme/04", "the first key's")
	b := encrypt(t, dir, second, first)
	put(t, b, "acme/05", "the second key's")
	reads := func(b *blob.Bucket) {
		t.Helper()
		for key, want := range map[string]string{
			"acme/03": "from before", "acme/04": "the first key's", "acme/05": "the second key's",
			"acme/.exports/x.zip.age": "age-encryption.org/v1\nto somebody else",
		} {
			if got, err := b.ReadAll(t.Context(), key); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", key, got, err)
			}
		}
	}
	reads(b)
	for _, b := range []*blob.Bucket{encrypt(t, dir, second), encrypt(t, dir, third)} {
		if _, err := b.ReadAll(t.Context(), "acme/04"); !errors.Is(err, partitions.ErrNoIdentity) {
			t.Errorf("without its key: %v", err)
		}
	}
	var again []string
	n, err := partitions.Reencrypt(t.Context(), b, func(key string) { again = append(again, key) })
	if err != nil || n != 2 || !slices.Equal(again, []string{"acme/03", "acme/04"}) {
		t.Errorf("written anew were %d, %q, %v", n, again, err)
	}
	reads(encrypt(t, dir, second))
	if n, err := partitions.Reencrypt(t.Context(), b, func(string) {}); err != nil || n != 0 {
		t.Errorf("a second time: %d, %v", n, err)
	}
	if _, err := partitions.Reencrypt(t.Context(), plain, func(string) {}); !errors.Is(err, partitions.ErrIdentities) {
		t.Errorf("of a store in plain: %v", err)
	}
}

// A flipped bit or a cut of a file is found when it is read; in the first bytes, by who wants a partition and gets none.
func TestSpoiledObjectIsNotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := encrypt(t, dir, identity(t))
	text := make([]byte, 70_000)
	put(t, b, "04", string(text))
	path := filepath.Join(dir, "04")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	try := func(what string, at int, spoiled []byte) {
		t.Helper()
		if err := os.WriteFile(path, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		tries++
		if got, err := b.ReadAll(t.Context(), "04"); err == nil && (bytes.Equal(got, text) || at >= len("age-encryption.org/v1\n")) {
			t.Errorf("%s at %d was read as %d bytes", what, at, len(got))
		}
	}
	for at := 0; at < len(file); at += 1 + at/25 {
		spoiled := bytes.Clone(file)
		spoiled[at] ^= 1
		try("a flipped bit", at, spoiled)
		if at >= len("age-encryption.org/v1\n") {
			try("a cut", at, file[:at])
		}
	}
	if tries < 200 {
		t.Errorf("only %d were tried", tries)
	}
}

func TestIdentitiesThatCanNotBe(t *testing.T) {
	t.Parallel()
	inner, _ := open(t)
	for _, text := range []string{"", "# nothing\n", "AGE-SECRET-KEY-1\n", "age1x\n"} {
		if _, err := partitions.Identities([]byte(text)); !errors.Is(err, partitions.ErrIdentities) {
			t.Errorf("%q: %v", text, err)
		}
	}
	scrypt, err := age.NewScryptIdentity("secret")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range [][]age.Identity{nil, {scrypt}} {
		if _, err := partitions.Encrypt(inner, i); !errors.Is(err, partitions.ErrIdentities) {
			t.Errorf("%v: %v", i, err)
		}
	}
}
