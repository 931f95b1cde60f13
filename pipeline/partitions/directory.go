package partitions

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/pipeline/durable"
	"github.com/kansa-audit/kansa/schema"
)

const (
	directoryMode = 0o700
	fileMode      = 0o600
	// unfinished ends the name of a file that is being written. It is no object.
	unfinished = ".tmp"
	mimeType   = "application/octet-stream"
)

var (
	errKey           = errors.New("not a key of this store")
	errUnimplemented = errors.New("the partition store has no such thing")
	errExists        = errors.New("the object is there already")
)

// directory is a driver.Bucket: an object is the file of that name. Types of contents and other metadata
// are not kept.
type directory struct {
	root string
	sync func(*os.File) error // (*os.File).Sync, except where a test listens

	mu sync.Mutex
	// durable has the directories whose entries up to the root are on disk. Those of the hour are asked
	// for again and again, those of last month never more, so that it may be emptied at any time.
	durable map[string]bool
}

// most directories in durable.
const mostDurable = 4096

var _ driver.Bucket = (*directory)(nil)

func (d *directory) path(key string) (string, error) {
	path := filepath.FromSlash(key)
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || strings.HasSuffix(path, unfinished) {
		return "", fmt.Errorf("%w: %q", errKey, key)
	}
	return filepath.Join(d.root, path), nil
}

// makeDurable makes dir where there is none, and sees to it that it is still there after a power cut.
func (d *directory) makeDurable(dir string) error {
	d.mu.Lock()
	known := d.durable[dir]
	d.mu.Unlock()
	if _, err := os.Stat(dir); err == nil && known {
		return nil
	}
	if err := durable.MkdirAll(dir, directoryMode); err != nil {
		return err
	}
	// It may be there because somebody else has just made it and not yet come to this. Above the root
	// only the root's own entry is our business.
	for at := dir; ; at = filepath.Dir(at) {
		if err := d.syncEntries(filepath.Dir(at)); err != nil {
			return err
		}
		if len(at) <= len(d.root) {
			break
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.durable) >= mostDurable {
		clear(d.durable)
	}
	d.durable[dir] = true
	return nil
}

// syncEntries makes the names in dir durable. Where a directory can't be opened for it, the system has its
// own way.
func (d *directory) syncEntries(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.sync(f)
	return errors.Join(err, f.Close())
}

// NewTypedWriter writes to a file of another name beside the object.
func (d *directory) NewTypedWriter(ctx context.Context, key, _ string, o *driver.WriterOptions) (driver.Writer, error) {
	path, err := d.path(key)
	if err != nil {
		return nil, err
	}
	if err := d.makeDurable(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+"."+rand.Text()+unfinished, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	if err := durable.Adopt(f, path); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if o.BeforeWrite != nil {
		if err := o.BeforeWrite(func(any) bool { return false }); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}
	return &writer{ctx: ctx, store: d, file: f, path: path, once: o.IfNotExist}, nil
}

type writer struct {
	ctx   context.Context // if it is over when the writer is closed, nothing was written
	store *directory
	file  *os.File
	path  string
	once  bool // only if there is no such object
	err   error
}

// Write keeps its error: the bucket closes a writer that could not write all, as it does any other.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.err = errors.Join(w.err, err)
	return n, err
}

// Close returns nil when the object, with its name, is on disk.
func (w *writer) Close() error {
	err := errors.Join(w.err, w.ctx.Err())
	if err == nil {
		err = w.store.sync(w.file)
	}
	err = errors.Join(err, w.file.Close())
	if err == nil {
		err = w.ctx.Err() // syncing takes its time
	}
	if err == nil {
		err = w.name()
	}
	if err != nil {
		_ = os.Remove(w.file.Name()) // the error is the one that counts
		return err
	}
	return w.store.syncEntries(filepath.Dir(w.path))
}

func (w *writer) name() error {
	if !w.once {
		return os.Rename(w.file.Name(), w.path)
	}
	if err := os.Link(w.file.Name(), w.path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return errExists
		}
		return err
	}
	return os.Remove(w.file.Name())
}

// NewRangeReader opens an object. Reading takes one call of the system for as much as is asked for.
func (d *directory) NewRangeReader(_ context.Context, key string, offset, length int64, o *driver.ReaderOptions) (driver.Reader, error) {
	path, err := d.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil && o.BeforeRead != nil {
		err = o.BeforeRead(func(any) bool { return false })
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	end := info.Size()
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	return &reader{
		file: f, at: offset, end: end,
		attributes: driver.ReaderAttributes{ContentType: mimeType, ModTime: info.ModTime(), Size: info.Size()},
	}, nil
}

type reader struct {
	file       *os.File
	at, end    int64
	attributes driver.ReaderAttributes
}

func (r *reader) Read(p []byte) (int, error) {
	if r.at >= r.end {
		return 0, io.EOF
	}
	if int64(len(p)) > r.end-r.at {
		p = p[:r.end-r.at]
	}
	n, err := r.file.ReadAt(p, r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // it was cut off while we read; the next Read says so
	}
	return n, err
}

func (r *reader) Close() error                         { return r.file.Close() }
func (r *reader) Attributes() *driver.ReaderAttributes { return &r.attributes }
func (r *reader) As(any) bool                          { return false }

func (d *directory) Attributes(_ context.Context, key string) (*driver.Attributes, error) {
	path, err := d.path(key)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	return &driver.Attributes{
		ContentType: mimeType, ModTime: info.ModTime(), Size: info.Size(),
		ETag: fmt.Sprintf("\"%x-%x\"", info.ModTime().UnixNano(), info.Size()),
	}, nil
}

func (d *directory) Copy(ctx context.Context, to, from string, _ *driver.CopyOptions) error {
	in, err := d.NewRangeReader(ctx, from, 0, -1, &driver.ReaderOptions{})
	if err != nil {
		return err
	}
	defer in.Close()
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	out, err := d.NewTypedWriter(ctx, to, "", &driver.WriterOptions{})
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		abort()
		_ = out.Close()
		return err
	}
	return out.Close()
}

func (d *directory) Delete(_ context.Context, key string, _ *driver.DeleteOptions) error {
	path, err := d.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if strings.HasPrefix(key, schema.WorkPrefix) && filepath.Dir(dir) != d.root && os.Remove(dir) == nil {
		return d.syncEntries(filepath.Dir(dir)) // the working area was empty, and nobody makes it anew
	}
	return d.syncEntries(dir)
}

// ErrorCode tells the portable type what an error means.
func (d *directory) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gcerrors.NotFound
	case errors.Is(err, errExists):
		return gcerrors.FailedPrecondition
	case errors.Is(err, errKey):
		return gcerrors.InvalidArgument
	case errors.Is(err, errUnimplemented):
		return gcerrors.Unimplemented
	case errors.Is(err, fs.ErrPermission):
		return gcerrors.PermissionDenied
	}
	return gcerrors.Unknown
}

func (d *directory) As(any) bool             { return false }
func (d *directory) ErrorAs(error, any) bool { return false }
func (d *directory) Close() error            { return nil }

func (d *directory) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errUnimplemented
}
