package exporter

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Body is a file that is known but not yet read: an archive that is laid out, or one that is encrypted. It may be read
// by several goroutines at once, each with a reader of its own.
type Body interface {
	Size() int64
	Len() int // files in it
	ETag() string
	NewReader(ctx context.Context) io.ReadSeekCloser
	WriteTo(ctx context.Context, w io.Writer) (int64, error)
	// Check looks whether it can be read as it was laid out.
	Check(ctx context.Context) error
}

// Plan is an archive that is laid out but not yet read.
type Plan struct {
	Body
	Name string
	// Rows counts the events in it; 0 where nobody can see them.
	Rows     uint64
	Modified time.Time // of the newest hour in it
	// rotations and oldest are those of a Promise.
	rotations int
	oldest    []string
}

// promise is what a link to the archive promises.
func (p *Plan) promise() Promise {
	return Promise{ETag: p.ETag(), Rotations: p.rotations, Oldest: p.oldest}
}

// ContentType is the media type of the archive.
func (p *Plan) ContentType() string {
	if _, encrypted := p.Body.(*render.Object); encrypted {
		return "application/octet-stream"
	}
	return "application/zip"
}

// PlanArchive lays out the archive of a request. Nothing of the partitions is read but their manifests;
// a file that is missing, or has not the size that its manifest says, is found here, before anything is
// sent. That a file of that size is another one shows when it is copied, or by Check. The same request
// gives the same bytes, as partitions never change. What has to be rendered or encrypted was so before, by Prepare, or
// the error answers to render.ErrNotRendered.
func PlanArchive(ctx context.Context, bucket *blob.Bucket, r *Request) (*Plan, error) {
	return planArchive(ctx, bucket, r, allRotations)
}

// allRotations stands for as many as there are.
const allRotations = -1

func planArchive(ctx context.Context, bucket *blob.Bucket, r *Request, rotations int) (*Plan, error) {
	if len(r.Recipients) == 0 {
		all, err := findAll(ctx, bucket, r)
		if err != nil {
			return nil, err
		}
		return layOut(ctx, bucket, r, all, rotations)
	}
	o, err := area(bucket, r).Object(ctx, r.FileName())
	if err != nil {
		return nil, err
	}
	return &Plan{Body: o, Name: r.FileName(), Modified: o.Modified()}, nil
}

// Prepare renders and encrypts what a request asks for, as far as it was not done before, and then lays it out.
// progress is told how many of how many rows are rendered, from several goroutines.
func Prepare(ctx context.Context, bucket *blob.Bucket, r *Request, progress func(rows, of uint64)) (*Plan, error) {
	all, err := findAll(ctx, bucket, r)
	if err != nil {
		return nil, err
	}
	if r.Rendered() {
		sources, of := all.sources()
		if err := area(bucket, r).Render(ctx, sources, func(_ int, rows uint64) { progress(rows, of) }); err != nil {
			return nil, err
		}
	}
	plan, err := layOut(ctx, bucket, r, all, allRotations)
	if err != nil || len(r.Recipients) == 0 {
		return plan, err
	}
	if err := area(bucket, r).Encrypt(ctx, r.FileName(), func(ctx context.Context, w io.Writer) error {
		if err := plan.Check(ctx); err != nil {
			return err
		}
		_, err := plan.WriteTo(ctx, w)
		return err
	}); err != nil {
		return nil, err
	}
	sealed, err := PlanArchive(ctx, bucket, r)
	if err != nil {
		return nil, err
	}
	sealed.Rows, sealed.rotations, sealed.oldest = plan.Rows, plan.rotations, plan.oldest
	return sealed, nil
}

func area(bucket *blob.Bucket, r *Request) *render.Area {
	return &render.Area{Bucket: bucket, Export: r.ID, Content: &r.Content}
}

// found are the partitions of a range, trail by trail.
type found []partition

func findAll(ctx context.Context, bucket *blob.Bucket, r *Request) (found, error) {
	var all found
	trails := slices.Clone(r.Trails)
	slices.Sort(trails)
	for _, trail := range slices.Compact(trails) {
		some, err := findPartitions(ctx, bucket, r.Organization, trail, r.From, r.To)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = some
		} else {
			all = append(all, some...)
		}
	}
	return all, nil
}

