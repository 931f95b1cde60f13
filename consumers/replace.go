package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrReplaced means that a key does not have the revision that was to be replaced.
var ErrReplaced = errors.New("it was changed meanwhile")

// Replace writes a key of a bucket in place of a revision, and returns the new one. Revision zero stands for a key
// that is not there: one that never was, and one that was removed, whose marker has a revision of its own. An error
// that answers to ErrReplaced means that another writer was first; it is the same on one server and in a cluster,
// whose errors differ.
func Replace(ctx context.Context, kv jetstream.KeyValue, key string, data []byte, revision uint64) (uint64, error) {
	var err error
	if revision == 0 {
		revision, err = kv.Create(ctx, key, data)
	} else {
		revision, err = kv.Update(ctx, key, data, revision)
	}
	return revision, Replaced(err)
}

// Replaced has an error of a bucket answer to ErrReplaced if it says that a key has another revision.
func Replaced(err error) error {
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	return err
}
