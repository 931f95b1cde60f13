package verify

import (
	"context"
	"errors"
	"fmt"
	"io"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrNotSealed means that the hour of an event is not sealed yet.
var ErrNotSealed = errors.New("the hour is not sealed yet")

// ProveStored makes the proof of an event of which the partition is known, from the store itself.
func ProveStored(ctx context.Context, bucket *blob.Bucket, p schema.Partition, e Event) (*seal.Proof, error) {
	l := newFiles()
	for _, key := range []string{p.ManifestKey(), p.CSVKey()} {
		a, err := bucket.Attributes(ctx, key)
		if gcerrors.Code(err) == gcerrors.NotFound && key == p.ManifestKey() {
			return nil, fmt.Errorf("%w: %s: ask again after the hour has ended", ErrNotSealed, p)
		}
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", key, err)
		}
		l.add(file{name: key, size: a.Size, open: func() (io.ReadCloser, error) { return bucket.NewReader(ctx, key, nil) }})
	}
	names, err := seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		return data, err
	})
	if err != nil {
		return nil, err
	}
	proof, err := prove(ctx, l, e, Options{Parallel: 1})
	if err != nil {
		return nil, err
	}
	for _, rotation := range names.Rotations {
		proof.Rotations = append(proof.Rotations, string(rotation))
	}
	return proof, nil
}
