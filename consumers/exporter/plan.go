package exporter

import (
	"context"
	_ "embed" // README.txt
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Plan is an archive that is laid out but not yet read.
type Plan struct {
	*archive.Archive
	Name     string
	Rows     uint64
	Modified time.Time // of the newest hour in it
}

// partition is a manifest as found in the store, and the file beside it if there are events.
type partition struct {
	manifest *seal.Sealed
	text     []byte
	csv      archive.Entry
}

// PlanArchive lays out the archive of a request. Nothing of the partitions is read but their
// manifests and the ends of their files, so that one that is missing or is not what its manifest says
// is found before anything is sent. The same request gives the same bytes, as partitions never change.
func PlanArchive(ctx context.Context, bucket *blob.Bucket, r *Request) (*Plan, error) {
	plan := &Plan{Name: r.FileName()}
	var entries []archive.Entry
	trails := slices.Clone(r.Trails)
	slices.Sort(trails)
	for _, trail := range slices.Compact(trails) {
		found, err := findPartitions(ctx, bucket, r.Organization, trail, r.From, r.To)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			p := f.manifest.Partition()
			if f.manifest.Rows > 0 {
				entries = append(entries, f.csv)
			}
			entries = append(entries, archive.FromBytes(p.ManifestKey(), p.End(), f.text))
			plan.Rows += f.manifest.Rows
			if p.End().After(plan.Modified) {
				plan.Modified = p.End()
			}
		}
	}
	if len(entries) == 0 {
		plan.Modified = r.To
		entries = append(entries, archive.FromBytes("EMPTY.txt", r.To,
			fmt.Appendf(nil, "No partition of %s begins between %s and %s: nothing was recorded yet.\r\n",
				r.Organization, r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339))))
	}
	front, err := frontMatter(ctx, bucket, plan.Modified)
	if err != nil {
		return nil, err
	}
	if plan.Archive, err = archive.New(append(front, entries...)); err != nil {
		return nil, fmt.Errorf("lay out the archive: %w", err)
	}
	return plan, nil
}

//go:embed README.txt
var readme []byte

// frontMatter is what stands in front of the partitions: what the archive is, and what it takes to check
// it besides a key from elsewhere. After a rotation of keys the same request gives an archive with one
// file more.
func frontMatter(ctx context.Context, bucket *blob.Bucket, modified time.Time) ([]archive.Entry, error) {
	entries := []archive.Entry{archive.FromBytes("README.txt", modified, readme)}
	files, err := seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		return data, err
	})
	if err != nil || files.First == nil {
		return entries, err
	}
	ring, err := files.Ring()
	if err != nil {
		return nil, fmt.Errorf("keys of the partition store: %w", err)
	}
	entries = append(entries, archive.FromBytes(seal.PublicKey, modified, []byte(ring.Current()+"\n")))
	for i, r := range files.Rotations {
		entries = append(entries, archive.FromBytes(seal.RotationKey(uint64(i+1)), modified, r))
	}
	return entries, nil
}

// csvEntry makes an entry of a partition's file, which has to be the one that the manifest speaks of.
func csvEntry(ctx context.Context, bucket *blob.Bucket, m *seal.Manifest) (archive.Entry, error) {
	p := m.Partition()
	open := func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return bucket.NewRangeReader(ctx, p.CSVKey(), offset, length, nil)
	}
	return archive.FromGzip(ctx, p.Path()+".csv", p.End(), m.FileBytes, open, &archive.Content{Size: m.CSVBytes, CRC32: m.CSVCRC32})
}

// findPartitions returns the manifests of the hours that begin in [from, to), in order.
func findPartitions(ctx context.Context, bucket *blob.Bucket, org string, trail schema.Trail, from, to time.Time) ([]partition, error) {
	var keys []string
	// Keys sort by time, so that whole days outside of the range are skipped by their prefix.
	first := schema.Partition{Organization: org, Trail: trail, Hour: from.UTC().Truncate(24 * time.Hour), Length: time.Hour}.Path()
	last := schema.Partition{Organization: org, Trail: trail, Hour: to.UTC(), Length: time.Hour}.Path()
	day := func(path string) string { return path[:strings.LastIndexByte(path, '/')] }
	list := bucket.List(&blob.ListOptions{Prefix: org + "/" + string(trail) + "/"})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list the partitions of %s/%s: %w", org, trail, err)
		}
		if strings.HasSuffix(o.Key, schema.ManifestSuffix) && day(o.Key) >= day(first) && day(o.Key) <= day(last) {
			keys = append(keys, o.Key)
		}
	}
	all := make([]partition, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i, key := range keys {
		g.Go(func() error {
			text, err := bucket.ReadAll(ctx, key)
			if err != nil {
				return fmt.Errorf("read manifest %s: %w", key, err)
			}
			m, err := seal.Parse(text)
			if err != nil {
				return fmt.Errorf("manifest %s: %w", key, err)
			}
			if m.Partition().ManifestKey() != key || m.Organization != org {
				return fmt.Errorf("manifest %s speaks of %s", key, m.Partition())
			}
			all[i] = partition{manifest: m, text: text}
			if m.Rows > 0 && !m.HourStart.Before(from) && m.HourStart.Before(to) {
				all[i].csv, err = csvEntry(ctx, bucket, m.Manifest)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(p partition) bool {
		return p.manifest.HourStart.Before(from) || !p.manifest.HourStart.Before(to)
	})
	slices.SortFunc(all, func(a, b partition) int { return a.manifest.HourStart.Compare(b.manifest.HourStart) })
	return all, nil
}
