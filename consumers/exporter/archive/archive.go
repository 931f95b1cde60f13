// Package archive puts a ZIP file together by copying.
//
// A partition is stored as a single-member .csv.gz: a ten-byte header, a raw deflate stream, a
// CRC-32 and a length. That is just what a ZIP entry needs, so an archive of two years is made
// without compressing or even looking at a single row. Its exact size, every offset and its identity
// are known before the first byte is read, and any range of it can be produced without the rest.
//
// The package owns the layout: names that are safe to unpack anywhere, local headers that carry the
// sizes (no data descriptors), Zip64 where it is needed, and the same bytes for the same entries.
// Sources are opened ahead of the byte that is asked for, several at once, once it is plain that the
// reading goes on: a store may be far away, and the next file is on its way while this one is copied.
// What is held in memory is bounded, however large the archive.
//
// It never compresses, never keeps an entry in memory, never writes a temporary file and never
// decides what goes into an archive. It does not verify contents: a CRC-32 is copied from the
// source, so damage there shows when the archive is unpacked, and the signed manifests say the rest.
package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"
)

// Method is how an entry's bytes are stored, in ZIP's own numbers.
type Method uint16

// The two methods that every ZIP reader knows.
const (
	Stored   Method = 0
	Deflated Method = 8
)

// Opener gives length bytes of a source from offset on. It is called once for each range that is
// read, possibly by several goroutines at once. It must stop reading when ctx ends.
type Opener func(ctx context.Context, offset, length int64) (io.ReadCloser, error)

// Entry is one file of an archive, whose bytes exist already.
type Entry struct {
	// Name is the path inside the archive, with slashes.
	Name string
	// Modified is kept to the second, in UTC. Zero means the epoch of ZIP, 1980.
	Modified time.Time
	Method   Method
	// CRC32 (IEEE) and UncompressedSize describe what comes out of the entry.
	CRC32            uint32
	UncompressedSize int64
	// CompressedSize is how many bytes Open has in all.
	CompressedSize int64
	// Open gives a range of the entry's compressed bytes.
	Open Opener

	data  []byte                      // all of them, if they are here
	check func(context.Context) error // looks whether the source is the one that was laid out; may be nil
}

// Archive is a ZIP file that is known but not yet written. It is immutable, and safe for use by
// several goroutines.
type Archive struct {
	entries []Entry
	offsets []int64 // of each local header
	tail    []byte  // central directory and end records
	tailAt  int64
	size    int64
	id      string
}

// New lays an archive out. It opens nothing. The order of the entries is the order in the file. The
// archive keeps the slice; do not change it.
func New(entries []Entry) (*Archive, error) {
	if err := checkNames(entries); err != nil {
		return nil, err
	}
	a := &Archive{entries: entries, offsets: make([]int64, len(entries))}
	var at int64
	for i := range a.entries {
		e := &a.entries[i]
		if err := checkEntry(e); err != nil {
			return nil, err
		}
		a.offsets[i] = at
		span := int64(localHeaderSize(e)) + e.CompressedSize
		if at > math.MaxInt64/2-span {
			return nil, fmt.Errorf("archive: lay out %q: the archive would exceed %d bytes", e.Name, int64(math.MaxInt64/2))
		}
		at += span
	}
	a.tailAt = at
	a.tail = appendDirectory(nil, a.entries, a.offsets, at)
	a.size = at + int64(len(a.tail))
	sum := sha256.Sum256(a.tail)
	a.id = hex.EncodeToString(sum[:])
	return a, nil
}

func checkEntry(e *Entry) error {
	switch {
	case e.Method != Stored && e.Method != Deflated:
		return fmt.Errorf("archive: entry %q: method %d is neither stored (0) nor deflated (8)", e.Name, e.Method)
	case e.CompressedSize < 0 || e.UncompressedSize < 0 || e.CompressedSize > math.MaxInt64/4 || e.UncompressedSize > math.MaxInt64/4:
		return fmt.Errorf("archive: entry %q: sizes %d and %d are out of range", e.Name, e.CompressedSize, e.UncompressedSize)
	case e.Method == Stored && e.CompressedSize != e.UncompressedSize:
		return fmt.Errorf("archive: entry %q: it is stored, but its sizes differ: %d and %d", e.Name, e.CompressedSize, e.UncompressedSize)
	case e.Open == nil && e.CompressedSize > 0:
		return fmt.Errorf("archive: entry %q: it has %d bytes and no way to open them", e.Name, e.CompressedSize)
	}
	return nil
}

// Size is the exact length of the archive in bytes.
func (a *Archive) Size() int64 { return a.size }

// Len is the number of entries.
func (a *Archive) Len() int { return len(a.entries) }

// ETag identifies the archive's bytes: the SHA-256 of the central directory, quoted as HTTP wants
// it. Names, times, sizes, CRCs and places are all in there. It tells whether a download may be
// resumed; it is no proof of the contents, which is the manifests' office.
func (a *Archive) ETag() string { return `"` + a.id + `"` }

// WriteTo writes the whole archive to w and returns how much was written. It ends with an error
// that names the entry if a source is shorter or longer than it was said to be.
func (a *Archive) WriteTo(ctx context.Context, w io.Writer) (int64, error) {
	r := &reader{ctx: ctx, a: a, limit: a.size, ahead: mostAhead}
	n, err := io.CopyBuffer(onlyWriter{w}, onlyReader{r}, make([]byte, copyBuffer))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return n, err
}

// NewReader reads the archive from the start. Seeking is free: only entries that are touched are
// opened, which is what [net/http.ServeContent] wants. ctx bounds every read. The reader is for one
// goroutine; make as many as are needed.
func (a *Archive) NewReader(ctx context.Context) io.ReadSeekCloser {
	return &reader{ctx: ctx, a: a, limit: a.size}
}

// ReadRange reads length bytes from offset on. Unlike a reader that was moved there by seeking, it
// asks the sources for no byte beyond the range.
func (a *Archive) ReadRange(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > a.size || length > a.size-offset {
		return nil, fmt.Errorf("archive: read %d bytes at %d: the archive has %d", length, offset, a.size)
	}
	return &reader{ctx: ctx, a: a, pos: offset, limit: offset + length}, nil
}

// Check opens what was laid out without being opened, and returns an error that names the first entry
// whose source is not what it was said to be. It reads a few bytes of each.
func (a *Archive) Check(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mostAhead)
	for i := range a.entries {
		if check := a.entries[i].check; check != nil && ctx.Err() == nil {
			g.Go(func() error { return check(ctx) })
		}
	}
	return g.Wait()
}

// entryAt finds the entry whose header or body holds the byte at pos; pos is before the tail.
func (a *Archive) entryAt(pos int64) int {
	return sort.Search(len(a.offsets), func(i int) bool { return a.offsets[i] > pos }) - 1
}
