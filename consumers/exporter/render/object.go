package render

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Object is an encrypted archive in a working area. Any number of readers may read it.
type Object struct {
	bucket   *blob.Bucket
	key      string
	size     int64
	modified time.Time
	id       string
}

// Object returns what Encrypt kept, or ErrNotRendered.
func (a *Area) Object(ctx context.Context, name string) (*Object, error) {
	o := &Object{bucket: a.Bucket, key: a.prefix() + name}
	at, err := o.bucket.Attributes(ctx, o.key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fmt.Errorf("%w: %s has no encrypted archive", ErrNotRendered, a.Export)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the encrypted archive of %s: %w", a.Export, err)
	}
	o.size, o.modified = at.Size, at.ModTime
	// Its beginning has keys that were made for this one archive.
	head, err := o.bucket.NewRangeReader(ctx, o.key, 0, 4096, nil)
	if err != nil {
		return nil, fmt.Errorf("read the encrypted archive of %s: %w", a.Export, err)
	}
	defer head.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, head); err != nil {
		return nil, fmt.Errorf("read the encrypted archive of %s: %w", a.Export, err)
	}
	o.id = hex.EncodeToString(sum.Sum(nil))
	return o, nil
}

// Size is the length in bytes.
func (o *Object) Size() int64 { return o.size }

// Modified is when it was made.
func (o *Object) Modified() time.Time { return o.modified }

// Len is the number of files that can be seen in it.
func (o *Object) Len() int { return 1 }

// ETag identifies its bytes, quoted as HTTP wants it.
func (o *Object) ETag() string { return `"` + o.id + `"` }

// Check tells whether it is still there.
func (o *Object) Check(ctx context.Context) error {
	at, err := o.bucket.Attributes(ctx, o.key)
	if err == nil && at.Size != o.size {
		err = errors.New("it has another size than a moment ago")
	}
	if err != nil {
		return fmt.Errorf("the encrypted archive: %w", err)
	}
	return nil
}

// WriteTo writes all of it.
func (o *Object) WriteTo(ctx context.Context, w io.Writer) (int64, error) {
	r := o.NewReader(ctx)
	n, err := io.Copy(w, r)
	return n, errors.Join(err, r.Close())
}

// NewReader reads from the start. Seeking is free. The reader is for one goroutine.
func (o *Object) NewReader(ctx context.Context) io.ReadSeekCloser {
	return &objectReader{ctx: ctx, of: o}
}

type objectReader struct {
	ctx context.Context // bounds every read
	of  *Object
	at  int64
	in  *blob.Reader
}

func (r *objectReader) Read(p []byte) (int, error) {
	if r.at >= r.of.size {
		return 0, io.EOF
	}
	if r.in == nil {
		var err error
		if r.in, err = r.of.bucket.NewRangeReader(r.ctx, r.of.key, r.at, -1, nil); err != nil {
			return 0, fmt.Errorf("read the encrypted archive: %w", err)
		}
	}
	n, err := r.in.Read(p)
	r.at += int64(n)
	if errors.Is(err, io.EOF) && r.at < r.of.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *objectReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.of.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: before the start", offset)
	}
	if offset != r.at {
		if err := r.Close(); err != nil {
			return 0, err
		}
	}
	r.at = offset
	return offset, nil
}

func (r *objectReader) Close() error {
	if r.in == nil {
		return nil
	}
	err := r.in.Close()
	r.in = nil
	return err
}
