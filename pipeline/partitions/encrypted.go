package partitions

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

// ErrNoIdentity means that an object is encrypted to a key that is not among the identities given.
var ErrNoIdentity = errors.New("encrypted to a key that is not here")

// ErrIdentities means that identities can not be used.
var ErrIdentities = errors.New("unusable identities")

const (
	// magic begins whatever is encrypted by age, and nothing that Kansa stores as it is.
	magic = "age-encryption.org/v1\n"
	// sealedSuffix ends the names of archives that are encrypted to somebody else already. They stay as they are.
	sealedSuffix = ".age"
	// header is enough to hold the longest header that one recipient makes, a post-quantum one.
	header = 4096
	nonce  = 16
	chunk  = 64 << 10
	tag    = 16 // of each chunk
)

// Encrypt returns inner with what it holds encrypted by age: objects are written to the first identity, and read by
// whichever fits, so that a new key is put in front of the old one. Objects that were stored before, in plain, are
// read as they are. Names and times are not encrypted. Closing the bucket closes inner.
//
// Every object can be read without Kansa: age -d -i FILE.
func Encrypt(inner *blob.Bucket, identities []age.Identity) (*blob.Bucket, error) {
	if len(identities) == 0 {
		return nil, fmt.Errorf("%w: there are none: make one with kansa key generate partitions or age-keygen", ErrIdentities)
	}
	to, err := recipient(identities[0])
	if err != nil {
		return nil, err
	}
	return blob.NewBucket(&encrypted{inner: inner, to: to, identities: identities}), nil
}

// Identities reads what age-keygen makes: a key a line, newest first, and comments.
func Identities(text []byte) ([]age.Identity, error) {
	all, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentities, err)
	}
	_, err = recipient(all[0])
	return all, err
}

// IsEncrypted reports whether an object, as it is stored, is encrypted.
func IsEncrypted(object []byte) bool { return bytes.HasPrefix(object, []byte(magic)) }

// Recipient is to whom an identity's objects are encrypted, as text.
func Recipient(i age.Identity) (string, error) {
	r, err := recipient(i)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(r), nil
}

func recipient(i age.Identity) (age.Recipient, error) {
	switch i := i.(type) {
	case *age.X25519Identity:
		return i.Recipient(), nil
	case *age.HybridIdentity:
		return i.Recipient(), nil
	}
	return nil, fmt.Errorf("%w: a key of the type %T: use one that age-keygen makes", ErrIdentities, i)
}

// Decrypted returns the text of a file and its size, whether it is encrypted or not. Without a key that fits, the error
// answers to ErrNoIdentity.
func Decrypted(f io.ReaderAt, size int64, identities []age.Identity) (io.ReaderAt, int64, error) {
	head := make([]byte, len(magic))
	if n, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	} else if string(head[:n]) != magic {
		return f, size, nil
	}
	if len(identities) == 0 {
		return nil, 0, ErrNoIdentity
	}
	text, size, err := age.DecryptReaderAt(f, size, identities...)
	if no := new(age.NoIdentityMatchError); errors.As(err, &no) {
		return nil, 0, ErrNoIdentity
	}
	return text, size, err
}

// Reencrypt writes anew each object that is in plain or encrypted to another key than the newest, and calls each with
// its name before it does. It may be stopped and begun again.
func Reencrypt(ctx context.Context, bucket *blob.Bucket, each func(key string)) (n int, err error) {
	var e *encrypted
	if !bucket.As(&e) {
		return 0, fmt.Errorf("%w: the store is not encrypted: set encryption.partitions", ErrIdentities)
	}
	list := e.inner.List(nil)
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("list the partition store: %w", err)
		}
		if strings.HasSuffix(o.Key, sealedSuffix) {
			continue
		}
		current, err := e.current(ctx, o.Key)
		if err == nil && !current {
			each(o.Key)
			err = e.again(ctx, o.Key)
			n++
		}
		if err != nil && gcerrors.Code(err) != gcerrors.NotFound { // it may have been removed meanwhile
			return n, fmt.Errorf("encrypt %s anew: %w", o.Key, err)
		}
	}
}

// current says whether an object is encrypted to the newest key.
func (e *encrypted) current(ctx context.Context, key string) (bool, error) {
	in, err := e.inner.NewRangeReader(ctx, key, 0, header, nil)
	if err != nil {
		return false, err
	}
	defer in.Close()
	head, err := io.ReadAll(in)
	if err != nil || !bytes.HasPrefix(head, []byte(magic)) {
		return false, err
	}
	text, err := age.ExtractHeader(bytes.NewReader(head))
	if err != nil {
		return false, err
	}
	_, err = age.DecryptHeader(text, e.identities[0])
	if no := new(age.NoIdentityMatchError); errors.As(err, &no) {
		return false, nil
	}
	return err == nil, err
}

