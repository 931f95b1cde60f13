package rollup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// readManifest returns the manifest of p, or nil if there is none. A partition is made when its manifest
// is there: that is written last.
func readManifest(ctx context.Context, bucket *blob.Bucket, p schema.Partition) (*seal.Manifest, error) {
	data, err := bucket.ReadAll(ctx, p.ManifestKey())
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return seal.Decode(data)
}

// write makes the files of p: the .csv.gz, unless there are no events, and then the manifest.
func (r *Rollup) write(ctx context.Context, p schema.Partition, c Count) (*seal.Manifest, error) {
	m := &seal.Manifest{
		Version: 1, SchemaVersion: seal.SchemaVersion, Organization: p.Organization, Trail: p.Trail,
		HourStart: p.Hour.UTC(), HourEnd: p.End().UTC(), Rows: c.Distinct, FirstSeq: c.FirstSeq, LastSeq: c.LastSeq,
	}
	if c.Rows > 0 {
		if err := r.writeCSV(ctx, p, c, m); err != nil {
			return nil, err
		}
	}
	data, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if err := r.bucket.WriteAll(ctx, p.ManifestKey(), data, &blob.WriterOptions{ContentType: "application/json"}); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return m, nil
}

// writeCSV streams the rows through the compressor into the store, once, and adds to m what is said of
// them. If anything fails, or the rows are not as many as were counted, nothing is left in the store.
func (r *Rollup) writeCSV(ctx context.Context, p schema.Partition, c Count, m *seal.Manifest) (err error) {
	rows, err := r.table.CSV(ctx, p, c.Rows != c.Distinct)
	if err != nil {
		return err
	}
	defer rows.Close()
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	file, err := r.bucket.NewWriter(ctx, p.CSVKey(), &blob.WriterOptions{ContentType: "application/gzip"})
	if err != nil {
		return fmt.Errorf("create the file: %w", err)
	}
	defer func() {
		if err != nil {
			abort() // before Close, which would make the file appear
			_ = file.Close()
		}
	}()
	stored := newDigest(file)
	gz, err := gzip.NewWriterLevel(stored, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	gz.ModTime = time.Unix(0, 0) // "no time" in the header; the zero time.Time would be some nonsense
	text := newDigest(gz)
	counter := &rowCounter{w: text}
	if _, err := io.CopyBuffer(onlyWriter{counter}, rows, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("copy the rows: %w", err)
	}
	if err := gz.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	if got := counter.rows - 1; got != int64(c.Distinct) { // without the header line
		return fmt.Errorf("%w: ClickHouse counts %d events, the CSV has %d", ErrDisagree, c.Distinct, got)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("close the file: %w", err)
	}
	m.CSVBytes, m.CSVSHA256, m.CSVCRC32 = text.n, text.sum(), text.crc.Sum32()
	m.FileBytes, m.FileSHA256 = stored.n, stored.sum()
	return nil
}

// onlyWriter hides ReadFrom, so that CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// digest hashes and counts what passes.
type digest struct {
	w   io.Writer
	n   int64
	sha hasher
	crc crcHasher
}

type hasher interface {
	io.Writer
	Sum(b []byte) []byte
}

type crcHasher interface {
	io.Writer
	Sum32() uint32
}

func newDigest(w io.Writer) *digest {
	return &digest{w: w, sha: sha256.New(), crc: crc32.NewIEEE()}
}

func (d *digest) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	d.n += int64(n)
	_, _ = d.sha.Write(p[:n])
	_, _ = d.crc.Write(p[:n])
	return n, err
}

func (d *digest) sum() string { return hex.EncodeToString(d.sha.Sum(nil)) }

// rowCounter counts the lines of a CSV text as it passes; a line break within quotes is none.
type rowCounter struct {
	w      io.Writer
	rows   int64
	quoted bool
}

func (c *rowCounter) Write(p []byte) (int, error) {
	for rest := p; ; {
		i := bytes.IndexByte(rest, '\n')
		line := rest
		if i >= 0 {
			line = rest[:i]
		}
		// Escaped quotes come in pairs, so that every quote may be counted.
		if bytes.Count(line, []byte{'"'})%2 == 1 {
			c.quoted = !c.quoted
		}
		if i < 0 {
			return c.w.Write(p)
		}
		if !c.quoted {
			c.rows++
		}
		rest = rest[i+1:]
	}
}
