package engine

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const (
	responseBuffer = 64 << 10
	// flushAfter bounds how long finished rows wait for more before they are sent.
	flushAfter = 200 * time.Millisecond
)

// response sends output on: into ClickHouse's compressed blocks if asked (compress=1), through a content
// encoding if accepted, to the client, or with wait_end_of_query to a spool first. Nothing is committed
// before the buffer has filled, so an early error still gets a status of its own.
type response struct {
	w         http.ResponseWriter
	buffer    *bufio.Writer
	frames    *compress.Writer // of compress=1
	encode    io.WriteCloser   // of the content encoding
	encoding  string
	spool     *spool // of wait_end_of_query
	tag       string // marks an exception within the output as one of ours
	summary   summary
	started   time.Time
	flushed   time.Time
	committed bool
	discard   bool // of HEAD
}

func newResponse(w http.ResponseWriter, q *request) *response {
	r := &response{w: w, tag: rand.Text()[:16], started: time.Now(), flushed: time.Now(), encoding: q.acceptEncoding, discard: q.head}
	if q.wait {
		r.spool = &spool{}
	}
	if q.compress {
		method := compress.LZ4
		switch strings.ToUpper(q.settings["network_compression_method"]) {
		case "ZSTD":
			method = compress.ZSTD
		case "NONE":
			method = compress.None
		}
		r.frames = compress.NewWriter(compress.LevelZero, method)
	}
	r.buffer = bufio.NewWriterSize(writerFunc(r.compressed), responseBuffer)
	h := w.Header()
	h.Set("X-ClickHouse-Query-Id", q.id)
	h.Set("X-ClickHouse-Exception-Tag", r.tag)
	return r
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (r *response) Write(p []byte) (int, error) { return r.buffer.Write(p) }

// compressed takes what leaves the buffer.
func (r *response) compressed(p []byte) (int, error) {
	if r.frames == nil {
		return r.encoded(p)
	}
	const frame = 1 << 20
	for start := 0; start < len(p); start += frame {
		if err := r.frames.Compress(p[start:min(start+frame, len(p))]); err != nil {
			return start, fmt.Errorf("compress output: %w", err)
		}
		if _, err := r.encoded(r.frames.Data); err != nil {
			return start, err
		}
	}
	return len(p), nil
}

func (r *response) encoded(p []byte) (int, error) {
	if r.spool != nil {
		return r.spool.Write(p)
	}
	if err := r.commit(http.StatusOK); err != nil {
		return 0, err
	}
	if r.discard {
		return len(p), nil
	}
	return r.encode.Write(p)
}

// commit sends the headers.
func (r *response) commit(status int) error {
	if r.committed {
		return nil
	}
	r.committed = true
	h := r.w.Header()
	r.summary.elapsed = uint64(time.Since(r.started))
	h.Set("X-ClickHouse-Summary", r.summary.header())
	encode, err := newEncoder(r.encoding, r.w)
	if err != nil {
		return err
	}
	r.encode = encode
	if r.encoding != "" {
		h.Set("Content-Encoding", r.encoding)
	}
	r.w.WriteHeader(status)
	return nil
}

// pace lets a client see the rows of a slow query while it runs.
func (r *response) pace() error {
	if r.spool != nil || time.Since(r.flushed) < flushAfter {
		return nil
	}
	r.flushed = time.Now()
	if err := r.flush(); err != nil {
		return err
	}
	return http.NewResponseController(r.w).Flush()
}

func (r *response) flush() error {
	if err := r.buffer.Flush(); err != nil {
		return err
	}
	if f, ok := r.encode.(interface{ Flush() error }); ok && r.committed {
		return f.Flush()
	}
	return nil
}

// finish ends a response that went well.
func (r *response) finish() error {
	if !r.committed && r.spool == nil && r.buffer.Buffered() == 0 {
		// No body at all: clients take "Content-Length: 0" for a statement without a result.
		r.encoding = ""
		return r.commit(http.StatusOK)
	}
	if err := r.buffer.Flush(); err != nil {
		return err
	}
	if spool := r.spool; spool != nil {
		r.spool = nil
		defer spool.close()
		if spool.size == 0 {
			r.encoding = ""
		}
		if err := r.commit(http.StatusOK); err != nil {
			return err
		}
		if spool.size > 0 && !r.discard {
			if err := spool.copyTo(r.encode); err != nil {
				return err
			}
		}
	}
	if r.discard || r.encoding == "" {
		return nil
	}
	return r.encode.Close()
}

// fail tells the client of an error: by a status while nothing was sent, else within the output, framed
// and tagged so that it cannot be taken for data.
func (r *response) fail(log *slog.Logger, e *exception) {
	if r.spool != nil {
		r.spool.close()
		r.spool = nil
	}
	if !r.committed {
		h := r.w.Header()
		h.Set("X-ClickHouse-Exception-Code", strconv.Itoa(e.code))
		h.Set("Content-Type", typeText)
		h.Del("X-ClickHouse-Format")
		r.encoding, r.frames = "", nil
		if err := r.commit(e.httpStatus()); err == nil && !r.discard {
			_, _ = io.WriteString(r.w, e.message+"\n") // the client is gone; nobody is left to be told
		}
		return
	}
	frame := exceptionFrame(r.tag, e.message)
	err := r.buffer.Flush()
	if err == nil {
		// Uncompressed within its own block: a client that searches the raw bytes finds it too.
		if r.frames != nil {
			r.frames = compress.NewWriter(compress.LevelZero, compress.None)
		}
		_, err = r.compressed(frame)
	}
	if err == nil && r.encoding != "" {
		err = r.encode.Close()
	}
	if err != nil {
		log.Debug("exception not delivered", "err", err)
	}
}

// exceptionFrame is how a server writes an exception behind output that has already begun.
func exceptionFrame(tag, message string) []byte {
	const limit = 15 << 10 // clients look no further than 16 KiB
	if len(message) > limit {
		message = message[:limit]
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n", tag, message, len(message), tag)
	return b.Bytes()
}

// newEncoder compresses for a content encoding.
func newEncoder(encoding string, w io.Writer) (io.WriteCloser, error) {
	switch encoding {
	case "gzip":
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case "deflate":
		return zlib.NewWriterLevel(w, zlib.BestSpeed)
	case "br":
		return brotli.NewWriterLevel(w, 1), nil
	case "zstd":
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	case "lz4":
		return lz4.NewWriter(w), nil
	default:
		return nopCloser{w}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// newDecoder undoes a content encoding.
func newDecoder(encoding string, r io.Reader) (io.Reader, func(), error) {
	nothing := func() {}
	switch encoding {
	case "", "identity":
		return r, nothing, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case "deflate":
		z, err := zlib.NewReader(r)
		return z, nothing, err
	case "br":
		return brotli.NewReader(r), nothing, nil
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nothing, err
		}
		return z, z.Close, nil
	case "lz4":
		return lz4.NewReader(r), nothing, nil
	default:
		return nil, nothing, fmt.Errorf("content encoding %q is unknown", encoding)
	}
}

// blockReader reads ClickHouse's compressed blocks and tells their regular end from a cut.
type blockReader struct{ r *compress.Reader }

func (b blockReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, err
}
