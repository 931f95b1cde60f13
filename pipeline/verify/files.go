package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/flate"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// file is one file of what is verified.
type file struct {
	name string // with slashes, from the root
	size int64  // of what open gives
	// modified is kept by archives only.
	modified time.Time
	// plain is set for a CSV file that is not compressed any more.
	plain bool
	open  func() (io.ReadCloser, error)
}

// files are those of a store or an archive, by the path of the partition or by name.
type files struct {
	csv       map[string]file // by the partition's path
	manifests map[string]file
	removed   map[string]file // statements that a partition's file was removed, by the partition's path
	rendered  map[string]file // by name: made of partitions, in a rendered archive
	others    map[string]file // by name
	close     func() error
}

func newFiles() *files {
	return &files{csv: map[string]file{}, manifests: map[string]file{}, removed: map[string]file{}, rendered: map[string]file{}, others: map[string]file{}, close: func() error { return nil }}
}

// add sorts a file in by its name; false means that one like it is there already.
func (l *files) add(f file) bool {
	at, key := l.others, f.name
	if p, ok := strings.CutSuffix(f.name, schema.ManifestSuffix); ok {
		at, key = l.manifests, p
	} else if p, ok := strings.CutSuffix(f.name, schema.RemovedSuffix); ok {
		at, key = l.removed, p
	} else if isRendered(f.name) {
		at = l.rendered
	} else if p, ok := strings.CutSuffix(f.name, schema.CSVSuffix); ok {
		at, key = l.csv, p
	} else if p, ok := strings.CutSuffix(f.name, ".csv"); ok {
		at, key = l.csv, p
	}
	if _, twice := at[key]; twice {
		return false
	}
	at[key] = f
	return true
}

// readError marks a failure of the disk, which says nothing about what was recorded.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// honest marks errors of reading.
type honest struct{ io.ReadCloser }

func (h honest) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &readError{err}
	}
	return n, err
}

// maxSmall bounds the files that are read as a whole: manifests, rotations.
const maxSmall = 1 << 20

// small reads a small file whole.
func (f file) small() ([]byte, error) {
	if f.size > maxSmall {
		return nil, fmt.Errorf("it has %d bytes, too many", f.size)
	}
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxSmall+1))
}

// openArchive lists the files of an archive. Only an error of reading is returned; what is wrong with the
// archive goes into the report.
func openArchive(name string, o Options, r *Report) (*files, error) {
	f, size, err := openFile(name, o.Identities)
	if err != nil {
		return nil, err
	}
	l, err := archiveFiles(f, size, filepath.Base(name), r)
	if l != nil {
		l.close = f.Close
	} else {
		_ = f.Close()
	}
	return l, err
}

// text is what a file holds, encrypted or not.
type text struct {
	io.ReaderAt
	io.Closer
}

func openFile(name string, identities []age.Identity) (*text, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		var at io.ReaderAt
		var size int64
		if at, size, err = partitions.Decrypted(f, info.Size(), identities); err == nil {
			return &text{at, f}, size, nil
		}
	}
	_ = f.Close()
	if errors.Is(err, partitions.ErrNoIdentity) {
		err = fmt.Errorf("%s: %w: give --identity FILE with its key", name, err)
	}
	return nil, 0, err
}

func archiveFiles(at io.ReaderAt, size int64, name string, r *Report) (*files, error) {
	l := newFiles()
	entries, err := archive.Open(at, size)
	if errors.Is(err, archive.ErrLayout) {
		r.fault(name, nil, ErrArchive, "%v", err)
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		f := file{name: e.Name, size: e.CompressedSize, modified: e.Modified}
		body := func() (io.ReadCloser, error) {
			rc, err := e.Open(context.Background(), 0, e.CompressedSize)
			return honest{rc}, err
		}
		csv := strings.HasSuffix(e.Name, ".csv")
		switch {
		case isRendered(e.Name) && e.Method == archive.Deflated:
			f.size = e.UncompressedSize
			f.open = func() (io.ReadCloser, error) {
				rc, err := body()
				if err != nil {
					return nil, err
				}
				return joined{flate.NewReader(rc), rc}, nil // its SHA-256 is checked
			}
		case csv && e.Method == archive.Deflated:
			// With its header and trailer it is the partition's file again.
			f.name, f.size = strings.TrimSuffix(e.Name, ".csv")+schema.CSVSuffix, e.CompressedSize+int64(len(seal.GzipHeader))+8
			f.open = func() (io.ReadCloser, error) {
				rc, err := body()
				if err != nil {
					return nil, err
				}
				trailer := binary.LittleEndian.AppendUint32(nil, e.CRC32)
				trailer = binary.LittleEndian.AppendUint32(trailer, uint32(e.UncompressedSize))
				return joined{io.MultiReader(strings.NewReader(seal.GzipHeader), rc, bytes.NewReader(trailer)), rc}, nil
			}
		case e.Method == archive.Stored && !csv && !strings.HasSuffix(e.Name, schema.CSVSuffix):
			f.open = func() (io.ReadCloser, error) {
				rc, err := body()
				return &checked{ReadCloser: rc, want: e.CRC32}, err
			}
		default:
			r.fault(e.Name, nil, ErrArchive, "no archive has such an entry")
			continue
		}
		if !l.add(f) {
			r.fault(e.Name, nil, ErrArchive, "it is there twice")
		}
	}
	return l, nil
}

