package rollup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
)

// series is one organization's trail: the partitions that follow one another.
type series struct {
	organization string
	trail        schema.Trail
}

// Progress keeps in a key-value bucket how far the rollup has come, and which series there are.
type Progress struct{ KV jetstream.KeyValue }

const (
	keyNext     = "next"
	prefixKnown = "known."
)

// Next is the hour to roll up next, zero before the first: all before it is rolled up.
func (p Progress) Next(ctx context.Context) (time.Time, error) {
	entry, err := p.KV.Get(ctx, keyNext)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the rollup's progress: %w", err)
	}
	t, err := time.Parse(time.RFC3339, string(entry.Value()))
	if err != nil {
		return time.Time{}, fmt.Errorf("read the rollup's progress: %w", err)
	}
	return t, nil
}

func (p Progress) setNext(ctx context.Context, t time.Time) error {
	if _, err := p.KV.PutString(ctx, keyNext, t.UTC().Format(time.RFC3339)); err != nil {
		return fmt.Errorf("keep the rollup's progress: %w", err)
	}
	return nil
}

// known lists the series seen so far.
func (p Progress) known(ctx context.Context) (map[series]bool, error) {
	keys, err := p.KV.ListKeysFiltered(ctx, prefixKnown+">")
	if err != nil {
		return nil, fmt.Errorf("list the known series: %w", err)
	}
	all := map[series]bool{}
	for key := range keys.Keys() {
		org, trail, _ := strings.Cut(strings.TrimPrefix(key, prefixKnown), ".")
		all[series{org, schema.Trail(trail)}] = true
	}
	return all, nil
}

// learn keeps a series together with the first hour it has a partition for.
func (p Progress) learn(ctx context.Context, s series, first time.Time) error {
	_, err := p.KV.Create(ctx, prefixKnown+s.organization+"."+string(s.trail), []byte(first.UTC().Format(time.RFC3339)))
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("keep the series %s/%s: %w", s.organization, s.trail, err)
	}
	return nil
}
