package partitions_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/pipeline/partitions"
)

// stores are the ways to open one. What holds for one holds for the other.
var stores = map[string]func(*testing.T) (*blob.Bucket, string){"plain": open, "encrypted": openEncrypted, "s3": openS3}

func openEncrypted(t *testing.T) (*blob.Bucket, string) {
	t.Helper()
	dir := t.TempDir()
	return encrypt(t, dir, identity(t)), dir
}

func open(t *testing.T) (*blob.Bucket, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a b", "partitions")
	b, err := partitions.Open(t.Context(), "file://"+filepath.ToSlash(strings.ReplaceAll(dir, " ", "%20")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, dir
}

func put(t *testing.T, b *blob.Bucket, key, text string) {
	t.Helper()
	if err := b.WriteAll(t.Context(), key, []byte(text), nil); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) { t.Parallel(); whatIsWrittenIsRead(t, open) })
	}
}

func whatIsWrittenIsRead(t *testing.T, open func(*testing.T) (*blob.Bucket, string)) {
	b, _ := open(t)
	put(t, b, "acme/access/04.csv.gz", "first")
	put(t, b, "acme/access/04.csv.gz", "0123456789")
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, 4, "3456"}, {8, 100, "89"}, {4, 0, ""}} {
		r, err := b.NewRangeReader(t.Context(), "acme/access/04.csv.gz", c.offset, c.length, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != c.want || r.Size() != 10 {
			t.Errorf("%d bytes from %d on: %q of %d, %v; want %q", c.length, c.offset, got, r.Size(), err, c.want)
		}
		_ = r.Close()
	}
	if err := b.Copy(t.Context(), "copy", "acme/access/04.csv.gz", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ReadAll(t.Context(), "copy"); err != nil || string(got) != "0123456789" {
		t.Errorf("the copy has %q, %v", got, err)
	}
	if a, err := b.Attributes(t.Context(), "copy"); err != nil || a.Size != 10 {
		t.Errorf("its attributes are %+v, %v", a, err)
	}
	if err := b.Delete(t.Context(), "copy"); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"deleted": b.Delete(t.Context(), "copy"), "read": second(b.ReadAll(t.Context(), "copy")),
		"a directory": second(b.ReadAll(t.Context(), "acme")), "copied": b.Copy(t.Context(), "x", "copy", nil),
	} {
		if gcerrors.Code(err) != gcerrors.NotFound {
			t.Errorf("%s, although it is not there: %v", name, err)
		}
	}
}

// What a directory has of its own: a key is a path below it, and a range that begins at the end is empty, which S3 refuses.
func TestDirectory(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) (*blob.Bucket, string){"plain": open, "encrypted": openEncrypted} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _ := open(t)
			for _, key := range []string{"../x", "/x", "a/../../x", "a//b", "x.tmp", "a/"} {
				if err := b.WriteAll(t.Context(), key, nil, nil); gcerrors.Code(err) != gcerrors.InvalidArgument {
					t.Errorf("%q was taken for a key: %v", key, err)
				}
			}
			put(t, b, "x", "0123456789")
			for _, at := range []int64{10, 99} {
				r, err := b.NewRangeReader(t.Context(), "x", at, -1, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
					t.Errorf("from %d on: %q, %v", at, got, err)
				}
				_ = r.Close()
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// Nothing is under a name before all of it is, and what is given up leaves nothing.
func TestObjectAppearsWhole(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) { t.Parallel(); objectAppearsWhole(t, open) })
	}
}

