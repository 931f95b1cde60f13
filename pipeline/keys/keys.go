// Package keys keeps the key that seals manifests: in a file of the data directory, which nobody else may
// read, while what others need to check its signatures lies in the partition store.
//
// It owns seal.key and seal.pub, and keys/ in the store: the first verifier key and the rotations from each
// key to the next. It makes a key only for a store that has no manifest, and never replaces one but by a
// rotation that the old key signed.
package keys

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/pipeline/durable"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Files of the data directory.
const (
	PrivateFile = "seal.key"      // 0600
	PublicFile  = "seal.pub"      // 0644; what auditors are given
	nextFile    = "seal.key.next" // 0600; only while a rotation is under way
)

// Name is that of the keys in signatures.
const Name = "kansa"

// What can be wrong with a key. Each error names the file and the remedy.
var (
	ErrMissing = errors.New("the sealing key is missing")
	ErrMode    = errors.New("the sealing key can be read by others")
	ErrDamaged = errors.New("the sealing key is damaged")
	ErrForeign = errors.New("the sealing key is not the one of this partition store")
	// ErrEncrypted means that the partition store was opened without the keys of its encryption at rest.
	ErrEncrypted = errors.New("the partition store is encrypted, and no key for it was given: name the configuration with encryption.partitions (-c FILE)")
)

// key is a private key as its file has it.
type key struct {
	file   []byte
	public string
	signer note.Signer
}

// Keys seals manifests with the key of a data directory. It is safe for concurrent use.
type Keys struct {
	dir    string
	bucket *blob.Bucket

	mu   sync.Mutex
	key  *key
	ring *seal.Ring
}

// Open opens the key in dir for the partitions in bucket. If there is neither a key nor a manifest, it
// makes one. It finishes a rotation that was interrupted.
func Open(ctx context.Context, dir string, bucket *blob.Bucket) (*Keys, error) {
	k := &Keys{dir: dir, bucket: bucket}
	if err := k.load(ctx, true); err != nil {
		return nil, err
	}
	return k, nil
}

// Public is the verifier key of the key that seals now.
func (k *Keys) Public() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.key.public
}

// Ring is that of the store.
func (k *Keys) Ring() *seal.Ring {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ring
}

// Seal returns the file of a manifest. It looks at the key's file each time, so that a rotation takes
// effect while the pipeline runs.
func (k *Keys) Seal(ctx context.Context, m *seal.Manifest) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	file, err := os.ReadFile(filepath.Join(k.dir, PrivateFile))
	if err != nil || !bytes.Equal(file, k.key.file) {
		if err := k.load(ctx, false); err != nil {
			return nil, err
		}
	}
	return seal.Sign(m, k.key.signer)
}

// SealRemoval returns the file of a removal.
func (k *Keys) SealRemoval(ctx context.Context, r *seal.Removal) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	file, err := os.ReadFile(filepath.Join(k.dir, PrivateFile))
	if err != nil || !bytes.Equal(file, k.key.file) {
		if err := k.load(ctx, false); err != nil {
			return nil, err
		}
	}
	return seal.SignRemoval(r, k.key.signer)
}

// Open returns the manifest of a file that a key of the store signed.
func (k *Keys) Open(ctx context.Context, file []byte) (*seal.Sealed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, err := k.ring.Open(file)
	if !errors.Is(err, seal.ErrSignature) {
		return s, err
	}
	// Perhaps it is a newer key's than we know.
	if err := k.load(ctx, false); err != nil {
		return nil, err
	}
	return k.ring.Open(file)
}

// load reads the key and the store's ring, and holds one against the other.
func (k *Keys) load(ctx context.Context, first bool) error {
	path := filepath.Join(k.dir, PrivateFile)
	ring, err := Load(ctx, k.bucket)
	if err != nil {
		return err
	}
	own, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		switch {
		case ring != nil:
			own, err = k.takeNext(ring)
			if own == nil && err == nil {
				err = fmt.Errorf("%w: there is no %s, but the partition store has partitions sealed by %s: put the file back from a backup, or copy it from the machine that has it; "+
					"only for a new, empty partition store is a new key made", ErrMissing, path, ring.Current())
			}
		case !first:
			err = fmt.Errorf("%w: %s is gone", ErrMissing, path)
		default:
			own, err = k.create(ctx, path)
		}
	}
	if err != nil {
		return err
	}
	if ring == nil {
		if ring, err = k.found(ctx, own); err != nil {
			return err
		}
	}
	if own.public != ring.Current() {
		next, err := k.takeNext(ring)
		if err != nil {
			return err
		}
		if next == nil {
			return fmt.Errorf("%w: %s is %s, the store is sealed by %s: copy %s from the machine that sealed or rotated last", ErrForeign, path, own.public, ring.Current(), PrivateFile)
		}
		own = next
	}
	if err := k.publish(own, ring); err != nil {
		return err
	}
	k.key, k.ring = own, ring
	return nil
}

