package verify

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gocloud.dev/blob/memblob"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	activity = schema.Activity
	access   = schema.Access
)

func at(hour int) time.Time { return sealtest.Start.Add(time.Duration(hour) * time.Hour) }

// newStore is one of two trails, an empty hour in each, and a rotation in the third hour. It returns the
// first key too.
func newStore() (*sealtest.Store, sealtest.Key) {
	first, second := sealtest.NewKey(), sealtest.NewKey()
	s := sealtest.New(first)
	s.Hours("acme", activity, 5, 0)
	s.Hours("acme", access, 4, 3)
	s.Rotate(second, at(2))
	for h, n := range []int{7, 2} {
		for _, trail := range schema.Trails {
			p := sealtest.Partition("acme", trail, h+2)
			s.Add(p, s.Events(p, n))
		}
	}
	return s, first
}

// strict are options under which nothing may be missing of newStore.
func strict(key sealtest.Key) Options {
	return Options{Key: key.Public, FromStart: true, From: at(0), To: at(4), Parallel: 1}
}

// inMemory are the files of a store, as openStore lists them.
func inMemory(s *sealtest.Store) *files {
	l := newFiles()
	for name, data := range s.Files {
		l.add(file{name: name, size: int64(len(data)), plain: strings.HasSuffix(name, ".csv"), open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}})
	}
	return l
}

// verifyStore verifies a store in memory.
func verifyStore(t testing.TB, s *sealtest.Store, o Options) *Report {
	t.Helper()
	r := newReport("store", Store)
	if err := verifyFiles(t.Context(), inMemory(s), o, r); err != nil {
		t.Fatal(err)
	}
	r.finish(time.Now())
	return r
}

// verifyZip verifies an archive in memory.
func verifyZip(t testing.TB, data []byte, o Options) *Report {
	t.Helper()
	r := newReport("a.zip", Archive)
	l, err := archiveFiles(bytes.NewReader(data), int64(len(data)), "a.zip", r)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyFiles(t.Context(), l, o, r); err != nil {
		t.Fatal(err)
	}
	r.finish(time.Now())
	return r
}

// zipOf is the archive that the exporter makes of a store's hours.
func zipOf(t testing.TB, s *sealtest.Store, from, to int) []byte {
	t.Helper()
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	for name, data := range s.Files {
		if err := bucket.WriteAll(t.Context(), name, data, nil); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := exporter.PlanArchive(t.Context(), bucket, &exporter.Request{
		ID: "x", Organization: "acme", Trails: schema.Trails, From: at(from), To: at(to), MailTo: []string{"a@b.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := plan.WriteTo(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// onDiskAt writes a store to a folder.
func onDiskAt(t testing.TB, dir string, s *sealtest.Store) {
	t.Helper()
	for name, data := range s.Files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
