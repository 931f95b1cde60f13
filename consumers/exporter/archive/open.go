package archive

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// ErrLayout marks a file that is not, byte for byte, an archive as this package lays it out.
var ErrLayout = errors.New("archive: not laid out as it was made")

// Open reads the layout of an archive that New made. Every byte outside of the entries' bodies has to be
// what New would write for them: so there are no two entries of one name, none outside of the directory,
// no local header that says something else than the directory, nothing before, between or behind, no
// comment. It reads no body, and does not check any; each entry's Open does the reading.
func Open(r io.ReaderAt, size int64) ([]Entry, error) {
	w := &watched{ReaderAt: r}
	z, err := zip.NewReader(w, size)
	if err != nil {
		return nil, w.fault("it is no ZIP file: %v", err)
	}
	entries := make([]Entry, len(z.File))
	for i, f := range z.File {
		if f.CompressedSize64 > math.MaxInt64/4 || f.UncompressedSize64 > math.MaxInt64/4 {
			return nil, fmt.Errorf("%w: entry %q: sizes %d and %d are out of range", ErrLayout, f.Name, f.CompressedSize64, f.UncompressedSize64)
		}
		entries[i] = Entry{
			Name: f.Name, Modified: f.Modified, Method: Method(f.Method), CRC32: f.CRC32,
			CompressedSize: int64(f.CompressedSize64), UncompressedSize: int64(f.UncompressedSize64),
			Open: func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, errClosed },
		}
	}
	a, err := New(entries)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	if a.size != size {
		return nil, fmt.Errorf("%w: it has %d bytes, its entries make %d: something stands before, between or behind them", ErrLayout, size, a.size)
	}
	var want, got []byte
	for i := range entries {
		want = appendLocalHeader(want[:0], &entries[i])
		if got, err = same(w, a.offsets[i], want, got); err != nil {
			return nil, w.fault("entry %q: its header is not what the directory says: %v", entries[i].Name, err)
		}
		start := a.offsets[i] + int64(len(want))
		entries[i].Open = func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(r, start+offset, length)), nil
		}
	}
	if _, err := same(w, a.tailAt, a.tail, got); err != nil {
		return nil, w.fault("the directory: %v", err)
	}
	return entries, nil
}

var errDiffers = errors.New("it differs")

// same tells whether what r has at an offset is want; buf is used if it is large enough.
func same(r io.ReaderAt, offset int64, want, buf []byte) ([]byte, error) {
	if cap(buf) < len(want) {
		buf = make([]byte, len(want))
	}
	buf = buf[:len(want)]
	if _, err := r.ReadAt(buf, offset); err != nil && !errors.Is(err, io.EOF) {
		return buf, err
	}
	if !bytes.Equal(buf, want) {
		return buf, errDiffers
	}
	return buf, nil
}

// watched remembers that reading failed, so that a sick disk is not taken for a bad archive.
type watched struct {
	io.ReaderAt
	failed error
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		w.failed = err
	}
	return n, err
}

func (w *watched) fault(format string, v ...any) error {
	if w.failed != nil {
		return fmt.Errorf("archive: read the layout: %w", w.failed)
	}
	return fmt.Errorf("%w: "+format, append([]any{ErrLayout}, v...)...)
}
