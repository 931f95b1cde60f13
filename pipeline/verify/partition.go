package verify

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/flate"

	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// worker verifies one partition after another, with the same buffers.
type worker struct {
	inflate io.ReadCloser
	in      *bufio.Reader
	sha     hash.Hash
	buf     []byte
	read    func(int64) // told of bytes read
}

func newWorker(read func(int64)) *worker {
	return &worker{inflate: flate.NewReader(nil), in: bufio.NewReaderSize(nil, 64<<10), sha: sha256.New(), buf: make([]byte, 256<<10), read: read}
}

// counted hashes and counts what is read from a file.
type counted struct {
	r    io.Reader
	w    *worker
	size int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	_, _ = c.w.sha.Write(p[:n])
	c.size += int64(n)
	c.w.read(int64(n))
	return n, err
}

// partition holds a partition's file against its manifest. What it returns is what is wrong; an error of
// reading is a *readError.
func (w *worker) partition(m *seal.Sealed, f file, each func(seal.Row) bool) (*seal.Rows, error) {
	rows := seal.NewRows(m.Partition(), codec.CSVColumns)
	rows.Expect, rows.Each = m.Rows, each
	rc, err := f.open()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	w.sha.Reset()
	in := &counted{r: rc, w: w}
	w.in.Reset(in)
	var content seal.Content
	if f.plain {
		content, err = w.text(w.in, rows, m)
	} else {
		content, err = w.gzip(rows, m)
	}
	var failed *readError
	if errors.As(err, &failed) {
		return nil, err
	}
	if err != nil { // is it the file that was sealed, and was wrong from the start?
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{w.in}, w.buf); err != nil {
			return nil, err
		}
	}
	same := f.plain || in.size == m.FileBytes && hex.EncodeToString(w.sha.Sum(nil)) == m.FileSHA256
	switch {
	case err != nil && same:
		return nil, fmt.Errorf("%w (the file is the one that was sealed)", err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	case !same && in.size != m.FileBytes:
		return nil, fmt.Errorf("%w: it has %d bytes, the manifest says %d", ErrFile, in.size, m.FileBytes)
	case !same:
		return nil, fmt.Errorf("%w: its SHA-256 is %x, the manifest says %s", ErrFile, w.sha.Sum(nil), m.FileSHA256)
	}
	return rows, agree(m, content)
}

// gzip reads a partition's file: one member, whose header is fixed, and nothing behind it.
func (w *worker) gzip(rows *seal.Rows, m *seal.Sealed) (c seal.Content, err error) {
	head := make([]byte, len(seal.GzipHeader))
	if err := w.full(head); err != nil {
		return c, err
	}
	if string(head) != seal.GzipHeader {
		return c, fmt.Errorf("it begins with %x, not with %x", head, seal.GzipHeader)
	}
	reset, ok := w.inflate.(flate.Resetter)
	if !ok {
		return c, errors.New("the decompressor can't be used again")
	}
	if err := reset.Reset(w.in, nil); err != nil {
		return c, err
	}
	if c, err = w.text(w.inflate, rows, m); err != nil {
		return c, err
	}
	trailer := make([]byte, 8)
	if err := w.full(trailer); err != nil {
		return c, err
	}
	if crc, size := binary.LittleEndian.Uint32(trailer), binary.LittleEndian.Uint32(trailer[4:]); crc != c.CRC32 || size != uint32(c.Bytes) {
		return c, fmt.Errorf("its trailer tells of %d bytes with CRC-32 %08x, it holds %d with %08x", size, crc, uint32(c.Bytes), c.CRC32)
	}
	if _, err := w.in.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return c, err
		}
		return c, errors.New("something stands behind its end")
	}
	return c, nil
}

func (w *worker) full(p []byte) error {
	if _, err := io.ReadFull(w.in, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("it is cut off")
		}
		return err
	}
	return nil
}

// beyond is how much more text is read than there should be, to say which row is too many.
const beyond = 1 << 20

// text passes the CSV through rows.
func (w *worker) text(r io.Reader, rows *seal.Rows, m *seal.Sealed) (seal.Content, error) {
	n, err := io.CopyBuffer(struct{ io.Writer }{rows}, struct{ io.Reader }{io.LimitReader(r, m.CSVBytes+beyond)}, w.buf)
	var failed *readError
	var corrupt flate.CorruptInputError
	switch {
	case errors.As(err, &failed):
		return seal.Content{}, err
	case errors.As(err, &corrupt), errors.Is(err, io.ErrUnexpectedEOF):
		return seal.Content{}, fmt.Errorf("after %d bytes of CSV it can't be decompressed: %w", n, err)
	case err != nil:
		return seal.Content{}, err
	case n > m.CSVBytes:
		return seal.Content{}, fmt.Errorf("it holds more than the %d bytes of CSV that the manifest says", m.CSVBytes)
	}
	return rows.Close()
}

// agree tells whether a text is the one that the manifest states.
func agree(m *seal.Sealed, c seal.Content) error {
	stated := *m.Manifest
	stated.Describe(c)
	var differs []string
	say := func(what string, got, want any) {
		if got != want {
			differs = append(differs, fmt.Sprintf("%s is %v, the manifest says %v", what, got, want))
		}
	}
	say("the number of rows", stated.Rows, m.Rows)
	say("the first stream_seq", stated.FirstSeq, m.FirstSeq)
	say("the last stream_seq", stated.LastSeq, m.LastSeq)
	say("the size of the CSV", stated.CSVBytes, m.CSVBytes)
	say("the CSV's SHA-256", stated.CSVSHA256, m.CSVSHA256)
	say("the CSV's CRC-32", stated.CSVCRC32, m.CSVCRC32)
	say("the digest", stated.Digest, m.Digest)
	say("the Merkle root", stated.MerkleRoot, m.MerkleRoot)
	if len(differs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrFile, differs[0])
}

// faultOf makes a fault of an error about a partition's file.
func faultOf(name string, m *seal.Sealed, err error) *Fault {
	f := &Fault{File: name, Hour: hourOf(m), Problem: err.Error(), err: err}
	var text *seal.TextError
	if errors.As(err, &text) {
		f.Row = text.Row
	}
	return f
}

func hourOf(m *seal.Sealed) *time.Time {
	t := m.HourStart
	return &t
}