// again replaces an object by itself: readers have the old one or the new one.
func (e *encrypted) again(ctx context.Context, key string) error {
	in, err := e.NewRangeReader(ctx, key, 0, -1, &driver.ReaderOptions{})
	if err != nil {
		return err
	}
	defer in.Close()
	writing, abort := context.WithCancel(ctx)
	defer abort()
	out, err := e.NewTypedWriter(writing, key, in.Attributes().ContentType, &driver.WriterOptions{})
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		abort()
		return errors.Join(err, ignoreCanceled(out.Close()))
	}
	return out.Close()
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) || gcerrors.Code(err) == gcerrors.Canceled {
		return nil
	}
	return err
}

// encrypted is a driver.Bucket over another bucket.
type encrypted struct {
	inner      *blob.Bucket
	to         age.Recipient
	identities []age.Identity
}

var _ driver.Bucket = (*encrypted)(nil)

// NewTypedWriter encrypts what is written, unless it is encrypted to somebody else already.
func (e *encrypted) NewTypedWriter(ctx context.Context, key, contentType string, o *driver.WriterOptions) (driver.Writer, error) {
	options := &blob.WriterOptions{ContentType: contentType, IfNotExist: o.IfNotExist, BeforeWrite: o.BeforeWrite, DisableContentTypeDetection: true}
	if strings.HasSuffix(key, sealedSuffix) {
		return e.inner.NewWriter(ctx, key, options)
	}
	ctx, abort := context.WithCancel(ctx)
	out, err := e.inner.NewWriter(ctx, key, options)
	if err != nil {
		abort()
		return nil, err
	}
	w, err := age.Encrypt(out, e.to)
	if err != nil {
		abort()
		return nil, errors.Join(fmt.Errorf("encrypt %s: %w", key, err), ignoreCanceled(out.Close()))
	}
	return &sealing{w: w, out: out, abort: abort}, nil
}

// sealing keeps its error: what could not be written whole is not to be there.
type sealing struct {
	w     io.WriteCloser // encrypts to out
	out   *blob.Writer
	abort context.CancelFunc
	err   error
}

func (s *sealing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = errors.Join(s.err, err)
	return n, err
}

func (s *sealing) Close() error {
	defer s.abort()
	if s.err == nil {
		s.err = s.w.Close()
	}
	if s.err != nil {
		s.abort()
		return errors.Join(s.err, ignoreCanceled(s.out.Close()))
	}
	return s.out.Close()
}

// object is what is known of one after a look at its beginning.
type object struct {
	size   int64 // of its text
	sealed bool
	stored int64 // bytes
}

// look reads the beginning of an object.
func (e *encrypted) look(ctx context.Context, key string, stored int64) (object, error) {
	plain := object{size: stored, stored: stored}
	if strings.HasSuffix(key, sealedSuffix) || stored < int64(len(magic)) {
		return plain, nil
	}
	in, err := e.inner.NewRangeReader(ctx, key, 0, header, nil)
	if err != nil {
		return object{}, err
	}
	defer in.Close()
	head, err := io.ReadAll(in)
	if err != nil {
		return object{}, err
	}
	if !bytes.HasPrefix(head, []byte(magic)) {
		return plain, nil
	}
	text, err := age.ExtractHeader(bytes.NewReader(head))
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", key, err)
	}
	payload := stored - int64(len(text)) - nonce
	chunks := (payload + chunk + tag - 1) / (chunk + tag)
	if payload < tag {
		return object{}, fmt.Errorf("%s has %d bytes, too few for what is encrypted: it was cut off", key, stored)
	}
	return object{size: payload - chunks*tag, sealed: true, stored: stored}, nil
}

func (e *encrypted) Attributes(ctx context.Context, key string) (*driver.Attributes, error) {
	a, err := e.inner.Attributes(ctx, key)
	if err != nil {
		return nil, err
	}
	o, err := e.look(ctx, key, a.Size)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{ContentType: a.ContentType, ModTime: a.ModTime, Size: o.size, ETag: a.ETag}, nil
}

// ListPaged tells the sizes of the texts, for which it has to look into each object.
func (e *encrypted) ListPaged(ctx context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	token := o.PageToken
	if len(token) == 0 {
		token = blob.FirstPageToken
	}
	size := o.PageSize
	if size == 0 {
		size = 1000
	}
	list, next, err := e.inner.ListPage(ctx, token, size, &blob.ListOptions{Prefix: o.Prefix, Delimiter: o.Delimiter, BeforeList: o.BeforeList})
	if err != nil {
		return nil, err
	}
	page := &driver.ListPage{NextPageToken: next, Objects: make([]*driver.ListObject, 0, len(list))}
	for _, l := range list {
		at := &driver.ListObject{Key: l.Key, ModTime: l.ModTime, Size: l.Size, MD5: nil, IsDir: l.IsDir}
		if !l.IsDir {
			looked, err := e.look(ctx, l.Key, l.Size)
			if gcerrors.Code(err) == gcerrors.NotFound {
				continue // it was deleted just now
			}
			if err != nil {
				return nil, err
			}
			at.Size = looked.size
		}
		page.Objects = append(page.Objects, at)
	}
	return page, nil
}

