package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

const (
	// mostAhead is how many sources are on their way at once. A store far away is slow to begin, and a
	// partition is small.
	mostAhead = 16
	// aheadBuffer is how much of a source is read before it is wanted; of a large one the rest follows
	// when it is.
	aheadBuffer = 256 << 10
)

// source is the part of an entry's bytes that a reader wants: [pos, end) of the archive.
type source struct {
	e        *Entry
	entry    int
	start    int64 // of the entry's bytes in the archive
	pos, end int64

	body io.ReadCloser // nil before it is opened and after it is closed
	at   int64         // how far body was read, in the archive
	err  error         // what comes after all that was read

	// Of a source that is opened ahead: its first bytes, and what waits for them.
	buffer []byte
	data   []byte // of buffer, not yet given
	ready  chan struct{}
}

func (r *reader) newSource(i int, pos int64) *source {
	e := &r.a.entries[i]
	start := r.a.offsets[i] + int64(localHeaderSize(e))
	return &source{e: e, entry: i, start: start, pos: pos, end: min(start+e.CompressedSize, r.limit)}
}

// openAhead lets the sources after the first one be opened, as many as may be.
func (r *reader) openAhead() {
	for len(r.sources) <= r.ahead && r.next < len(r.a.entries) {
		e := &r.a.entries[r.next]
		start := r.a.offsets[r.next] + int64(localHeaderSize(e))
		if start >= r.limit {
			return
		}
		if e.data == nil && e.CompressedSize > 0 {
			s := r.newSource(r.next, start)
			s.buffer, s.ready = r.buffer(), make(chan struct{})
			r.sources = append(r.sources, s)
			r.crew.give(r.ctx, s)
		}
		r.next++
	}
}

// crew is the goroutines that open sources ahead, as many as sources were ever on their way at once.
// They stay, for a new one for each of thousands of sources would have to grow its stack each time.
type crew struct {
	work  chan *source
	stop  context.CancelFunc
	gone  sync.WaitGroup
	ctx   context.Context // of all that they do
	count int
	busy  atomic.Int32
}

func (c *crew) give(ctx context.Context, s *source) {
	if c.work == nil {
		c.work = make(chan *source, mostAhead) // which never blocks: there are no more sources
		c.ctx, c.stop = context.WithCancel(ctx)
	}
	if int(c.busy.Add(1)) > c.count {
		c.count++
		work, ctx := c.work, c.ctx
		c.gone.Go(func() {
			for s := range work {
				if s.err = ctx.Err(); s.err == nil {
					s.readAhead(ctx)
				}
				c.busy.Add(-1)
				close(s.ready)
			}
		})
	}
	c.work <- s
}

// dismiss ends what is under way, and waits for it.
func (c *crew) dismiss() {
	if c.work == nil {
		return
	}
	c.stop()
	close(c.work)
	c.gone.Wait()
	c.work, c.count = nil, 0
}

func (r *reader) buffer() []byte {
	if n := len(r.free); n > 0 {
		b := r.free[n-1]
		r.free = r.free[:n-1]
		return b
	}
	return make([]byte, aheadBuffer)
}

// readAhead fills the buffer, or takes all there is.
func (s *source) readAhead(ctx context.Context) {
	n := 0
	for n < len(s.buffer) && s.err == nil && (n == 0 || s.body != nil) {
		var m int
		m, s.err = s.readBody(ctx, s.buffer[n:])
		n += m
	}
	s.data = s.buffer[:n]
}

// read gives at least a byte, or the reason why not.
func (s *source) read(ctx context.Context, p []byte) (n int, err error) {
	if s.ready != nil {
		<-s.ready
	}
	if len(s.data) > 0 {
		n = copy(p, s.data)
		s.data = s.data[n:]
	} else if s.err == nil {
		n, s.err = s.readBody(ctx, p)
	}
	s.pos += int64(n)
	if len(s.data) > 0 {
		return n, nil
	}
	return n, s.err
}

// readBody reads from the source itself. With the last byte that is wanted, the source is closed.
func (s *source) readBody(ctx context.Context, p []byte) (int, error) {
	if s.body == nil {
		var err error
		if s.body, err = s.e.Open(ctx, s.pos-s.start, s.end-s.pos); err != nil {
			s.body = nil
			return 0, fmt.Errorf("archive: open entry %q at %d: %w", s.e.Name, s.pos-s.start, err)
		}
		s.at = s.pos
	}
	left := s.end - s.at
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := readSome(s.body, p)
	s.at += int64(n)
	left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && left > 0:
		return n, fmt.Errorf("%w: entry %q ends %d bytes early (%d were expected)", ErrSource, s.e.Name, left, s.e.CompressedSize)
	case err != nil && !errors.Is(err, io.EOF):
		return n, fmt.Errorf("archive: read entry %q: %w", s.e.Name, err)
	case left > 0:
		return n, nil
	}
	// All that was asked for is here. A source with more would mean that it is another file than the
	// one the layout was made for.
	if err == nil {
		if err := s.expectEnd(); err != nil {
			return n, err
		}
	}
	body := s.body
	s.body = nil
	if err := body.Close(); err != nil {
		return n, fmt.Errorf("archive: close entry %q: %w", s.e.Name, err)
	}
	return n, nil
}

func (s *source) expectEnd() error {
	var one [1]byte
	n, err := readSome(s.body, one[:])
	switch {
	case n > 0:
		return fmt.Errorf("%w: entry %q has more than its %d bytes", ErrSource, s.e.Name, s.e.CompressedSize)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("archive: read the end of entry %q: %w", s.e.Name, err)
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

// close is for a source that nobody works on any more.
func (s *source) close() {
	if s.body != nil {
		_ = s.body.Close()
		s.body = nil
	}
}