// sources are the partitions with events, and how many events they have.
func (f found) sources() (sources []render.Source, rows uint64) {
	for i := range f {
		if f[i].rows > 0 {
			sources = append(sources, f[i].source)
			rows += f[i].rows
		}
	}
	return sources, rows
}

// layOut lays out the archive that is not encrypted. It takes all's entries.
func layOut(ctx context.Context, bucket *blob.Bucket, r *Request, all found, rotations int) (_ *Plan, err error) {
	plan := &Plan{Name: r.FileName(), Modified: r.To, oldest: all.oldest()}
	if len(all) > 0 {
		plan.Modified = time.Time{}
	}
	facts := facts{Request: r}
	for i := range all {
		facts.add(&all[i])
		if all[i].end.After(plan.Modified) {
			plan.Modified = all[i].end
		}
	}
	plan.Rows = facts.SealedRows
	var rendered []render.File
	if r.Rendered() {
		sources, _ := all.sources()
		if rendered, err = area(bucket, r).Files(ctx, sources); err != nil {
			return nil, err
		}
		plan.Rows = 0
		for i := range rendered {
			plan.Rows += rendered[i].Rows
			facts.addRendered(&rendered[i])
		}
	}
	facts.Rows = plan.Rows
	entries, rotated, err := frontMatter(ctx, bucket, plan.Modified, &facts, rotations)
	if err != nil {
		return nil, err
	}
	plan.rotations = rotated
	if r.Rendered() {
		list, err := renderedList(r, all, rendered)
		if err != nil {
			return nil, err
		}
		entries = append(entries, archive.FromBytes(RenderedList, plan.Modified, list))
	}
	if sums := checksums(all, rendered, r.Rendered()); len(sums) > 0 {
		entries = append(entries, archive.FromBytes(Checksums, plan.Modified, sums))
	}
	if len(all) == 0 {
		entries = append(entries, archive.FromBytes("EMPTY.txt", r.To,
			fmt.Appendf(nil, "No partition of %s begins between %s and %s: nothing was recorded yet.\r\n",
				r.Organization, r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339))))
	}
	entries = slices.Grow(entries, 2*len(all))
	next := 0
	for i := range all {
		p := &all[i]
		if r.Rendered() && p.rows > 0 {
			if entries, err = appendParts(entries, bucket, &rendered[next], p.end); err != nil {
				return nil, err
			}
			next++
			p.entries = p.entries[1:] // the sealed file is not in it
		}
		entries = append(entries, p.entries...)
		p.entries = nil
	}
	if plan.Body, err = archive.New(entries); err != nil {
		return nil, fmt.Errorf("lay out the archive: %w", err)
	}
	return plan, nil
}

// appendParts appends what was made of a partition.
func appendParts(entries []archive.Entry, bucket *blob.Bucket, f *render.File, modified time.Time) ([]archive.Entry, error) {
	for _, p := range f.Parts {
		open := func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			return bucket.NewRangeReader(ctx, p.Key, offset, length, nil)
		}
		e, err := archive.FromKnownGzip(p.Name, modified, p.Bytes, open, archive.Content{Size: p.Text, CRC32: p.CRC32})
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// frontMatter is what stands in front of the partitions: what the archive is, and what it takes to check
// it besides a key from elsewhere, and how many rotations of keys that are. After a rotation the same request gives an
// archive with one file more, unless the number of rotations is given.
func frontMatter(ctx context.Context, bucket *blob.Bucket, modified time.Time, f *facts, rotations int) ([]archive.Entry, int, error) {
	text, err := f.readme()
	if err != nil {
		return nil, 0, err
	}
	entries := []archive.Entry{archive.FromBytes("README.txt", modified, text)}
	files, err := readKeys(ctx, bucket)
	if err != nil || files.First == nil {
		return entries, 0, err
	}
	if rotations != allRotations && rotations < len(files.Rotations) {
		files.Rotations = files.Rotations[:rotations]
	}
	ring, err := files.Ring()
	if err != nil {
		return nil, 0, fmt.Errorf("keys of the partition store: %w", err)
	}
	entries = append(entries, archive.FromBytes(seal.PublicKey, modified, []byte(ring.Current()+"\n")))
	for i, r := range files.Rotations {
		entries = append(entries, archive.FromBytes(seal.RotationKey(uint64(i+1)), modified, r))
	}
	return entries, len(files.Rotations), nil
}