// takeNext finishes a rotation that is in the store, but whose key has not taken its place yet. It returns
// nil if there is none.
func (k *Keys) takeNext(ring *seal.Ring) (*key, error) {
	path := filepath.Join(k.dir, nextFile)
	next, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && next.public != ring.Current() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := os.Rename(path, filepath.Join(k.dir, PrivateFile)); err != nil {
		return nil, fmt.Errorf("put the new key in its place: %w", err)
	}
	return next, durable.SyncDir(k.dir)
}

// create makes the first key, unless the store has manifests: then its keys/ was lost.
func (k *Keys) create(ctx context.Context, path string) (*key, error) {
	if at, err := anyManifest(ctx, k.bucket); at != "" || err != nil {
		if err == nil {
			err = fmt.Errorf("%w: there is no %s, and the partition store has no %s, but it has %s: put both back from a backup", ErrMissing, path, seal.FirstKey, at)
		}
		return nil, err
	}
	made, err := newKey()
	if err != nil {
		return nil, err
	}
	err = durable.New(path, made.file, 0o600)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		return readKey(path)
	}
	return made, err
}

// found makes own the first key of the store; of several at once, one succeeds.
func (k *Keys) found(ctx context.Context, own *key) (*seal.Ring, error) {
	if at, err := anyManifest(ctx, k.bucket); at != "" || err != nil {
		if err == nil {
			err = fmt.Errorf("%w: the partition store has %s, but no %s: put that back from a backup; it is the first verifier key", ErrForeign, at, seal.FirstKey)
		}
		return nil, err
	}
	err := k.bucket.WriteAll(ctx, seal.FirstKey, []byte(own.public+"\n"), &blob.WriterOptions{ContentType: "text/plain; charset=utf-8", IfNotExist: true})
	if err != nil && gcerrors.Code(err) != gcerrors.FailedPrecondition {
		return nil, fmt.Errorf("keep the verifier key in the partition store: %w", err)
	}
	return Load(ctx, k.bucket)
}

// publish writes seal.pub where it is missing, or is that of a key that was rotated away.
func (k *Keys) publish(own *key, ring *seal.Ring) error {
	path := filepath.Join(k.dir, PublicFile)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the verifier key: %w", err)
	}
	have := strings.TrimSpace(string(text))
	if have == own.public {
		return nil
	}
	known := err != nil // there is none
	for _, old := range ring.Keys() {
		known = known || old == have
	}
	if !known {
		return fmt.Errorf("%w: %s is not the verifier key of %s: remove it, and it is written anew", ErrDamaged, path, PrivateFile)
	}
	return durable.Replace(path, []byte(own.public+"\n"), 0o644)
}

// Load returns the ring of a partition store, or nil if it has no first key.
func Load(ctx context.Context, bucket *blob.Bucket) (*seal.Ring, error) {
	files, err := seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		if err == nil && partitions.IsEncrypted(data) {
			return nil, fmt.Errorf("%w: %s", ErrEncrypted, name)
		}
		return data, err
	})
	if err != nil || files.First == nil {
		return nil, wrap(err)
	}
	ring, err := files.Ring()
	return ring, wrap(err)
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("keys of the partition store: %w", err)
}

// anyManifest returns the key of a manifest in the store, or nothing.
func anyManifest(ctx context.Context, bucket *blob.Bucket) (string, error) {
	list := bucket.List(nil)
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("look for manifests in the partition store: %w", err)
		}
		if strings.HasSuffix(o.Key, schema.ManifestSuffix) && !strings.HasPrefix(o.Key, schema.WorkPrefix) {
			return o.Key, nil
		}
	}
}

func newKey() (*key, error) {
	private, _, err := note.GenerateKey(rand.Reader, Name)
	if err != nil {
		return nil, fmt.Errorf("make a sealing key: %w", err)
	}
	return parseKey([]byte(private + "\n"))
}
