package archive_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

// zeros is a source of nothing but zeros, however many.
func zeros(_ context.Context, _, length int64) (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(nought{}, length)), nil
}

type nought struct{}

func (nought) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// readerAt reads an archive by ranges, as the standard library's reader wants it.
type readerAt struct {
	t testing.TB
	a *archive.Archive
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(0, r.a.Size()-off))
	rc, err := r.a.ReadRange(r.t.Context(), min(off, r.a.Size()), n)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	got, err := io.ReadFull(rc, p[:n])
	if err == nil && got < len(p) {
		err = io.EOF
	}
	return got, err
}

func big(name string, size int64) archive.Entry {
	return archive.Entry{
		Name: name, Modified: modified, Method: archive.Stored, CRC32: 0xdeadbeef,
		CompressedSize: size, UncompressedSize: size, Open: zeros,
	}
}

func TestZip64Layouts(t *testing.T) {
	const limit = 1<<32 - 1
	small := archive.FromBytes("last.txt", modified, []byte("still here"))
	for _, c := range []struct {
		name    string
		entries []archive.Entry
		zip64   bool
	}{
		{"entry just below the limit", []archive.Entry{big("a", limit-1), small}, true}, // its end is beyond
		{"entry at the limit", []archive.Entry{big("a", limit), small}, true},
		{"entry of 5 GiB", []archive.Entry{big("a", 5<<30), small}, true},
		{"offset beyond the limit", []archive.Entry{big("a", 3<<30), big("b", 3<<30), small}, true},
		{"only the length is large", []archive.Entry{{
			Name: "a", Modified: modified, Method: archive.Deflated, CompressedSize: 5 << 20, UncompressedSize: 5 << 30, Open: zeros,
		}, small}, true},
		{"one terabyte", []archive.Entry{big("a", 1<<40), big("b", 7), small}, true},
		{"small", []archive.Entry{big("a", 100), small}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := mustNew(t, c.entries...)
			zr, err := zip.NewReader(readerAt{t, a}, a.Size())
			if err != nil {
				t.Fatal(err)
			}
			if len(zr.File) != len(c.entries) {
				t.Fatalf("got %d files", len(zr.File))
			}
			seen64 := false
			for i, f := range zr.File {
				want := c.entries[i]
				if f.Name != want.Name || int64(f.CompressedSize64) != want.CompressedSize || int64(f.UncompressedSize64) != want.UncompressedSize {
					t.Errorf("got %s %d %d, want %s %d %d", f.Name, f.CompressedSize64, f.UncompressedSize64,
						want.Name, want.CompressedSize, want.UncompressedSize)
				}
				seen64 = seen64 || f.ReaderVersion == 45
				at, err := f.DataOffset()
				if err != nil {
					t.Errorf("%s: %v", f.Name, err)
				}
				checkLocalHeader(t, a, at, f)
			}
			if seen64 != c.zip64 {
				t.Errorf("Zip64 used: %v, want %v", seen64, c.zip64)
			}
			rc, err := zr.File[len(zr.File)-1].Open()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(rc); err != nil || string(got) != "still here" {
				t.Errorf("last entry: %q, %v", got, err)
			}
		})
	}
}

// checkLocalHeader holds the local header against the directory: streaming readers use only it, and
// the standard library does not look at its sizes.
func checkLocalHeader(t *testing.T, a *archive.Archive, dataAt int64, f *zip.File) {
	t.Helper()
	extra := 9
	wide := f.CompressedSize64 >= 1<<32-1 || f.UncompressedSize64 >= 1<<32-1
	if wide {
		extra += 20
	}
	size := int64(30 + len(f.Name) + extra)
	head := make([]byte, size)
	if _, err := (readerAt{t, a}).ReadAt(head, dataAt-size); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	compressed, uncompressed := uint64(le.Uint32(head[18:])), uint64(le.Uint32(head[22:]))
	if wide {
		x := head[30+len(f.Name):]
		if le.Uint16(x) != 1 || le.Uint16(x[2:]) != 16 {
			t.Fatalf("%s: no Zip64 field in the local header", f.Name)
		}
		uncompressed, compressed = le.Uint64(x[4:]), le.Uint64(x[12:])
	}
	if le.Uint32(head) != 0x04034b50 || compressed != f.CompressedSize64 || uncompressed != f.UncompressedSize64 || le.Uint32(head[14:]) != f.CRC32 {
		t.Errorf("%s: local header says %d, %d", f.Name, compressed, uncompressed)
	}
}

func TestManyEntries(t *testing.T) {
	for _, count := range []int{65_534, 65_535, 65_536, 70_000} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			entries := make([]archive.Entry, count)
			for i := range entries {
				entries[i] = archive.FromBytes(fmt.Sprintf("%d/%d.csv", i/1000, i), modified, []byte{byte(i)})
			}
			a := mustNew(t, entries...)
			data := whole(t, a)
			zr, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if len(zr.File) != count {
				t.Fatalf("got %d files, want %d", len(zr.File), count)
			}
			for _, i := range []int{0, count / 2, count - 1} {
				rc, err := zr.File[i].Open()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, []byte{byte(i)}) {
					t.Errorf("entry %d: %v, %v", i, got, err)
				}
			}
			if _, err := exec.LookPath("python3"); err != nil || testing.Short() {
				return
			}
			path := filepath.Join(t.TempDir(), "many.zip")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "python3", "-c",
				"import sys,zipfile; z=zipfile.ZipFile(sys.argv[1]); assert len(z.namelist())==int(sys.argv[2]); assert z.testzip() is None",
				path, fmt.Sprint(count)).CombinedOutput()
			if err != nil {
				t.Errorf("python3: %v\n%s", err, out)
			}
		})
	}
}

// A source is counted through 5 GiB and found a byte short, without any of it being kept.
func TestLongSourceIsCounted(t *testing.T) {
	if testing.Short() {
		t.Skip("counts 5 GiB")
	}
	const size = 5 << 30
	e := big("long", size)
	if n, err := mustNew(t, e).WriteTo(t.Context(), io.Discard); err != nil || n <= size {
		t.Fatalf("%d, %v", n, err)
	}
	e.Open = func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return zeros(ctx, offset, length-1)
	}
	if _, err := mustNew(t, e).WriteTo(t.Context(), io.Discard); !errors.Is(err, archive.ErrSource) {
		t.Fatalf("got %v", err)
	}
}
