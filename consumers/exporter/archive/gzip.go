package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

const (
	gzipHeader  = 10
	gzipTrailer = 8
	// A deflate block turns at most 258 bytes into two bits, and stored blocks add five bytes to
	// every 64 KiB; these bounds of RFC 1951 are what a header and a trailer can be held against.
	maxRatio       = 1032
	storedOverhead = 5
)

// ErrGzip marks a file that is not the plain single-member gzip an entry can be copied from.
var ErrGzip = errors.New("archive: not a plain gzip file")

// Content is what comes out of a gzip file. The file's own trailer has the length only modulo 4 GiB.
type Content struct {
	Size  int64
	CRC32 uint32
}

// FromGzip makes an entry of a gzip file of size bytes, of which it reads the header and the trailer
// only. content, if not nil, is what is known about the file otherwise, and must agree with the
// trailer; it is required where the trailer is ambiguous, that is, where a file could hold 4 GiB or
// more (from about 4 MB on).
//
// Optional header fields are refused. So are several members, as far as that can be seen from the
// outside: a trailer that tells of fewer bytes than the file can stand for.
func FromGzip(ctx context.Context, name string, modified time.Time, size int64, open Opener, content *Content) (Entry, error) {
	fail := func(format string, args ...any) (Entry, error) {
		return Entry{}, fmt.Errorf("%w: entry %q: %s", ErrGzip, name, fmt.Sprintf(format, args...))
	}
	if size < gzipHeader+gzipTrailer+2 {
		return fail("it has only %d bytes", size)
	}
	var head [gzipHeader]byte
	if err := readAll(ctx, open, 0, head[:]); err != nil {
		return Entry{}, fmt.Errorf("archive: read the gzip header of entry %q: %w", name, err)
	}
	if reason := headerFault(head); reason != "" {
		return fail("%s", reason)
	}
	var tail [gzipTrailer]byte
	if err := readAll(ctx, open, size-gzipTrailer, tail[:]); err != nil {
		return Entry{}, fmt.Errorf("archive: read the gzip trailer of entry %q: %w", name, err)
	}
	found := Content{CRC32: le.Uint32(tail[:4]), Size: int64(le.Uint32(tail[4:]))}
	deflated := size - gzipHeader - gzipTrailer
	switch {
	case content != nil:
		if content.CRC32 != found.CRC32 || uint32(content.Size) != uint32(found.Size) {
			return fail("its trailer tells of %d bytes (modulo 4 GiB) with CRC-32 %08x, but %d bytes with %08x are expected; it is another file, or has several members",
				found.Size, found.CRC32, content.Size, content.CRC32)
		}
		found = *content
	case deflated > max32/maxRatio:
		return fail("its %d bytes could hold 4 GiB or more, which its trailer can not tell: pass the size and the CRC-32", size)
	}
	if found.Size > deflated*maxRatio {
		return fail("%d bytes can not hold the %d it is said to", deflated, found.Size)
	}
	if most := found.Size + storedOverhead*(found.Size/1024+2) + 16; deflated > most {
		return fail("its trailer tells of %d bytes, too few for a file of %d: it has several members, or bytes after the end", found.Size, size)
	}
	return Entry{
		Name: name, Modified: modified, Method: Deflated,
		CRC32: found.CRC32, CompressedSize: deflated, UncompressedSize: found.Size,
		Open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			return open(ctx, gzipHeader+offset, length)
		},
	}, nil
}

func headerFault(head [gzipHeader]byte) string {
	switch {
	case head[0] != 0x1f || head[1] != 0x8b:
		return fmt.Sprintf("it starts with %02x%02x instead of 1f8b", head[0], head[1])
	case head[2] != 8:
		return fmt.Sprintf("its method %d is not deflate (8)", head[2])
	case head[3] != 0:
		return fmt.Sprintf("its header has optional fields (flags %02x): write it without name, comment and extra", head[3])
	}
	return ""
}

// FromBytes makes an entry of data, stored as it is. The archive keeps data; do not change it.
func FromBytes(name string, modified time.Time, data []byte) Entry {
	size := int64(len(data))
	return Entry{
		Name: name, Modified: modified, Method: Stored,
		CRC32: crc32.ChecksumIEEE(data), CompressedSize: size, UncompressedSize: size,
		Open: func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
			if offset < 0 || length < 0 || offset > size || length > size-offset {
				return nil, fmt.Errorf("open %d bytes at %d of %d", length, offset, size)
			}
			return io.NopCloser(bytes.NewReader(data[offset : offset+length])), nil
		},
	}
}

// readAll fills p from offset on.
func readAll(ctx context.Context, open Opener, offset int64, p []byte) error {
	body, err := open(ctx, offset, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, p)
	return err
}
