package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Gone is the error for an archive that was delivered by a link and cannot be had any more, although the link has not
// expired. Reason is for the person who holds the link.
type Gone struct{ Reason string }

func (g *Gone) Error() string { return "the archive is gone: " + g.Reason }

// Promise is what a link promises: this archive and no other.
type Promise struct {
	// ETag is that of the archive.
	ETag string `json:"etag,omitempty"`
	// Rotations is how many rotations of keys the archive has.
	Rotations int `json:"rotations,omitempty"`
	// Oldest has the oldest file of each trail: retention removes the oldest files first.
	Oldest []string `json:"oldest,omitempty"`
}

// Available returns a *Gone if retention has removed hours of an archive that was delivered by a link. It looks at one
// object for each trail, so it may be asked before each download.
func Available(ctx context.Context, bucket *blob.Bucket, e *Export) error {
	for _, key := range e.Oldest {
		there, err := bucket.Exists(ctx, key)
		if err != nil {
			return fmt.Errorf("look for %s: %w", key, err)
		}
		if there {
			continue
		}
		removal, err := readRemoval(ctx, bucket, strings.TrimSuffix(key, schema.CSVSuffix)+schema.RemovedSuffix)
		if err != nil {
			return fmt.Errorf("file %s of export %s is missing: %w", key, e.ID, err)
		}
		return &Gone{fmt.Sprintf("hours of it were removed on %s by the organization's %s", removal.Time.Format(time.DateOnly), removal.Reason)}
	}
	return nil
}

// readRemoval reads the statement that a file was removed.
func readRemoval(ctx context.Context, bucket *blob.Bucket, key string) (*seal.Removal, error) {
	file, err := bucket.ReadAll(ctx, key)
	if err != nil {
		return nil, err
	}
	keys, err := readKeys(ctx, bucket)
	if err != nil {
		return nil, err
	}
	ring, err := keys.Ring()
	if err != nil {
		return nil, err
	}
	return ring.OpenRemoval(file)
}

func readKeys(ctx context.Context, bucket *blob.Bucket) (seal.KeyFiles, error) {
	return seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		return data, err
	})
}

// PlanLink lays out the archive that a link promised, byte for byte, or returns a *Gone.
func PlanLink(ctx context.Context, bucket *blob.Bucket, e *Export) (*Plan, error) {
	rotations := e.Rotations
	if e.ETag == "" { // it was not delivered by a link
		rotations = allRotations
	}
	plan, err := planArchive(ctx, bucket, &e.Request, rotations)
	switch {
	case errors.Is(err, render.ErrNotRendered):
		return nil, &Gone{"its rendered files were removed"}
	case err != nil:
		return nil, err
	case e.ETag != "" && plan.ETag() != e.ETag:
		return nil, &Gone{"the hours that it holds have changed since it was made"}
	}
	return plan, nil
}

// oldest are the oldest files of each trail.
func (f found) oldest() (keys []string) {
	first := map[schema.Trail]*partition{}
	for i := range f {
		if p := &f[i]; p.rows > 0 && (first[p.trail] == nil || p.start.Before(first[p.trail].start)) {
			first[p.trail] = p
		}
	}
	for _, p := range first {
		keys = append(keys, p.source.Partition.CSVKey())
	}
	slices.Sort(keys)
	return keys
}
