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
func (r *Rollup) write(ctx context.Context, p schema.Partition, a account, gaps []seal.Gap) (*seal.Sealed, error) {
	m := seal.New(p)
	m.Gaps = append(m.Gaps, gaps...)
	previous, err := r.previous(ctx, p)
	if err != nil {
		return nil, err
	}
	if previous != nil {
		m.Follow(previous)
	}
	if a.stream.Rows > 0 {
		if err := r.writeCSV(ctx, p, a, m); err != nil {
			return nil, err
		}
	}
	return r.keep(ctx, m)
}

// writeCSV streams the rows through the compressor into the store, once, and adds to m what is said of
// them. If anything fails, or the rows are not those that were counted, nothing is left in the store.
func (r *Rollup) writeCSV(ctx context.Context, p schema.Partition, a account, m *seal.Manifest) (err error) {
	rows, err := r.table.CSV(ctx, p, a.final)
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
	if content.Digest != a.stream || content.FirstSeq != a.table.FirstSeq || content.LastSeq != a.table.LastSeq {
		return a.disagree(&content.Digest)
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
