package rollup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/pgzip"

	"github.com/kansa-audit/kansa/schema/seal"
)

const (
	chunkSize = 256 << 10
	// chunks is how many are on their way through one partition's sinks.
	chunks = 16
	// A block of text is compressed by itself, looking back into the one before; the border costs a few
	// bytes. Its size is part of what makes the same rows the same file.
	blockSize = 1 << 20
	// mostCores bounds the memory that a partition takes on a large machine.
	mostCores = 8
)

// compress streams rows into file as one member of gzip without optional fields, and says what was written.
// Every sink gets the text too, in a goroutine of its own; the first of them that fails ends it all. What
// is held in memory does not depend on how much there is. When compress returns, nothing of it is running.
func compress(file io.Writer, rows io.Reader, sinks ...io.Writer) (stored *digest, err error) {
	stored = newDigest()
	out := &output{w: io.MultiWriter(file, stored)}
	gz, err := pgzip.NewWriterLevel(out, pgzip.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := gz.SetConcurrency(blockSize, min(runtime.GOMAXPROCS(0), mostCores)); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	gz.ModTime = time.Unix(0, 0) // "no time" in the header; the zero time.Time would be some nonsense
	err = fan(rows, append(sinks, &input{gz, out})...)
	if err != nil {
		err = fmt.Errorf("copy the rows: %w", err)
	}
	// Closed in any case, for its goroutines.
	if closed := gz.Close(); err == nil && closed != nil {
		err = fmt.Errorf("compress: %w", closed)
	}
	if failed := out.failed(); err == nil && failed != nil {
		err = fmt.Errorf("compress: %w", failed)
	}
	return stored, err
}

// output is what the compressor writes to. An error would make it leave a goroutine behind, so that it is
// not told of any: what follows one is thrown away.
type output struct {
	w     io.Writer
	fault atomic.Pointer[error]
}

func (o *output) Write(p []byte) (int, error) {
	if o.failed() == nil {
		if _, err := o.w.Write(p); err != nil {
			o.fault.Store(&err)
		}
	}
	return len(p), nil
}

func (o *output) failed() error {
	if err := o.fault.Load(); err != nil {
		return *err
	}
	return nil
}

// input is the compressor as a sink that fails when its output has.
type input struct {
	gz  *pgzip.Writer
	out *output
}

func (i *input) Write(p []byte) (int, error) {
	if err := i.out.failed(); err != nil {
		return 0, err
	}
	return i.gz.Write(p)
}

// chunk is a piece of text. The last sink to be done with it gives its bytes back.
type chunk struct {
	data  []byte
	users atomic.Int32
}

// fill reads until the chunk is full. Only r's own word is the end: io.ReadFull would take a connection that
// was cut for it.
func (c *chunk) fill(r io.Reader) (err error) {
	c.data = c.data[:0]
	for err == nil && len(c.data) < chunkSize {
		var n int
		n, err = r.Read(c.data[len(c.data):chunkSize])
		c.data = c.data[:len(c.data)+n]
	}
	return err
}

// fan gives each sink all that r has, in order; the slowest sets the pace.
func fan(r io.Reader, sinks ...io.Writer) error {
	var (
		running sync.WaitGroup
		broken  = make(chan struct{}) // closed by the first failure
		once    sync.Once
		failure error
		free    = make(chan *chunk, chunks)
		ways    = make([]chan *chunk, len(sinks))
	)
	fail := func(err error) {
		once.Do(func() {
			failure = err
			close(broken)
		})
	}
	for range chunks {
		free <- &chunk{data: make([]byte, 0, chunkSize)}
	}
	for i, sink := range sinks {
		way := make(chan *chunk, chunks) // never full: there are no more
		ways[i] = way
		running.Go(func() {
			ok := true
			for c := range way {
				if ok {
					if _, err := sink.Write(c.data); err != nil {
						fail(err)
						ok = false
					}
				}
				if c.users.Add(-1) == 0 {
					free <- c
				}
			}
		})
	}
	for reading := true; reading; {
		select {
		case <-broken:
			reading = false
		case c := <-free:
			err := c.fill(r)
			if len(c.data) > 0 {
				c.users.Store(int32(len(ways)))
				for _, way := range ways {
					way <- c
				}
			}
			if err != nil {
				reading = false
				if !errors.Is(err, io.EOF) {
					fail(err)
				}
			}
		}
	}
	for _, way := range ways {
		close(way)
	}
	running.Wait()
	return failure
}

// digest hashes and counts what passes, and keeps how it begins.
type digest struct {
	n    int64
	sha  hash.Hash
	head []byte
}

func newDigest() *digest { return &digest{sha: sha256.New()} }

func (d *digest) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	d.head = append(d.head, p[:min(len(p), len(seal.GzipHeader)-len(d.head))]...)
	_, _ = d.sha.Write(p)
	return len(p), nil
}

func (d *digest) sum() string { return hex.EncodeToString(d.sha.Sum(nil)) }
