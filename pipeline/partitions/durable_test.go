package partitions

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
)

// The order in which things come to disk: the directories an object is in, its bytes before it has its
// name, and then the name.
func TestObjectIsDurableWhenItIsClosed(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "store")
	d := newDirectory(root)
	var synced []string
	d.sync = func(f *os.File) error {
		name, err := filepath.Rel(root, f.Name())
		if err != nil {
			return err
		}
		if filepath.Ext(name) == unfinished {
			name = "bytes"
		}
		if _, err := os.Stat(filepath.Join(root, "acme", "access", "04")); err == nil {
			name += " after naming"
		}
		synced = append(synced, name)
		return f.Sync()
	}
	if err := d.makeDurable(root); err != nil {
		t.Fatal(err)
	}
	b := blob.NewBucket(d)
	defer b.Close()
	write := func(key string) []string {
		t.Helper()
		synced = nil
		if err := b.WriteAll(t.Context(), key, []byte("text"), nil); err != nil {
			t.Fatal(err)
		}
		return synced
	}
	if got, want := write("acme/access/04"), []string{"acme", ".", "..", "bytes", "acme/access after naming"}; !slices.Equal(got, want) {
		t.Errorf("synced were %q, want %q", got, want)
	}
	if got, want := write("acme/access/05"), []string{"bytes after naming", "acme/access after naming"}; !slices.Equal(got, want) {
		t.Errorf("in a directory that is known, %q, want %q", got, want)
	}
	if err := os.RemoveAll(filepath.Join(root, "acme")); err != nil {
		t.Fatal(err)
	}
	if got := write("acme/access/06"); len(got) != 5 {
		t.Errorf("in a directory that is gone, %q were synced", got)
	}
	d.sync = func(*os.File) error { return os.ErrDeadlineExceeded }
	if err := b.WriteAll(t.Context(), "acme/access/07", nil, nil); err == nil {
		t.Error("a disk that fails is not told of")
	}
	if ok, err := b.Exists(t.Context(), "acme/access/07"); ok || err != nil {
		t.Errorf("and its object is there: %v, %v", ok, err)
	}
}

// A disk that fills up amid an object leaves nothing under its name, though the bucket closes the writer all
// the same. A manifest cut short would end its chain for good.
func TestObjectThatCouldNotBeWrittenIsNotThere(t *testing.T) {
	t.Parallel()
	d := newDirectory(t.TempDir())
	w, err := d.NewTypedWriter(t.Context(), "acme/access/04.manifest", "", &driver.WriterOptions{IfNotExist: true})
	if err != nil {
		t.Fatal(err)
	}
	full := w.(*writer)
	name := full.file.Name()
	if err := full.file.Close(); err != nil {
		t.Fatal(err)
	}
	if full.file, err = os.Open(name); err != nil { // it takes no bytes, and can be synced
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("text")); err == nil {
		t.Fatal("it was written")
	}
	if err := w.Close(); err == nil {
		t.Error("closed as if all were well")
	}
	left, err := filepath.Glob(filepath.Join(d.root, "acme", "access", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
