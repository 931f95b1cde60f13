// Package render makes the files of an archive that is not copied: other formats, chosen events, marked cells, and
// archives that only a recipient can open.
//
// It owns the working areas of exports in the partition store, below schema.WorkPrefix, and what lies in them: for
// each partition its rendered file and, behind it, a statement of what that is; an index of them all; the encrypted
// archive. What is there whole is never made again, so that an export goes on where it was interrupted. It reads
// partitions, holds them against what their manifests say of them, and never changes one.
package render

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"

	"filippo.io/age"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/schema"
)

// ErrNotRendered means that the working area has not, or has no more, what is asked for.
var ErrNotRendered = errors.New("the export is not rendered")

// Source is a partition with events, and what its manifest says of it.
type Source struct {
	Partition schema.Partition
	Rows      uint64
	CSVBytes  int64
	CSVSHA256 string
}

// File is what was made of a partition.
type File struct {
	Partition string `json:"partition"` // its path
	// Content and CSVSHA256 are what it was made by and of.
	Content   string `json:"content"`
	CSVSHA256 string `json:"csv_sha256"`
	Rows      uint64 `json:"rows"` // in Parts; none if the filter chose no event
	Parts     []Part `json:"parts"`
}

// Part is one file in the working area, which is compressed there.
type Part struct {
	Name   string `json:"name"` // in the archive
	Key    string `json:"key"`
	Bytes  int64  `json:"bytes"` // as it is kept
	Text   int64  `json:"text_bytes"`
	CRC32  uint32 `json:"crc32"` // of the text, as SHA256
	SHA256 string `json:"sha256"`
}

// Area is the working area of an export.
type Area struct {
	Bucket  *blob.Bucket
	Export  string // its id
	Content *Content
}

func (a *Area) prefix() string { return schema.WorkPrefix + a.Export + "/" }

// flat is a partition's path as one name: an area is one directory.
func flat(p schema.Partition) string { return strings.ReplaceAll(p.Path(), "/", "-") }

func (a *Area) index() string { return a.prefix() + "index.json" }

// contentKey is Content.Key, short. Recipients say nothing about files.
func (a *Area) contentKey() string {
	c := *a.Content
	c.Recipients = nil
	sum := sha256.Sum256([]byte(c.Key()))
	return hex.EncodeToString(sum[:16])
}

// get reads a JSON object of the area; false if there is none.
func (a *Area) get(ctx context.Context, key string, into any) (bool, error) {
	data, err := a.Bucket.ReadAll(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	return true, nil
}

func (a *Area) put(ctx context.Context, key string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = a.Bucket.WriteAll(ctx, key, data, &blob.WriterOptions{ContentType: "application/json"})
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Files returns what was made of the sources, in their order, or ErrNotRendered.
func (a *Area) Files(ctx context.Context, sources []Source) ([]File, error) {
	var files []File
	found, err := a.get(ctx, a.index(), &files)
	if err != nil {
		return nil, err
	}
	if !found || len(files) != len(sources) {
		return nil, fmt.Errorf("%w: %s", ErrNotRendered, a.Export)
	}
	key := a.contentKey()
	for i := range files {
		if f := &files[i]; !f.of(&sources[i], key) {
			return nil, fmt.Errorf("%w: %s has %s, which is not what is asked for", ErrNotRendered, a.Export, f.Partition)
		}
	}
	return files, nil
}

func (f *File) of(s *Source, content string) bool {
	return f.Partition == s.Partition.Path() && f.Content == content && f.CSVSHA256 == s.CSVSHA256
}

// Render makes what is missing of the files of sources, on all cores, in memory that does not grow with them, and then
// the index. progress is told how many partitions and how many of their rows are done, from several goroutines.
func (a *Area) Render(ctx context.Context, sources []Source, progress func(partitions int, rows uint64)) error {
	if _, err := a.Files(ctx, sources); err == nil || !errors.Is(err, ErrNotRendered) {
		return err
	}
	files := make([]File, len(sources))
	var next, done atomic.Int64
	var rows atomic.Uint64
	g, running := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(sources)) {
		g.Go(func() error {
			w, err := newWorker(a)
			if err != nil {
				return err
			}
			for i := next.Add(1) - 1; i < int64(len(sources)); i = next.Add(1) - 1 {
				if err := running.Err(); err != nil {
					return err
				}
				s := &sources[i]
				if files[i], err = w.file(running, s); err != nil {
					return fmt.Errorf("render partition %s: %w", s.Partition, err)
				}
				progress(int(done.Add(1)), rows.Add(s.Rows))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return a.put(ctx, a.index(), files)
}

// Remove removes all of the area.
func (a *Area) Remove(ctx context.Context) error {
	list := a.Bucket.List(&blob.ListOptions{Prefix: a.prefix()})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			if err = a.Bucket.Delete(ctx, o.Key); gcerrors.Code(err) == gcerrors.NotFound {
				err = nil // somebody else was faster
			}
		}
		if err != nil {
			return fmt.Errorf("remove the working area of export %s: %w", a.Export, err)
		}
	}
}

// Encrypt keeps what write writes as an object of the area that only the recipients can open. If there is one of the
// name, that is it.
func (a *Area) Encrypt(ctx context.Context, name string, write func(context.Context, io.Writer) error) error {
	key := a.prefix() + name
	if there, err := a.Bucket.Exists(ctx, key); there || err != nil {
		return err
	}
	recipients, err := a.Content.recipients()
	if err != nil {
		return err
	}
	writing, abandon := context.WithCancel(ctx)
	defer abandon()
	out, err := a.Bucket.NewWriter(writing, key, &blob.WriterOptions{ContentType: "application/octet-stream", IfNotExist: true})
	if err != nil {
		return fmt.Errorf("encrypt the archive: %w", err)
	}
	sealed, err := age.Encrypt(out, recipients...)
	if err == nil {
		if err = write(writing, sealed); err == nil {
			err = sealed.Close()
		}
	}
	if err != nil {
		abandon() // a writer whose context has ended leaves nothing
		return errors.Join(fmt.Errorf("encrypt the archive: %w", err), ignoreCanceled(out.Close()))
	}
	if err := out.Close(); err != nil && gcerrors.Code(err) != gcerrors.FailedPrecondition { // another one was faster
		return fmt.Errorf("encrypt the archive: %w", err)
	}
	return nil
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) || gcerrors.Code(err) == gcerrors.Canceled {
		return nil
	}
	return err
}
