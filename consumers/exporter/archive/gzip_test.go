package archive_test

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

func TestGzipThatCanNotBeCopied(t *testing.T) {
	data := csv(500, 7)
	plain := gz(t, data, 6)
	var named bytes.Buffer
	w := gzip.NewWriter(&named)
	w.Name = "04.csv"
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	small := gz(t, []byte("x"), 6)
	for _, c := range []struct{ name, reason string }{
		{"named", "optional fields"},
		{"two members, the last small", "several members"},
		{"not gzip", "instead of 1f8b"},
		{"short", "only 5 bytes"},
		{"impossible", "can not hold"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := map[string][]byte{
				"named":                       named.Bytes(),
				"two members, the last small": append(bytes.Clone(plain), small...),
				"not gzip":                    []byte(strings.Repeat("PK\x03\x04", 10)),
				"short":                       plain[:5],
				"impossible":                  append(bytes.Clone(plain[:len(plain)-1]), 0x7f),
			}[c.name]
			_, err := archive.FromGzip(t.Context(), "04.csv", modified, int64(len(file)), opener(file), nil)
			if !errors.Is(err, archive.ErrGzip) || !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), "04.csv") {
				t.Errorf("FromGzip: %v, want %q", err, c.reason)
			}
		})
	}
}

func TestGzipHeldAgainstWhatIsKnown(t *testing.T) {
	data := csv(500, 7)
	file := gz(t, data, 6)
	known := archive.Content{Size: int64(len(data)), CRC32: crc32.ChecksumIEEE(data)}
	if _, err := archive.FromGzip(t.Context(), "a", modified, int64(len(file)), opener(file), &known); err != nil {
		t.Fatal(err)
	}
	two := append(bytes.Clone(file), file...)
	both := archive.Content{Size: 2 * known.Size, CRC32: crc32.Update(known.CRC32, crc32.IEEETable, data)}
	for name, err := range map[string]error{
		"other size":  second(archive.FromGzip(t.Context(), "a", modified, int64(len(file)), opener(file), &archive.Content{Size: 1, CRC32: known.CRC32})),
		"other crc":   second(archive.FromGzip(t.Context(), "a", modified, int64(len(file)), opener(file), &archive.Content{Size: known.Size})),
		"two members": second(archive.FromGzip(t.Context(), "a", modified, int64(len(two)), opener(two), &both)),
	} {
		if !errors.Is(err, archive.ErrGzip) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A file of 5 MB could hold more than 4 GiB, and its trailer would not tell.
func TestAmbiguousLengthMustBeKnown(t *testing.T) {
	const size = 6_000_000
	trailer := []byte{1, 2, 3, 4, 0, 0, 0x10, 0} // 1 MiB, or 4 GiB and 1 MiB
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	open := func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
		if offset == 0 {
			return io.NopCloser(bytes.NewReader(header[:length])), nil
		}
		return io.NopCloser(bytes.NewReader(trailer[:length])), nil
	}
	_, err := archive.FromGzip(t.Context(), "a", modified, size, open, nil)
	if !errors.Is(err, archive.ErrGzip) || !strings.Contains(err.Error(), "pass the size") {
		t.Fatalf("got %v", err)
	}
	e, err := archive.FromGzip(t.Context(), "a", modified, size, open, &archive.Content{Size: 1<<32 + 1<<20, CRC32: 0x04030201})
	if err != nil || e.UncompressedSize != 1<<32+1<<20 {
		t.Fatalf("got %d, %v", e.UncompressedSize, err)
	}
}
