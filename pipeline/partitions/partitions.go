// Package partitions opens the store of partitions: a directory, by a driver of its own, or whatever
// else gocloud.dev/blob has a driver for.
//
// The directory's driver keeps the promise that services keep by contract and that plain files do not:
// when a writer is closed without an error, the object survives a power cut, under its name. The rollup
// relies on it, for what it was made of may be deleted then. And it lists in one walk, however many pages
// are asked for, without a look into any file.
//
// The package never knows what is in an object.
package partitions

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/buckets"
)

// Open opens the bucket at a URL. The directory of a file:// URL is made where there is none; other
// schemes are those of package buckets. A store has to know If-None-Match: of two processes that seal, one is refused.
func Open(ctx context.Context, target string) (*blob.Bucket, error) {
	path, ok := strings.CutPrefix(target, "file://")
	if !ok {
		bucket, err := buckets.Open(ctx, target)
		if err != nil {
			return nil, fmt.Errorf("open the partition store: %w", err)
		}
		return bucket, nil
	}
	path, err := url.PathUnescape(path)
	if err != nil {
		return nil, fmt.Errorf("partitions.url %s: %w", target, err)
	}
	bucket, err := OpenDirectory(filepath.FromSlash(path))
	if err != nil {
		return nil, fmt.Errorf("open the partition store %s: %w", target, err)
	}
	return bucket, nil
}

// OpenDirectory opens a directory, and makes it where there is none.
func OpenDirectory(path string) (*blob.Bucket, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := newDirectory(path)
	if err := d.makeDurable(path); err != nil {
		return nil, err
	}
	return blob.NewBucket(d), nil
}

func newDirectory(path string) *directory {
	return &directory{root: path, sync: (*os.File).Sync, durable: map[string]bool{}}
}
