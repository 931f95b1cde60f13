package archive_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

// What is opened has the entries that were laid out, and makes the same archive again.
func TestOpenGivesWhatWasLaidOut(t *testing.T) {
	t.Parallel()
	a := mustNew(t,
		archive.FromBytes("README.txt", modified, []byte("what this is")),
		fromGzip(t, "acme/access/2026/11/22/04.csv", csv(3000, 1), 1),
		archive.FromBytes("acme/access/2026/11/22/04.manifest", modified, []byte("{}")),
		fromGzip(t, "日本.csv", nil, 6),
	)
	data := whole(t, a)
	entries, err := archive.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if again := whole(t, mustNew(t, entries...)); !bytes.Equal(again, data) {
		t.Error("the entries make another archive")
	}
	zeros := mustNew(t, big("a", 3<<30), big("b", 3<<30), archive.FromBytes("c", modified, []byte("c")))
	if entries, err := archive.Open(readerAt{t, zeros}, zeros.Size()); err != nil || len(entries) != 3 {
		t.Errorf("of 6 GiB: %v, %v", entries, err)
	}
}

// Nothing can be changed, put in or taken away outside of the bodies.
func TestOpenFindsWhatIsNotTheLayout(t *testing.T) {
	t.Parallel()
	a := mustNew(t,
		archive.FromBytes("a.txt", modified, []byte("abc")),
		fromGzip(t, "b/c.csv", []byte("one,two\r\n"), 6),
		archive.FromBytes("empty", modified, nil),
	)
	data := whole(t, a)
	refused := func(what string, bad []byte) {
		t.Helper()
		if entries, err := archive.Open(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, archive.ErrLayout) {
			t.Errorf("%s: %d entries, %v", what, len(entries), err)
		}
	}
	entries, err := archive.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	inBody := func(i int) bool {
		at := 0
		for _, e := range entries {
			at += 30 + len(e.Name) + 9 // with the time
			if i >= at && i < at+int(e.CompressedSize) {
				return true
			}
			at += int(e.CompressedSize)
		}
		return false
	}
	for i := range len(data) * 8 {
		if inBody(i / 8) {
			continue
		}
		bad := bytes.Clone(data)
		bad[i/8] ^= 1 << (i % 8)
		refused(fmt.Sprintf("bit %d of byte %d", i%8, i/8), bad)
	}
	for n := range data {
		refused(fmt.Sprintf("cut at %d", n), data[:n])
		refused(fmt.Sprintf("a byte more at %d", n), bytes.Join([][]byte{data[:n], {'x'}, data[n:]}, nil))
		refused(fmt.Sprintf("a byte less at %d", n), bytes.Join([][]byte{data[:n], data[n+1:]}, nil))
	}
	refused("a byte behind", append(bytes.Clone(data), 0))
	refused("twice", append(bytes.Clone(data), data...))
	for name, names := range map[string][]string{"one name twice": {"x", "x"}, "a case apart": {"x", "X"}, "out of the folder": {"../x"}, "a folder": {"x/"}} {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for _, n := range names {
			if _, err := w.CreateRaw(&zip.FileHeader{Name: n}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		refused(name, b.Bytes())
	}
}

type sick struct{ error }

func (s sick) ReadAt([]byte, int64) (int, error) { return 0, s.error }

func TestDiskFaultIsNoLayoutFault(t *testing.T) {
	t.Parallel()
	fault := errors.New("input/output error")
	if _, err := archive.Open(sick{fault}, 1000); !errors.Is(err, fault) || errors.Is(err, archive.ErrLayout) {
		t.Errorf("got %v", err)
	}
}

// Whatever the file, Open does not panic, and what it takes is what New makes.
func FuzzOpen(f *testing.F) {
	good := whole(f, mustNew(f, archive.FromBytes("a.txt", modified, []byte("abc")), fromGzip(f, "b/c.csv", []byte("one,two\r\n"), 6)))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("PK\x05\x06" + string(make([]byte, 18))))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		bad := bytes.Clone(good)
		bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := archive.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if !errors.Is(err, archive.ErrLayout) {
				t.Errorf("got %v", err)
			}
			return
		}
		a, err := archive.New(entries)
		if err != nil {
			t.Fatal(err)
		}
		again, err := io.ReadAll(a.NewReader(t.Context()))
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("its entries make another archive: %v", err)
		}
	})
}
