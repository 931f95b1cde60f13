package rollup

import (
	"context"
	"fmt"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// write makes the files of p: the .csv.gz, unless there are no events, and then the manifest.
func (r *Rollup) write(ctx context.Context, p schema.Partition, c Count) (*seal.Sealed, error) {
	m := seal.New(p)
	previous, err := r.previous(ctx, p)
	if err != nil {
		return nil, err
	}
	if previous != nil {
		m.Follow(previous)
	}
	if c.Rows > 0 {
		if err := r.writeCSV(ctx, p, c, m); err != nil {
			return nil, err
		}
	}
	return r.keep(ctx, m)
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
	text := seal.NewRows(p, codec.CSVColumns)
	stored, err := compress(file, rows, text)
	if err != nil {
		return err
	}
	content, err := text.Close()
	if err != nil {
		return fmt.Errorf("read the rows: %w", err)
	}
	if content.Rows != c.Distinct || content.FirstSeq != c.FirstSeq || content.LastSeq != c.LastSeq {
		return fmt.Errorf("%w: ClickHouse counts %d events from %d to %d in the stream, the CSV has %d from %d to %d", ErrDisagree,
			c.Distinct, c.FirstSeq, c.LastSeq, content.Rows, content.FirstSeq, content.LastSeq)
	}
	if string(stored.head) != seal.GzipHeader {
		return fmt.Errorf("compress: the file begins with %x, not with %x, which verifiers count on", stored.head, seal.GzipHeader)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("close the file: %w", err)
	}
	m.Describe(content)
	m.FileBytes, m.FileSHA256 = stored.n, stored.sum()
	return nil
}
