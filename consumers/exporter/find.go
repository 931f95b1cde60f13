package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// partition is what an archive has of one: its manifest, and its file if there are events.
type partition struct {
	start, end time.Time
	rows       uint64
	trail      schema.Trail
	gaps       []seal.Gap
	entries    []archive.Entry // of the file, if there are events, and of the manifest, which is the last
	source     render.Source   // of the file
}

// object is a manifest in the store, as listed, and the size of the file beside it.
type object struct {
	key      string
	size     int64
	fileSize int64 // -1 if there is none
}

const (
	listsAtOnce = 8
	readsAtOnce = 16
	// A month of hours fits into one page, where the store lets it.
	pageSize = 2000
	// mostMonths is how many months are listed by themselves; who asks for more gets all that there is.
	mostMonths = 240

	fileSuffix = ".csv.gz"
)

// findPartitions returns the partitions of the hours that begin in [from, to), in order.
func findPartitions(ctx context.Context, bucket *blob.Bucket, org string, trail schema.Trail, from, to time.Time) ([]partition, error) {
	objects, err := listPartitions(ctx, bucket, org+"/"+string(trail)+"/", from.UTC(), to.UTC())
	if err != nil {
		return nil, fmt.Errorf("list the partitions of %s/%s: %w", org, trail, err)
	}
	all := make([]partition, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(readsAtOnce, len(objects)) {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(objects)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				var err error
				if all[i], err = readPartition(ctx, bucket, org, &objects[i]); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(p partition) bool { return p.start.Before(from) || !p.start.Before(to) })
	slices.SortFunc(all, func(a, b partition) int { return a.start.Compare(b.start) })
	return all, nil
}

// listPartitions finds the manifests that may be of the range, and the sizes of their files, without a
// look into any. Several months are listed at once: a store gives its keys page by page.
func listPartitions(ctx context.Context, bucket *blob.Bucket, prefix string, from, to time.Time) ([]object, error) {
	var months []string
	for m := time.Date(from.Year(), from.Month(), 1, 0, 0, 0, 0, time.UTC); m.Before(to) && len(months) <= mostMonths; m = m.AddDate(0, 1, 0) {
		months = append(months, prefix+m.Format("2006/01/"))
	}
	if len(months) > mostMonths {
		months = []string{prefix}
	}
	found := make([][]object, len(months))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listsAtOnce)
	for i, month := range months {
		g.Go(func() error {
			files := map[string]int64{}
			for token := blob.FirstPageToken; token != nil; {
				page, next, err := bucket.ListPage(ctx, token, pageSize, &blob.ListOptions{Prefix: month})
				if err != nil {
					return err
				}
				for _, o := range page {
					if path, ok := strings.CutSuffix(o.Key, fileSuffix); ok {
						files[path] = o.Size
					} else if path, ok := strings.CutSuffix(o.Key, schema.ManifestSuffix); ok && mayBegin(path[len(prefix):], from, to) {
						found[i] = append(found[i], object{o.Key, o.Size, -1})
					}
				}
				token = next
			}
			for j := range found[i] {
				if size, ok := files[strings.TrimSuffix(found[i][j].key, schema.ManifestSuffix)]; ok {
					found[i][j].fileSize = size
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// mayBegin tells whether a partition of this path below its trail begins in [from, to). A path of another
// form has a reader look.
func mayBegin(path string, from, to time.Time) bool {
	layout := "2006/01/02/15"
	if len(path) > len(layout) {
		layout += "-04-05"
	}
	start, err := time.Parse(layout, path)
	return err != nil || !start.Before(from) && start.Before(to)
}

// readPartition reads a manifest and holds what was listed against it.
func readPartition(ctx context.Context, bucket *blob.Bucket, org string, o *object) (partition, error) {
	text, err := readObject(ctx, bucket, o)
	if err != nil {
		return partition{}, fmt.Errorf("read manifest %s: %w", o.key, err)
	}
	m, err := seal.Parse(text)
	if err != nil {
		return partition{}, fmt.Errorf("manifest %s: %w", o.key, err)
	}
	p := m.Partition()
	if p.ManifestKey() != o.key || m.Organization != org {
		return partition{}, fmt.Errorf("manifest %s speaks of %s", o.key, p)
	}
	found := partition{start: p.Hour, end: p.End(), rows: m.Rows, trail: m.Trail, gaps: m.Gaps}
	manifest := archive.FromBytes(o.key, p.End(), text)
	if m.Rows == 0 {
		found.entries = []archive.Entry{manifest}
		return found, nil
	}
	key := p.CSVKey()
	switch {
	case o.fileSize < 0:
		// What the retention removed has said so, and the archive repeats it.
		statement, err := bucket.ReadAll(ctx, p.RemovedKey())
		if gcerrors.Code(err) == gcerrors.NotFound {
			return partition{}, fmt.Errorf("partition %s is gone, its manifest is there", key)
		}
		if err != nil {
			return partition{}, fmt.Errorf("read %s: %w", p.RemovedKey(), err)
		}
		found.rows = 0
		found.entries = []archive.Entry{manifest, archive.FromBytes(p.RemovedKey(), p.End(), statement)}
		return found, nil
	case o.fileSize != m.FileBytes:
		return partition{}, fmt.Errorf("partition %s has %d bytes, its manifest says %d", key, o.fileSize, m.FileBytes)
	}
	open := func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return bucket.NewRangeReader(ctx, key, offset, length, nil)
	}
	csv, err := archive.FromKnownGzip(strings.TrimSuffix(key, ".gz"), found.end, m.FileBytes, open, archive.Content{Size: m.CSVBytes, CRC32: m.CSVCRC32})
	found.entries = []archive.Entry{csv, manifest}
	found.source = render.Source{Partition: p, Rows: m.Rows, CSVBytes: m.CSVBytes, CSVSHA256: m.CSVSHA256}
	return found, err
}

// readObject reads an object whose size is known.
func readObject(ctx context.Context, bucket *blob.Bucket, o *object) ([]byte, error) {
	r, err := bucket.NewReader(ctx, o.key, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() != o.size {
		return nil, errors.New("it has another size than a moment ago")
	}
	text := make([]byte, o.size)
	_, err = io.ReadFull(r, text)
	return text, err
}