func objectAppearsWhole(t *testing.T, open func(*testing.T) (*blob.Bucket, string)) {
	b, dir := open(t)
	put(t, b, "day/04", "old")
	ctx, giveUp := context.WithCancel(t.Context())
	w, err := b.NewWriter(ctx, "day/04", &blob.WriterOptions{ContentType: "text/csv"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ReadAll(t.Context(), "day/04"); err != nil || string(got) != "old" {
		t.Errorf("before it is closed, there is %q, %v", got, err)
	}
	if keys := list(t, b, "", 10); !slices.Equal(keys, []string{"day/04"}) {
		t.Errorf("before it is closed, there are %q", keys)
	}
	giveUp()
	if err := w.Close(); !errors.Is(err, context.Canceled) {
		t.Errorf("closed after it was given up: %v", err)
	}
	put(t, b, "day/05", "whole")
	err = b.WriteAll(t.Context(), "day/05", []byte("other"), &blob.WriterOptions{IfNotExist: true})
	if gcerrors.Code(err) != gcerrors.FailedPrecondition {
		t.Errorf("a second one, if there is none: %v", err)
	}
	if err := b.WriteAll(t.Context(), "day/06", []byte("first"), &blob.WriterOptions{IfNotExist: true}); err != nil {
		t.Error(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "day"))
	if err != nil || len(files) != 3 {
		t.Errorf("in the directory are %v, %v; want 3 files", files, err)
	}
	if got, err := b.ReadAll(t.Context(), "day/05"); err != nil || string(got) != "whole" {
		t.Errorf("there is %q, %v", got, err)
	}
}

func list(t *testing.T, b *blob.Bucket, prefix string, size int) (keys []string) {
	keys, _ = listSizes(t, b, prefix, size)
	return keys
}

func listSizes(t *testing.T, b *blob.Bucket, prefix string, size int) (keys []string, sizes map[string]int64) {
	t.Helper()
	sizes = map[string]int64{}
	for token := blob.FirstPageToken; token != nil; {
		objects, next, err := b.ListPage(t.Context(), token, size, &blob.ListOptions{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			keys = append(keys, o.Key)
			sizes[o.Key] = o.Size
		}
		token = next
	}
	return keys, sizes
}

// Pages of any size, put together, are the keys with a prefix, in the order of their bytes.
func TestListIsSortedAndComplete(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) { t.Parallel(); listIsSortedAndComplete(t, open) })
	}
}

func listIsSortedAndComplete(t *testing.T, open func(*testing.T) (*blob.Bucket, string)) {
	b, dir := open(t)
	all := []string{"a", "a-b/1", "a.b", "a0/2", "acme/access/2026/11/22/04.csv.gz", "acme/access/2026/11/22/04.manifest.json", "acme/x", "b/y/z"}
	for h := range 30 {
		all = append(all, fmt.Sprintf("acme/access/2026/12/%02d/00.csv.gz", h))
	}
	for _, key := range all {
		put(t, b, key, key)
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty", "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	for _, prefix := range []string{"", "a", "a/", "acme/", "acme/access/2026/1", "acme/access/2026/12/", "acme/access/2026/12/03", "nothing/here", "empty/"} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		for _, size := range []int{1, 2, 7, 1000} {
			got, sizes := listSizes(t, b, prefix, size)
			if !slices.Equal(got, want) {
				t.Errorf("prefix %q by %d: %q, want %q", prefix, size, got, want)
			}
			for key, bytes := range sizes { // each holds its own key
				if bytes != int64(len(key)) {
					t.Errorf("%s has %d bytes, want %d", key, bytes, len(key))
				}
			}
		}
	}
}

func TestStoreThatCanNotBe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"file://" + file, "file://%zz", "nonsense://x"} {
		if _, err := partitions.Open(t.Context(), target); err == nil {
			t.Errorf("%s was opened", target)
		}
	}
}

// Directories are told by a delimiter, on however many pages.
func TestListDirectories(t *testing.T) {
	t.Parallel()
	b, _ := open(t)
	for _, key := range []string{"acme/activity/1", "acme/access/2", "globex/activity/3", "zeta/4", "keys/0", "top"} {
		put(t, b, key, "x")
	}
	for prefix, want := range map[string][]string{"": {"acme/", "globex/", "keys/", "top", "zeta/"}, "acme/": {"acme/access/", "acme/activity/"}} {
		for size := 1; size < 7; size++ {
			var got []string
			for token := blob.FirstPageToken; token != nil; {
				page, next, err := b.ListPage(t.Context(), token, size, &blob.ListOptions{Prefix: prefix, Delimiter: "/"})
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range page {
					got = append(got, o.Key)
				}
				token = next
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q by %d: %q", prefix, size, got)
			}
		}
	}
}
