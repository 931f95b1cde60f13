package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// encodings of a body. Those of snappy are told apart by their first bytes: one block, as in messages, or a
// stream in the framing format.
var encodings = []string{"gzip", "snappy", "zstd"}

// encoding is that of a request, or nothing.
func encoding(r *http.Request) (string, *problem) {
	name := strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ",")))
	switch name {
	case "", "identity":
		return "", nil
	case "gzip", "x-gzip":
		return "gzip", nil
	case "snappy", "zstd":
		return name, nil
	}
	p := newProblem(http.StatusUnsupportedMediaType, "encoding", "The content encoding is not supported", "").
		at("Content-Encoding", name).do("use one of those supported, or none")
	p.Supported = encodings
	p.header = map[string]string{"Accept-Encoding": strings.Join(encodings, ", ")}
	return "", p
}

// buffers of bodies are used again, unless they are large.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const maxPooled = 1 << 20

// bodyReader reads the body of one request.
type bodyReader struct {
	ctx   context.Context
	lease *lease
	limit int64
	body  io.Reader // no longer than limit
	size  int64     // -1 if not known
	buf   *[]byte
}

// read returns the body, decompressed. It is good until release.
func (b *bodyReader) read(encoding string) (_ []byte, err error) {
	if b.size > b.limit {
		return nil, tooLarge(b.limit)
	}
	b.buf = buffers.Get().(*[]byte)
	switch encoding {
	case "gzip":
		return b.gunzip()
	case "zstd":
		return b.zstd()
	case "snappy":
		return b.snappy()
	}
	if b.size > 0 {
		if err := b.room(b.size); err != nil {
			return nil, err
		}
		data := (*b.buf)[:b.size]
		if _, err := io.ReadFull(b.body, data); err != nil {
			return nil, b.failed(err)
		}
		return data, nil
	}
	return b.all(b.body, 4<<10, 0)
}

// release lets the buffer be used again.
func (b *bodyReader) release() {
	if b.buf != nil && cap(*b.buf) <= maxPooled {
		buffers.Put(b.buf)
	}
	b.buf = nil
}

// room makes the buffer hold n bytes. The events that are read from it take as much again at most: their
// columns have no names and no quotes.
func (b *bodyReader) room(n int64) error {
	if err := b.lease.take(b.ctx, 2*n); err != nil {
		return err
	}
	if int64(cap(*b.buf)) < n {
		*b.buf = make([]byte, n)
	}
	*b.buf = (*b.buf)[:cap(*b.buf)]
	return nil
}

// all reads from r to its end, beside what else is held, beginning with a buffer of some size.
func (b *bodyReader) all(r io.Reader, size, beside int64) ([]byte, error) {
	if err := b.lease.take(b.ctx, beside+2*size); err != nil {
		return nil, err
	}
	data := (*b.buf)[:0]
	if int64(cap(data)) < size || int64(cap(data)) > 2*size {
		data = make([]byte, 0, size)
	}
	for {
		if len(data) == cap(data) {
			larger := min(2*int64(cap(data)), b.limit+1)
			// While it moves, both are there; afterwards the room of the smaller one is for the events.
			if err := b.lease.take(b.ctx, beside+2*larger); err != nil {
				return nil, err
			}
			data = append(make([]byte, 0, larger), data...)
		}
		n, err := r.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if int64(len(data)) > b.limit {
			return nil, tooLarge(b.limit)
		}
		if errors.Is(err, io.EOF) {
			*b.buf = data
			return data, nil
		}
		if err != nil {
			return nil, b.failed(err)
		}
	}
}

// failed is the problem of a body that can't be read to its end.
func (b *bodyReader) failed(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large), errors.Is(err, s2.ErrTooLarge):
		return tooLarge(b.limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newProblem(http.StatusRequestTimeout, "timeout", "The body did not come in time", "").at("body", "").do("send it faster, or in smaller requests")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return malformed("The body is cut off.").at("body", "").do("send all of it, with the Content-Length and Content-Encoding it has")
	}
	return malformed("The body cannot be read: "+cut(err.Error())+".").at("body", "").do("send it whole, in the Content-Encoding that the header names")
}

// guess is how large a compressed body may become: a beginning, from which the buffer grows.
func (b *bodyReader) guess() int64 { return min(max(4*b.size, 16<<10), b.limit+1) }

var gzipReaders sync.Pool

// gzipMemory and the like are what a decompressor holds beside its output.
const (
	gzipMemory   = 64 << 10
	snappyMemory = 256 << 10
	smallWindow  = 1 << 20
	largeWindow  = 8 << 20 // what RFC 8878 wants decoders to support
)

func (b *bodyReader) gunzip() (_ []byte, err error) {
	if err := b.lease.take(b.ctx, gzipMemory); err != nil {
		return nil, err
	}
	z, ok := gzipReaders.Get().(*gzip.Reader)
	if ok {
		err = z.Reset(b.body)
	} else {
		z, err = gzip.NewReader(b.body)
	}
	if err != nil {
		return nil, b.failed(err)
	}
	defer gzipReaders.Put(z)
	return b.all(z, b.guess(), gzipMemory)
}

// zstdReaders by their largest window. Without concurrency they have no goroutines.
var zstdReaders = map[int64]*sync.Pool{smallWindow: newZstdReaders(smallWindow), largeWindow: newZstdReaders(largeWindow)}

func newZstdReaders(window uint64) *sync.Pool {
	return &sync.Pool{New: func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true), zstd.WithDecodeBuffersBelow(0))
		if err != nil { // the options are constants
			panic(err)
		}
		return z
	}}
}

func (b *bodyReader) zstd() ([]byte, error) {
	in := bufio.NewReaderSize(b.body, 4<<10)
	first, _ := in.Peek(zstd.HeaderMaxSize)
	var h zstd.Header
	if err := h.Decode(first); err != nil {
		return nil, b.failed(err)
	}
	window := int64(smallWindow)
	if h.WindowSize > smallWindow {
		window = largeWindow
	}
	if err := b.lease.take(b.ctx, 2*window); err != nil {
		return nil, err
	}
	z := zstdReaders[window].Get().(*zstd.Decoder)
	if err := z.Reset(in); err != nil {
		return nil, b.failed(err)
	}
	defer func() {
		_ = z.Reset(nil) // so that it does not hold the body
		zstdReaders[window].Put(z)
	}()
	return b.all(z, b.guess(), 2*window)
}

const snappyStream = "\xff\x06\x00\x00sNaPpY"

func (b *bodyReader) snappy() ([]byte, error) {
	in := bufio.NewReaderSize(b.body, 4<<10)
	if first, _ := in.Peek(len(snappyStream)); string(first) == snappyStream {
		if err := b.lease.take(b.ctx, snappyMemory); err != nil {
			return nil, err
		}
		return b.all(s2.NewReader(in, s2.ReaderMaxBlockSize(64<<10), s2.ReaderAllocBlock(64<<10)), b.guess(), snappyMemory)
	}
	size := b.size
	if size < 0 {
		size = 4 << 10
	}
	packed, err := b.all(in, size+1, 0)
	if err != nil {
		return nil, err
	}
	n, err := s2.DecodedLen(packed)
	if err != nil {
		return nil, b.failed(err)
	}
	if int64(n) > b.limit {
		return nil, tooLarge(b.limit)
	}
	if err := b.lease.take(b.ctx, int64(cap(packed))+2*int64(n)); err != nil {
		return nil, err
	}
	data, err := s2.Decode(make([]byte, 0, n), packed)
	if err != nil {
		return nil, b.failed(err)
	}
	return data, nil
}