// NewRangeReader decrypts the chunks that hold the range, and the last one, which says that nothing was cut off.
func (e *encrypted) NewRangeReader(ctx context.Context, key string, offset, length int64, o *driver.ReaderOptions) (driver.Reader, error) {
	a, err := e.inner.Attributes(ctx, key)
	if err != nil {
		return nil, err
	}
	known, err := e.look(ctx, key, a.Size)
	if err != nil {
		return nil, err
	}
	attributes := driver.ReaderAttributes{ContentType: a.ContentType, ModTime: a.ModTime, Size: known.size}
	if !known.sealed {
		in, err := e.inner.NewRangeReader(ctx, key, offset, length, &blob.ReaderOptions{BeforeRead: o.BeforeRead})
		if err != nil {
			return nil, err
		}
		return &decrypted{Reader: in, close: in.Close, attributes: attributes}, nil
	}
	source := &stored{ctx: ctx, bucket: e.inner, key: key, size: a.Size}
	if offset == 0 && (length < 0 || length >= known.size) {
		whole, err := age.Decrypt(io.NewSectionReader(source, 0, a.Size), e.identities...)
		if err != nil {
			return nil, errors.Join(opening(key, err), source.Close())
		}
		return &decrypted{Reader: whole, close: source.Close, attributes: attributes}, nil
	}
	text, size, err := age.DecryptReaderAt(source, a.Size, e.identities...)
	if err != nil {
		return nil, errors.Join(opening(key, err), source.Close())
	}
	if length < 0 || length > size-offset {
		length = max(0, size-offset)
	}
	return &decrypted{Reader: io.NewSectionReader(text, offset, length), close: source.Close, attributes: attributes}, nil
}

func opening(key string, err error) error {
	if no := new(age.NoIdentityMatchError); errors.As(err, &no) {
		return fmt.Errorf("open %s: %w: give the identities it was written with, too", key, ErrNoIdentity)
	}
	return fmt.Errorf("open %s: %w", key, err)
}

type decrypted struct {
	io.Reader
	close      func() error
	attributes driver.ReaderAttributes
}

func (d *decrypted) Close() error                         { return d.close() }
func (d *decrypted) Attributes() *driver.ReaderAttributes { return &d.attributes }
func (*decrypted) As(any) bool                            { return false }

// stored reads an object at any place, and goes on where it is when that is where it is asked to read.
type stored struct {
	ctx    context.Context // of the reader it is of
	bucket *blob.Bucket
	key    string
	size   int64
	in     *blob.Reader
	at     int64
}

func (s *stored) ReadAt(p []byte, offset int64) (int, error) {
	if offset >= s.size {
		return 0, io.EOF
	}
	if s.in == nil || s.at != offset {
		if err := s.Close(); err != nil {
			return 0, err
		}
		in, err := s.bucket.NewRangeReader(s.ctx, s.key, offset, -1, nil)
		if err != nil {
			return 0, err
		}
		s.in, s.at = in, offset
	}
	n, err := io.ReadFull(s.in, p)
	s.at += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func (s *stored) Close() error {
	if s.in == nil {
		return nil
	}
	err := s.in.Close()
	s.in = nil
	return err
}

func (e *encrypted) Copy(ctx context.Context, to, from string, _ *driver.CopyOptions) error {
	return e.inner.Copy(ctx, to, from, nil)
}

func (e *encrypted) Delete(ctx context.Context, key string, _ *driver.DeleteOptions) error {
	return e.inner.Delete(ctx, key)
}

func (e *encrypted) ErrorCode(err error) gcerrors.ErrorCode {
	if errors.Is(err, ErrNoIdentity) {
		return gcerrors.PermissionDenied
	}
	return gcerrors.Code(err)
}

// As gives Reencrypt what is behind a bucket.
func (e *encrypted) As(i any) bool {
	p, ok := i.(**encrypted)
	if ok {
		*p = e
	}
	return ok
}

func (e *encrypted) ErrorAs(err error, i any) bool { return e.inner.ErrorAs(err, i) }
func (e *encrypted) Close() error                  { return e.inner.Close() }

func (e *encrypted) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errUnimplemented
}
