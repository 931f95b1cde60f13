package render

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/gzip"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/schema/codec"
)

// ErrSource means that a partition's file is not what its manifest says.
var ErrSource = errors.New("the partition is not what its manifest says")

// flushAt is how much text is handed on at once.
const flushAt = 64 << 10

// worker renders one partition after another, with the same buffers.
type worker struct {
	area    *Area
	key     string // of the content
	gunzip  *gzip.Reader
	csv     *codec.CSVReader
	encoder *codec.Encoder
	sum     hash.Hash // of the CSV
	event   codec.Stored
	text    []byte
	main    output
	beside  output // overflow of CEF
	lines   []byte
	failed  error // of beside
}

func newWorker(a *Area) (*worker, error) {
	w := &worker{area: a, key: a.contentKey(), csv: codec.NewCSVReader(nil), sum: sha256.New()}
	w.main.sum, w.beside.sum = sha256.New(), sha256.New()
	o := a.Content.options()
	if o.Format == codec.FormatCEF && a.Content.CEFOverflow != OverflowText {
		o.Overflow = w.overflow
	}
	var err error
	w.encoder, err = codec.NewEncoder(o)
	return w, err
}

// file makes the file of a partition, unless it is there.
func (w *worker) file(ctx context.Context, s *Source) (File, error) {
	base := w.area.prefix() + flat(s.Partition)
	var f File
	found, err := w.area.get(ctx, base+".json", &f)
	if err != nil {
		return f, err
	}
	if found && f.of(s, w.key) {
		return f, nil
	}
	f = File{Partition: s.Partition.Path(), Content: w.key, CSVSHA256: s.CSVSHA256, Parts: []Part{}}
	writing, abandon := context.WithCancel(ctx)
	defer abandon()
	suffix := w.area.Content.Suffix()
	w.main.begin(writing, w.area.Bucket, f.Partition+suffix, base+suffix+".gz")
	w.beside.begin(writing, w.area.Bucket, f.Partition+OverflowSuffix, base+OverflowSuffix+".gz")
	if f.Rows, err = w.events(writing, s); err == nil {
		err = errors.Join(w.main.end(&f.Parts), w.beside.end(&f.Parts))
	}
	if err != nil {
		abandon() // what is not closed leaves nothing
		w.main.drop()
		w.beside.drop()
		return f, err
	}
	return f, w.area.put(ctx, base+".json", &f)
}

// events writes the events of a partition that the filter chooses, and holds the partition against its manifest.
func (w *worker) events(ctx context.Context, s *Source) (rows uint64, err error) {
	in, err := w.area.Bucket.NewReader(ctx, s.Partition.CSVKey(), nil)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if w.gunzip == nil {
		w.gunzip, err = gzip.NewReader(in)
	} else {
		err = w.gunzip.Reset(in)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrSource, err)
	}
	w.sum.Reset()
	text := &counted{r: w.gunzip, sum: w.sum}
	w.csv.Reset(text)
	filter := &w.area.Content.Filter
	all := filter.IsZero()
	w.text, w.lines, w.failed = w.text[:0], w.lines[:0], nil
	for {
		err := w.csv.Next(&w.event)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rows, err
		}
		if !all && !filter.Match(&w.event.Event) {
			continue
		}
		if rows == 0 {
			w.text = w.encoder.AppendBegin(w.text)
		}
		rows++
		if w.text = w.encoder.Append(w.text, &w.event); len(w.text) < flushAt {
			continue
		}
		if w.text, err = w.main.write(w.text); err != nil {
			return rows, err
		}
	}
	if got := hex.EncodeToString(w.sum.Sum(nil)); got != s.CSVSHA256 || w.csv.Rows() != s.Rows || text.n != s.CSVBytes {
		return rows, fmt.Errorf("%w: it has %d rows in %d bytes with SHA-256 %s, not %d in %d with %s", ErrSource, w.csv.Rows(), text.n, got, s.Rows, s.CSVBytes, s.CSVSHA256)
	}
	if rows > 0 {
		_, err = w.main.write(w.encoder.AppendEnd(w.text))
	}
	if err == nil && len(w.lines) > 0 {
		_, err = w.beside.write(w.lines)
	}
	return rows, errors.Join(err, w.failed)
}

// overflow puts a value that is too long for CEF into the file beside.
func (w *worker) overflow(o codec.Overflow) {
	if w.lines = codec.AppendOverflow(w.lines, &o); len(w.lines) >= flushAt && w.failed == nil {
		w.lines, w.failed = w.beside.write(w.lines)
	}
}

type counted struct {
	r   io.Reader
	sum hash.Hash
	n   int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	_, _ = c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

// output is a file that is being written, compressed. It is opened when there is something to write.
type output struct {
	ctx    context.Context // ends with the file
	bucket *blob.Bucket
	part   Part
	object *blob.Writer
	gzip   *gzip.Writer
	sum    hash.Hash
}

func (o *output) begin(ctx context.Context, bucket *blob.Bucket, name, key string) {
	o.ctx, o.bucket, o.part, o.object = ctx, bucket, Part{Name: name, Key: key}, nil
	o.sum.Reset()
}

// Write takes what comes out of the compressor.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.object.Write(p)
	o.part.Bytes += int64(n)
	return n, err
}

// write takes text, and gives its memory back.
func (o *output) write(text []byte) ([]byte, error) {
	if o.object == nil {
		var err error
		if o.object, err = o.bucket.NewWriter(o.ctx, o.part.Key, &blob.WriterOptions{ContentType: "application/gzip"}); err != nil {
			return text, err
		}
		if o.gzip == nil {
			if o.gzip, err = gzip.NewWriterLevel(o, gzip.BestSpeed); err != nil {
				return text, err
			}
		} else {
			o.gzip.Reset(o)
		}
	}
	_, _ = o.sum.Write(text)
	o.part.CRC32 = crc32.Update(o.part.CRC32, crc32.IEEETable, text)
	o.part.Text += int64(len(text))
	_, err := o.gzip.Write(text)
	return text[:0], err
}

// end adds the part, if there is one.
func (o *output) end(parts *[]Part) error {
	if o.object == nil {
		return nil
	}
	if err := o.gzip.Close(); err != nil {
		return err
	}
	err := o.object.Close()
	if o.object = nil; err != nil {
		return err
	}
	o.part.SHA256 = hex.EncodeToString(o.sum.Sum(nil))
	*parts = append(*parts, o.part)
	return nil
}

// drop leaves nothing behind, as the context has ended.
func (o *output) drop() {
	if o.object != nil {
		_ = o.object.Close()
		o.object = nil
	}
}
