package rollup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrChain means that an hour can't be sealed on top of the hour before it. The hour stays open.
var ErrChain = errors.New("the chain of manifests is broken")

// Sealer signs manifests and knows those that were signed before. It is used by several goroutines.
type Sealer interface {
	// Seal returns the file of a manifest.
	Seal(ctx context.Context, m *seal.Manifest) ([]byte, error)
	// Open returns the manifest of a file that was sealed here, with this key or an earlier one.
	Open(ctx context.Context, file []byte) (*seal.Sealed, error)
}

// sealed returns the manifest of p, or nil if there is none. A partition is made when its manifest is
// there: that is written last.
func (r *Rollup) sealed(ctx context.Context, key string) (*seal.Sealed, error) {
	file, err := r.bucket.ReadAll(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", key, err)
	}
	s, err := r.sealer.Open(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", key, err)
	}
	if s.Partition().ManifestKey() != key {
		return nil, fmt.Errorf("%w: manifest %s speaks of %s", ErrChain, key, s.Partition())
	}
	return s, nil
}

// previous returns the manifest on top of which p is sealed, or nil if p is the first of its organization
// and trail. That is decided by the partition store alone, so that whoever lost the rest, or has it from
// a backup, can't begin a second chain.
func (r *Rollup) previous(ctx context.Context, p schema.Partition) (*seal.Sealed, error) {
	before := p
	before.Hour = p.Hour.Add(-p.Length)
	s, err := r.sealed(ctx, before.ManifestKey())
	if s != nil || err != nil {
		return s, err
	}
	// It is the first, or the length of an hour has changed.
	key, err := r.newest(ctx, p)
	if key == "" || err != nil {
		return nil, err
	}
	if s, err = r.sealed(ctx, key); err != nil {
		return nil, err
	}
	if s == nil || !s.HourEnd.Equal(p.Hour) {
		return nil, fmt.Errorf("%w: %s would follow %s, which does not end where it begins: put the missing manifests back into the partition store",
			ErrChain, p, key)
	}
	return s, nil
}

// newest returns the key of the last manifest of p's organization and trail, or nothing.
func (r *Rollup) newest(ctx context.Context, p schema.Partition) (key string, err error) {
	prefix := p.Organization + "/" + string(p.Trail) + "/"
	var last time.Time
	list := r.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return key, nil
		}
		if err != nil {
			return "", fmt.Errorf("list the manifests of %s: %w", prefix, err)
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, prefix), schema.ManifestSuffix)
		if !ok {
			continue
		}
		for _, layout := range []string{"2006/01/02/15", "2006/01/02/15-04-05"} {
			if t, err := time.Parse(layout, name); err == nil && !t.Before(last) {
				key, last = o.Key, t
			}
		}
	}
}

// keep stores the manifest of p, which makes the partition. If another rollup was faster, its manifest
// has to say the same: the first one stays, so that a chain has no two ways to go on. The store has to
// create an object only if it is absent, in one step: a directory does so by a hard link.
func (r *Rollup) keep(ctx context.Context, m *seal.Manifest) (*seal.Sealed, error) {
	file, err := r.sealer.Seal(ctx, m)
	if err != nil {
		return nil, err
	}
	ours, err := seal.Parse(file)
	if err != nil {
		return nil, err
	}
	key := m.Partition().ManifestKey()
	err = r.bucket.WriteAll(ctx, key, file, &blob.WriterOptions{ContentType: "text/plain; charset=utf-8", IfNotExist: true})
	if gcerrors.Code(err) != gcerrors.FailedPrecondition {
		if err != nil {
			return nil, fmt.Errorf("write manifest: %w", err)
		}
		return ours, nil
	}
	theirs, err := r.sealed(ctx, key)
	if err != nil {
		return nil, err
	}
	if theirs == nil || !bytes.Equal(ours.Text, theirs.Text) {
		return nil, fmt.Errorf("%w: another rollup sealed %s at the same time, and says something else", ErrDisagree, key)
	}
	return theirs, nil
}
