package sftp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

const (
	pieceSize = 256 << 10
	pieces    = 4
)

// source is the caller's reader, held to its size, hashed and counted. A goroutine of its own reads and
// hashes, a little ahead: what takes the bytes encrypts and sends them, and has no time for that.
type source struct {
	size     int64
	sum      hash.Hash // of what was read; valid when Read has returned io.EOF
	progress func(int64)
	n        int64 // handed over
	err      error // of the caller's reader

	stop func()
	way  chan piece      // closed when the goroutine has ended
	free chan []byte     // buffers that are not under way
	rest piece           // the one that is being handed over
	ctx  context.Context // ends reading between two reads
}

// piece is what one Read gave.
type piece struct {
	data   []byte
	buffer []byte // that data is in; nil before the first piece
	err    error  // after data
}

func newSource(ctx context.Context, r io.Reader, size int64, progress func(int64)) *source {
	ctx, stop := context.WithCancel(ctx)
	s := &source{
		ctx: ctx, stop: stop, size: size, sum: sha256.New(), progress: progress,
		way: make(chan piece, pieces), free: make(chan []byte, pieces),
	}
	for range pieces {
		s.free <- nil // made when it is needed: most uploads of an hour are small
	}
	go s.readAhead(r)
	return s
}

// readAhead ends with the reader, with the first error, or when nobody wants more.
func (s *source) readAhead(r io.Reader) {
	defer close(s.way)
	var n int64
	for {
		var p piece
		select {
		case <-s.ctx.Done():
			return
		case p.buffer = <-s.free:
		}
		if p.buffer == nil {
			p.buffer = make([]byte, pieceSize)
		}
		m, err := r.Read(p.buffer)
		n += int64(m)
		switch {
		case n > s.size:
			m, err = 0, fmt.Errorf("it has more than the %d bytes it was said to have", s.size)
		case err != nil && !errors.Is(err, io.EOF):
			m, err = 0, fmt.Errorf("read at %d: %w", n, err)
		}
		p.data, p.err = p.buffer[:m], err
		_, _ = s.sum.Write(p.data)
		s.way <- p // never blocks: there are no more pieces
		if err != nil {
			return
		}
	}
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, s.ctx.Err() // not err: the source did nothing wrong
	}
	for len(s.rest.data) == 0 {
		if s.rest.err != nil {
			if !errors.Is(s.rest.err, io.EOF) {
				s.err = s.rest.err
			}
			return 0, s.rest.err
		}
		if s.rest.buffer != nil {
			s.free <- s.rest.buffer
		}
		var ok bool
		if s.rest, ok = <-s.way; !ok {
			return 0, s.ctx.Err()
		}
	}
	n := copy(p, s.rest.data)
	s.rest.data = s.rest.data[n:]
	s.n += int64(n)
	if s.progress != nil {
		s.progress(s.n)
	}
	return n, nil
}

// close waits until nobody reads from the caller's reader any more.
func (s *source) close() {
	s.stop()
	for range s.way {
		continue // nobody wants it
	}
}

func (s *source) complete() error {
	if s.n != s.size {
		return fmt.Errorf("it ended after %d of %d bytes", s.n, s.size)
	}
	return nil
}
