package keys

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/pipeline/durable"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Rotate makes a new key, has the old one sign that it takes its place, and puts that statement into the
// store and the new key into dir. It may be interrupted at any point: either the old key still seals, or
// whoever opens the keys next puts the new one in its place. The old private key is gone then.
func Rotate(ctx context.Context, dir string, bucket *blob.Bucket, now time.Time) (*seal.Rotation, error) {
	k, err := Open(ctx, dir, bucket)
	if err != nil {
		return nil, err
	}
	next, err := newKey()
	if err != nil {
		return nil, err
	}
	// First the key: a statement whose key is lost would leave the store without one.
	path := filepath.Join(dir, nextFile)
	if err := durable.Replace(path, next.file, 0o600); err != nil {
		return nil, err
	}
	r := &seal.Rotation{
		Version: 1, Number: uint64(len(k.ring.Keys())), OldKey: k.key.public, NewKey: next.public, Time: now.UTC().Truncate(time.Second),
	}
	file, err := seal.SignRotation(r, k.key.signer, next.signer)
	if err != nil {
		return nil, err
	}
	err = bucket.WriteAll(ctx, seal.RotationKey(r.Number), file, &blob.WriterOptions{ContentType: "text/plain; charset=utf-8", IfNotExist: true})
	if gcerrors.Code(err) == gcerrors.FailedPrecondition {
		return nil, fmt.Errorf("%w: somebody else rotated it at the same time: copy %s from there", ErrForeign, PrivateFile)
	}
	if err != nil {
		return nil, fmt.Errorf("keep the rotation in the partition store: %w", err)
	}
	if err := os.Rename(path, filepath.Join(dir, PrivateFile)); err != nil {
		return nil, fmt.Errorf("put the new key in its place: %w", err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	return r, durable.Replace(filepath.Join(dir, PublicFile), []byte(next.public+"\n"), 0o644)
}
