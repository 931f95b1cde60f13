package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
)

const copyBuffer = 256 << 10

// ErrSource marks a source that has not the bytes its entry promised.
var ErrSource = errors.New("archive: source does not match its entry")

var errClosed = errors.New("archive: read after close")

// reader reads [pos, limit) of an archive. Only the piece under pos is held: the bytes of a header,
// a view of the tail, or one open source.
type reader struct {
	ctx    context.Context // bounds every read; the reader lives no longer than its request
	a      *Archive
	pos    int64
	limit  int64  // reads stop here; the archive's size unless it is a range
	header []byte // scratch for local headers

	body    io.ReadCloser // of entry, standing at bodyPos
	entry   int
	bodyPos int64 // in the archive
	bodyEnd int64 // where what was asked of the source ends
	closed  bool
	failed  error
}

func (r *reader) Read(p []byte) (int, error) {
	switch {
	case r.closed:
		return 0, errClosed
	case r.failed != nil:
		return 0, r.failed
	case len(p) == 0:
		return 0, nil
	case r.pos >= r.limit:
		return 0, io.EOF
	}
	if err := r.ctx.Err(); err != nil {
		return 0, fmt.Errorf("archive: read: %w", context.Cause(r.ctx))
	}
	if int64(len(p)) > r.limit-r.pos {
		p = p[:r.limit-r.pos]
	}
	n, err := r.read(p)
	r.pos += int64(n)
	if err != nil {
		r.failed = err
		r.drop()
	}
	return n, err
}

func (r *reader) read(p []byte) (int, error) {
	if r.pos >= r.a.tailAt {
		return copy(p, r.a.tail[r.pos-r.a.tailAt:]), nil
	}
	if r.body == nil || r.bodyPos != r.pos {
		r.drop()
		i := r.a.entryAt(r.pos)
		e := &r.a.entries[i]
		at := r.pos - r.a.offsets[i]
		if head := int64(localHeaderSize(e)); at < head {
			r.header = appendLocalHeader(r.header[:0], e)
			return copy(p, r.header[at:]), nil
		}
		if err := r.open(i); err != nil {
			return 0, err
		}
	}
	return r.readBody(p)
}

// open asks the source of entry i for the bytes from pos to the entry's end, or to the limit.
func (r *reader) open(i int) error {
	e := &r.a.entries[i]
	start := r.a.offsets[i] + int64(localHeaderSize(e))
	end := min(start+e.CompressedSize, r.limit)
	body, err := e.Open(r.ctx, r.pos-start, end-r.pos)
	if err != nil {
		return fmt.Errorf("archive: open entry %q at %d: %w", e.Name, r.pos-start, err)
	}
	r.body, r.entry, r.bodyPos, r.bodyEnd = body, i, r.pos, end
	return nil
}

func (r *reader) readBody(p []byte) (int, error) {
	e := &r.a.entries[r.entry]
	left := r.bodyEnd - r.bodyPos
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := readSome(r.body, p)
	r.bodyPos += int64(n)
	left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && left > 0:
		return n, fmt.Errorf("%w: entry %q ends %d bytes early (%d were expected)", ErrSource, e.Name, left, e.CompressedSize)
	case err != nil && !errors.Is(err, io.EOF):
		return n, fmt.Errorf("archive: read entry %q: %w", e.Name, err)
	case left > 0:
		return n, nil
	}
	// All that was asked for is here. A source with more would mean that it is another file than the
	// one the layout was made for.
	if err == nil {
		if err := r.expectEnd(e); err != nil {
			return n, err
		}
	}
	body := r.body
	r.body = nil
	if err := body.Close(); err != nil {
		return n, fmt.Errorf("archive: close entry %q: %w", e.Name, err)
	}
	return n, nil
}

func (r *reader) expectEnd(e *Entry) error {
	var one [1]byte
	n, err := readSome(r.body, one[:])
	switch {
	case n > 0:
		return fmt.Errorf("%w: entry %q has more than its %d bytes", ErrSource, e.Name, e.CompressedSize)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("archive: read the end of entry %q: %w", e.Name, err)
	}
	return nil
}

// readSome reads at least a byte or says why not: a reader may return neither, for a while.
func readSome(r io.Reader, p []byte) (int, error) {
	for range 100 {
		if n, err := r.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// Seek moves without opening anything. A place beyond the end reads as the end.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.limit
	default:
		return 0, fmt.Errorf("archive: seek: unknown origin %d", whence)
	}
	if r.closed {
		return 0, errClosed
	}
	if offset < 0 {
		return 0, fmt.Errorf("archive: seek to %d: before the start", offset)
	}
	r.pos = offset
	return offset, nil
}

func (r *reader) drop() {
	if r.body != nil {
		// Its bytes are not wanted any more, so neither is its opinion.
		_ = r.body.Close()
		r.body = nil
	}
}

// Close lets go of the source that is open. Closing twice is harmless.
func (r *reader) Close() error {
	r.drop()
	r.closed = true
	return nil
}

// onlyReader and onlyWriter keep io.Copy from taking shortcuts around the large buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
