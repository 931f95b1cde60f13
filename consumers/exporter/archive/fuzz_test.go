package archive_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

// FuzzLayout makes random entries: what New accepts, the standard library must read, and any range
// must be a slice of the whole.
func FuzzLayout(f *testing.F) {
	f.Add(uint64(1), uint8(3), "a.csv", []byte("data"), int64(1_700_000_000))
	f.Add(uint64(2), uint8(0), "", []byte{}, int64(0))
	f.Add(uint64(3), uint8(40), "日本", bytes.Repeat([]byte("ab"), 500), int64(-1))
	f.Add(uint64(4), uint8(9), "con", []byte{0}, int64(1)<<40)
	f.Fuzz(func(t *testing.T, seed uint64, count uint8, name string, data []byte, seconds int64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var entries []archive.Entry
		var want [][]byte
		at := time.Unix(seconds%(1<<42), 0)
		add := func(name string) {
			part := data[:rnd.IntN(len(data)+1)]
			if rnd.IntN(2) == 0 {
				entries = append(entries, archive.FromBytes(name, at, part))
			} else {
				e := fromGzip(t, name, part, 1+rnd.IntN(9))
				e.Modified = at
				entries = append(entries, e)
			}
			want = append(want, part)
		}
		if archive.CheckName(name) == nil {
			add(name)
		}
		for i := range count % 12 {
			add(fmt.Sprintf("d%d/%d.csv", rnd.IntN(3), i))
		}
		a, err := archive.New(entries)
		if err != nil {
			return // not an archive that anyone asks for
		}
		all := whole(t, a)
		zr, err := zip.NewReader(bytes.NewReader(all), int64(len(all)))
		if err != nil {
			t.Fatal(err)
		}
		for i, file := range zr.File {
			rc, err := file.Open()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, want[i]) || file.Name != entries[i].Name {
				t.Fatalf("%q: %v", file.Name, err)
			}
		}
		from := rnd.IntN(len(all))
		length := rnd.IntN(len(all) - from)
		rc, err := a.ReadRange(t.Context(), int64(from), int64(length))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, all[from:from+length]) {
			t.Fatalf("range %d+%d: %v", from, length, err)
		}
	})
}
