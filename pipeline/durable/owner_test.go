package durable_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kansa-audit/kansa/pipeline/durable"
)

// service is a user that is not root.
const service = 65534

// What root writes in the directory of a service belongs to the service, and what replaces a file to the file's owner.
func TestFilesOfRootBelongToTheOwnerOfTheDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, which may change owners")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(at("roots"), nil, 0o600))
	must(os.Chown(dir, service, service))
	must(durable.New(at("new"), []byte("x"), 0o600))
	must(durable.Replace(at("replaced"), []byte("x"), 0o600))
	must(durable.Replace(at("replaced"), []byte("y"), 0o644))
	must(durable.Replace(at("roots"), []byte("y"), 0o600))
	must(durable.MkdirAll(at("a/b/c"), 0o700))
	must(durable.MkdirAll(at("a/b/c"), 0o700))
	lock, err := durable.Lock(at("lock"), 0)
	must(err)
	must(lock.Close())
	for name, want := range map[string]uint32{"new": service, "replaced": service, "roots": 0, "a": service, "a/b": service, "a/b/c": service, "lock": service} {
		info, err := os.Stat(at(name))
		must(err)
		if s := info.Sys().(*syscall.Stat_t); s.Uid != want || s.Gid != want {
			t.Errorf("%s belongs to %d:%d, want %d", name, s.Uid, s.Gid, want)
		}
	}
	if err := durable.MkdirAll(at("new/x"), 0o700); err == nil {
		t.Error("a directory was made below a file")
	}
}
