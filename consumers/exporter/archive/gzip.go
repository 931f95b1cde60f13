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
	if size < gzipLeast {
		return Entry{}, gzipFault(name, "it has only %d bytes", size)
	}
	tail, err := checkGzip(ctx, name, size, open, content)
	if err != nil {
		return Entry{}, err
	}
	if content == nil {
		deflated := size - gzipHeader - gzipTrailer
		if deflated > max32/maxRatio {
			return Entry{}, gzipFault(name, "its %d bytes could hold 4 GiB or more, which its trailer can not tell: pass the size and the CRC-32", size)
		}
		content = &Content{CRC32: le.Uint32(tail[:4]), Size: int64(le.Uint32(tail[4:]))}
	}
	return FromKnownGzip(name, modified, size, open, *content)
}

// FromKnownGzip makes an entry of a gzip file of size bytes without opening it: what is in it is known.
// That the file is the one that is meant shows when it is copied, in the header before the first byte
// of the entry and in the trailer after its last, or by [Archive.Check].
func FromKnownGzip(name string, modified time.Time, size int64, open Opener, content Content) (Entry, error) {
	if size < gzipLeast {
		return Entry{}, gzipFault(name, "it has only %d bytes", size)
	}
	deflated := size - gzipHeader - gzipTrailer
	if content.Size > deflated*maxRatio {
		return Entry{}, gzipFault(name, "%d bytes can not hold the %d it is said to", deflated, content.Size)
	}
	if most := content.Size + storedOverhead*(content.Size/1024+2) + 16; deflated > most {
		return Entry{}, gzipFault(name, "its trailer tells of %d bytes, too few for a file of %d: it has several members, or bytes after the end", content.Size, size)
	}
	return Entry{
		Name: name, Modified: modified, Method: Deflated,
		CRC32: content.CRC32, CompressedSize: deflated, UncompressedSize: content.Size,
		Open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			b := &gzipBody{name: name, content: content, left: length, header: offset == 0, trailer: offset+length == deflated}
			from, n := gzipHeader+offset, length
			if b.header {
				from, n = 0, n+gzipHeader
			}
			if b.trailer {
				n += gzipTrailer
			}
			var err error
			b.file, err = open(ctx, from, n)
			return b, err
		},
		check: func(ctx context.Context) error {
			_, err := checkGzip(ctx, name, size, open, &content)
			return err
		},
	}, nil
}

// gzipLeast is the size of the smallest file there can be: of an empty text.
const gzipLeast = gzipHeader + gzipTrailer + 2

func gzipFault(name, format string, args ...any) error {
	return fmt.Errorf("%w: entry %q: %s", ErrGzip, name, fmt.Sprintf(format, args...))
}

// checkGzip reads a file's header and trailer and holds them against what is known.
func checkGzip(ctx context.Context, name string, size int64, open Opener, content *Content) (tail [gzipTrailer]byte, err error) {
	var head [gzipHeader]byte
	if err := readAll(ctx, open, 0, head[:]); err != nil {
		return tail, fmt.Errorf("archive: read the gzip header of entry %q: %w", name, err)
	}
	if reason := headerFault(head); reason != "" {
		return tail, gzipFault(name, "%s", reason)
	}
	if err := readAll(ctx, open, size-gzipTrailer, tail[:]); err != nil {
		return tail, fmt.Errorf("archive: read the gzip trailer of entry %q: %w", name, err)
	}
	if content != nil {
		return tail, trailerFault(name, tail, *content)
	}
	return tail, nil
}

func trailerFault(name string, tail [gzipTrailer]byte, known Content) error {
	crc, size := le.Uint32(tail[:4]), le.Uint32(tail[4:])
	if known.CRC32 == crc && uint32(known.Size) == size {
		return nil
	}
	return gzipFault(name, "its trailer tells of %d bytes (modulo 4 GiB) with CRC-32 %08x, but %d bytes with %08x are expected; it is another file, or has several members",
		size, crc, known.Size, known.CRC32)
}

// gzipBody reads a range of the deflate stream in a file. If the range has the stream's beginning, the
// header was read before it, and if it has its end, the trailer is read after it; both have to be right.
type gzipBody struct {
	file            io.ReadCloser
	name            string
	content         Content
	left            int64
	header, trailer bool // to be read
}

func (b *gzipBody) Read(p []byte) (int, error) {
	if b.header {
		var head [gzipHeader]byte
		if _, err := io.ReadFull(b.file, head[:]); err != nil {
			return 0, early(err)
		}
		if reason := headerFault(head); reason != "" {
			return 0, gzipFault(b.name, "%s", reason)
		}
		b.header = false
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n := 0
	if b.left > 0 {
		var err error
		n, err = b.file.Read(p)
		b.left -= int64(n)
		if err != nil && (b.left > 0 || !errors.Is(err, io.EOF)) {
			return n, err
		}
	}
	if b.left > 0 {
		return n, nil
	}
	if b.trailer {
		var tail [gzipTrailer]byte
		if _, err := io.ReadFull(b.file, tail[:]); err != nil {
			return n, early(err)
		}
		b.trailer = false
		if err := trailerFault(b.name, tail, b.content); err != nil {
			return n, err
		}
	}
	return n, io.EOF
}

// early makes the end of a file within its header or trailer an error.
func early(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrSource, io.ErrUnexpectedEOF)
	}
	return err
}

func (b *gzipBody) Close() error { return b.file.Close() }

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
		CRC32: crc32.ChecksumIEEE(data), CompressedSize: size, UncompressedSize: size, data: data,
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
