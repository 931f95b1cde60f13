package exporter

import (
	"context"
	_ "embed" // README.txt
	"fmt"
	"slices"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Plan is an archive that is laid out but not yet read.
type Plan struct {
	*archive.Archive
	Name     string
	Rows     uint64
	Modified time.Time // of the newest hour in it
}

// PlanArchive lays out the archive of a request. Nothing of the partitions is read but their manifests;
// a file that is missing, or has not the size that its manifest says, is found here, before anything is
// sent. That a file of that size is another one shows when it is copied, or by Check. The same request
// gives the same bytes, as partitions never change.
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
		entries = slices.Grow(entries, 2*len(found))
		for i := range found {
			f := &found[i]
			entries = append(entries, f.entries...)
			f.entries = nil
			plan.Rows += f.rows
			if f.end.After(plan.Modified) {
				plan.Modified = f.end
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
