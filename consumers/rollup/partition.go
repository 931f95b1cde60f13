package rollup

import (
	"context"
	"fmt"

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
	counter := &rowCounter{}
	text, stored, err := compress(file, rows, counter)
	if err != nil {
		return err
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
