package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

// Z11: a store is encrypted with a key that the tool makes, then with another, and verified and proved from with the key
// at hand.
func TestEncryptStore(t *testing.T) {
	t.Parallel()
	key := sealtest.NewKey()
	s := sealtest.New(key)
	p := sealtest.Partition("acme", schema.Access, 0)
	list := s.Events(p, 20)
	s.Add(p, list)
	data := t.TempDir()
	file := func(name string) string { return filepath.Join(data, filepath.FromSlash(name)) }
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range s.Files {
		write("partitions/"+name, string(text))
	}
	write("seal.key", key.Private+"\n")
	write("seal.pub", key.Public+"\n")
	at := file("at-rest.key")
	write("kansa.yaml", "data_dir: "+data+"\nencryption:\n  partitions: {file: "+at+"}\n")
	want := func(code int, says string, args ...string) {
		t.Helper()
		got, out, errs := kansa(t, "", args...)
		if got != code || !strings.Contains(out+errs, says) {
			t.Errorf("kansa %s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), got, code, says, out, errs)
		}
	}
	store, config := file("partitions"), file("kansa.yaml")
	objects := len(s.Files)
	for range 2 { // the second key goes in front of the first
		want(0, "encryption.partitions.file", "key", "generate", "partitions", "-o", at)
		want(0, plural(objects), "key", "encrypt", "-c", config)
		want(0, "0 objects", "key", "encrypt", "-c", config)
		want(0, "20 rows", "verify", store, "-k", file("seal.pub"), "-i", at)
	}
	want(0, "row 1 of 20", "prove", store, "-i", at, "--event", list[0].ID.String(), "-o", file("event.proof"))
	want(exitUsage, "--identity", "verify", store, "-k", file("seal.pub"))
	want(exitUsage, "--identity", "verify", store, "-k", file("seal.pub"), "-i", file("seal.pub"))
	want(1, "encryption.partitions", "key", "encrypt", "--data-dir", data)
	want(0, key.Public, "key", "show", "-c", config)
	want(1, "is encrypted, and no key for it was given: name the configuration", "key", "show", "--data-dir", data)
	want(1, "is encrypted, and no key for it was given: name the configuration", "key", "rotate", "--data-dir", data)

	streams := file("streams.key")
	want(0, "", "key", "generate", "streams", "-o", streams)
	first, err := os.ReadFile(streams)
	if err != nil {
		t.Fatal(err)
	}
	want(0, "", "key", "generate", "streams", "-o", streams)
	if before, err := os.ReadFile(streams + ".before"); err != nil || string(before) != string(first) {
		t.Errorf("the key before is %q, %v; want %q", before, err, first)
	}
	want(exitUsage, "clickhouse", "key", "generate", "everything", "-o", streams)
}

func plural(n int) string { return grouped(uint64(n)) + " objects encrypted anew" }
