package keys

import (
	"context"
	"errors"
	"sync"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/schema/seal"
)

// Receipts signs receipts with the key of a data directory. Unlike [Open] it never makes a key: the role that
// delivers may run on another machine than the one that seals, which has it. It is safe for concurrent use.
type Receipts struct {
	Dir    string
	Bucket *blob.Bucket

	mu sync.Mutex
}

// Ready tells whether there is a key to sign with.
func (r *Receipts) Ready(ctx context.Context) error {
	_, err := r.open(ctx)
	return err
}

// open reads the key and the ring anew: a rotation takes effect at once, and receipts are few.
func (r *Receipts) open(ctx context.Context) (*Keys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := &Keys{dir: r.Dir, bucket: r.Bucket}
	if err := k.load(ctx, false); err != nil {
		return nil, err
	}
	return k, nil
}

// Seal returns the file of a receipt.
func (r *Receipts) Seal(ctx context.Context, receipt *seal.Receipt) ([]byte, error) {
	for {
		k, err := r.open(ctx)
		if err != nil {
			return nil, err
		}
		file, err := seal.SignReceipt(receipt, k.key.signer)
		if err != nil {
			return nil, err
		}
		// The key may have been rotated away since the file was read back, if only just.
		ring, err := Load(ctx, r.Bucket)
		if err != nil {
			return nil, err
		}
		if _, err = ring.OpenReceipt(file); !errors.Is(err, seal.ErrRetired) {
			return file, err
		}
	}
}