type joined struct {
	io.Reader
	io.Closer
}

// checked holds what was read against its CRC-32.
type checked struct {
	io.ReadCloser
	crc, want uint32
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.crc = crc32.Update(c.crc, crc32.IEEETable, p[:n])
	if errors.Is(err, io.EOF) && c.crc != c.want {
		err = fmt.Errorf("%w: its CRC-32 is %08x, not %08x", ErrArchive, c.crc, c.want)
	}
	return n, err
}

// openStore lists the files of a folder: a partition store, or an archive that was unpacked.
func openStore(dir string, o Options, r *Report) (*files, error) {
	l := newFiles()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if d.IsDir() {
			if name+"/" == schema.WorkPrefix { // what the exporter works on is no partition
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) { // a temporary file of a rollup at work
			return nil
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			r.fault(name, nil, ErrUnsealed, "it is no file")
			return nil
		}
		f, err := onDisk(p, name, info.Size(), o.Identities)
		if err != nil {
			return err
		}
		if !l.add(f) {
			r.fault(name, nil, ErrUnsealed, "the partition's CSV is there twice, compressed and not")
		}
		return nil
	})
	return l, err
}

// onDisk is a file of a folder. Its size is asked for only where it is not that of the file.
func onDisk(p, name string, size int64, identities []age.Identity) (file, error) {
	f := file{name: name, size: size, plain: strings.HasSuffix(name, ".csv"), open: func() (io.ReadCloser, error) {
		t, size, err := openFile(p, identities)
		if err != nil {
			return nil, &readError{err}
		}
		return honest{struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(t, 0, size), t}}, nil
	}}
	if len(identities) == 0 {
		return f, nil
	}
	t, size, err := openFile(p, identities)
	if err != nil {
		return f, err
	}
	f.size = size
	return f, t.Close()
}

// openPartition lists the one or two files of a partition, and the keys of the store around them if the
// path tells where that is. It returns the store's folder.
func openPartition(name string, o Options) (*files, error) {
	l := newFiles()
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	base := abs
	for _, suffix := range []string{schema.ManifestSuffix, schema.CSVSuffix, ".csv"} {
		if s, ok := strings.CutSuffix(abs, suffix); ok {
			base = s
			break
		}
	}
	found := false
	for _, suffix := range []string{schema.ManifestSuffix, schema.CSVSuffix, ".csv"} {
		info, err := os.Stat(base + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := onDisk(base+suffix, path.Base(filepath.ToSlash(base))+suffix, info.Size(), o.Identities)
		if err != nil {
			return nil, err
		}
		l.add(f)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("%w: there is no partition %s", fs.ErrNotExist, base)
	}
	// <root>/<org>/<trail>/2026/11/22/04
	root := base
	for range 6 {
		root = filepath.Dir(root)
	}
	keys, err := keyFiles(root, o.Identities)
	for _, f := range keys {
		l.add(f)
	}
	return l, err
}

// keyFiles lists the files of keys/ in a store or an unpacked archive.
func keyFiles(root string, identities []age.Identity) (all []file, err error) {
	names := []string{seal.FirstKey}
	for n := uint64(1); ; n++ {
		for _, name := range names {
			p := filepath.Join(root, filepath.FromSlash(name))
			info, err := os.Stat(p)
			switch {
			case err == nil && info.Mode().IsRegular():
				f, err := onDisk(p, name, info.Size(), identities)
				if err != nil {
					return nil, err
				}
				all = append(all, f)
			case name != seal.FirstKey:
				return all, nil
			}
		}
		names = []string{seal.RotationKey(n)}
	}
}
