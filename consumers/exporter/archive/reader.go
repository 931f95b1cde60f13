package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// copyBuffer is what WriteTo hands on at once.
const copyBuffer = 256 << 10

// ErrSource marks a source that has not the bytes its entry promised.
var ErrSource = errors.New("archive: source does not match its entry")

var errClosed = errors.New("archive: read after close")

// reader reads [pos, limit) of an archive. What it holds is the source under pos and some after it.
type reader struct {
	ctx    context.Context // bounds every read; the reader lives no longer than its request
	a      *Archive
	pos    int64
	limit  int64  // reads stop here; the archive's size unless it is a range
	header []byte // scratch for local headers

	ahead   int       // how many sources may be on their way before they are wanted
	sources []*source // those that are, in order; the first may be under pos
	next    int       // the entry after the last of them
	free    [][]byte  // buffers that no source has
	crew    crew      // opens the sources that are not wanted yet
	closed  bool
	failed  error
}

// Read fills p unless the archive or the range ends: a caller's few large writes are not cut up by the
// borders of entries.
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
	if int64(len(p)) > r.limit-r.pos {
		p = p[:r.limit-r.pos]
	}
	for n := 0; ; {
		if r.ctx.Err() != nil {
			r.failed = fmt.Errorf("archive: read: %w", context.Cause(r.ctx))
			return n, r.failed
		}
		m, err := r.read(p[n:])
		r.pos += int64(m)
		n += m
		if err != nil {
			r.failed = err
			r.drop()
		}
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// read gives what is in one piece: of a header, of a source, of the tail.
func (r *reader) read(p []byte) (int, error) {
	if r.pos >= r.a.tailAt {
		return copy(p, r.a.tail[r.pos-r.a.tailAt:]), nil
	}
	i := r.a.entryAt(r.pos)
	if len(r.sources) > 0 && r.sources[0].entry == i && r.sources[0].pos == r.pos {
		return r.readSource(p)
	}
	e := &r.a.entries[i]
	at := r.pos - r.a.offsets[i]
	head := int64(localHeaderSize(e))
	switch {
	case at < head:
		r.header = appendLocalHeader(r.header[:0], e)
		return copy(p, r.header[at:]), nil
	case e.data != nil:
		return copy(p, e.data[at-head:]), nil
	}
	if len(r.sources) > 0 { // somebody seeks about
		r.drop()
		r.ahead = 0
	}
	r.sources = append(r.sources, r.newSource(i, r.pos))
	r.next = i + 1
	return r.readSource(p)
}

// readSource gives what the first source has.
func (r *reader) readSource(p []byte) (int, error) {
	r.openAhead()
	s := r.sources[0]
	n, err := s.read(r.ctx, p)
	if err == nil && s.pos == s.end {
		if s.buffer != nil {
			r.free = append(r.free, s.buffer)
		}
		r.sources = append(r.sources[:0], r.sources[1:]...)
		r.ahead = min(max(2*r.ahead, 1), mostAhead)
	}
	return n, err
}

// drop lets go of all sources: their bytes are not wanted any more, and neither is their opinion.
func (r *reader) drop() {
	r.crew.dismiss()
	for _, s := range r.sources {
		s.close()
		if s.buffer != nil {
			r.free = append(r.free, s.buffer)
		}
	}
	clear(r.sources)
	r.sources = r.sources[:0]
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

// Close lets go of the sources that are open, and waits for them. Closing twice is harmless.
func (r *reader) Close() error {
	r.drop()
	r.closed, r.free = true, nil
	return nil
}

// onlyReader and onlyWriter keep io.Copy from taking shortcuts around the large buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
