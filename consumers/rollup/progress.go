package rollup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
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

func (s series) key() string { return s.organization + "." + string(s.trail) }

// Progress keeps in a key-value bucket how far the rollup has come, and which series there are.
type Progress struct {
	JS jetstream.JetStream
	KV jetstream.KeyValue
}

const (
	keyNext       = "next"
	keyLost       = "lost"
	keyStopped    = "stopped"
	prefixKnown   = "known."
	prefixBlocked = "blocked."
)

// position is how far the rollup has come: all before next is rolled up, and seq is the last message of the
// stream that was recorded before it; 0 if that is not known.
type position struct {
	next time.Time
	seq  uint64
}

// Next is the hour to roll up next, zero before the first: all before it is rolled up.
func (p Progress) Next(ctx context.Context) (time.Time, error) {
	at, err := p.position(ctx)
	return at.next, err
}

func (p Progress) position(ctx context.Context) (at position, err error) {
	entry, err := p.KV.Get(ctx, keyNext)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return at, nil
	}
	if err != nil {
		return at, fmt.Errorf("read the rollup's progress: %w", err)
	}
	next, seq, _ := strings.Cut(string(entry.Value()), " ")
	if at.next, err = time.Parse(time.RFC3339, next); err != nil {
		return at, fmt.Errorf("read the rollup's progress: %w", err)
	}
	if at.seq, err = strconv.ParseUint(cmp.Or(seq, "0"), 10, 64); err != nil {
		return at, fmt.Errorf("read the rollup's progress: %w", err)
	}
	return at, nil
}

func (p Progress) setPosition(ctx context.Context, at position) error {
	if _, err := p.KV.PutString(ctx, keyNext, fmt.Sprintf("%s %d", at.next.UTC().Format(time.RFC3339), at.seq)); err != nil {
		return fmt.Errorf("keep the rollup's progress: %w", err)
	}
	return nil
}

// known lists the series seen so far, each with the first hour it has a partition for. What is in have already need
// not be asked for: it does not change.
func (p Progress) known(ctx context.Context, have map[series]time.Time) (map[series]time.Time, error) {
	all, err := p.list(ctx, prefixKnown, have)
	if err != nil {
		return nil, fmt.Errorf("list the known series: %w", err)
	}
	return all, nil
}

// Organizations returns those that have published anything, in no order.
func (p Progress) Organizations(ctx context.Context) ([]string, error) {
	stream, err := p.JS.Stream(ctx, "KV_"+p.KV.Bucket())
	if err != nil {
		return nil, fmt.Errorf("list the organizations: %w", err)
	}
	subject := "$KV." + p.KV.Bucket() + "." + prefixKnown
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject+">"))
	if err != nil {
		return nil, fmt.Errorf("list the organizations: %w", err)
	}
	var names []string
	for key := range info.State.Subjects {
		organization, _, _ := strings.Cut(strings.TrimPrefix(key, subject), ".")
		names = append(names, organization)
	}
	return names, nil
}

// First is the first hour of which there is a partition of an organization's trail; false if there is none yet.
func (p Progress) First(ctx context.Context, organization string, trail schema.Trail) (time.Time, bool, error) {
	entry, err := p.KV.Get(ctx, prefixKnown+series{organization, trail}.key())
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return time.Time{}, false, nil
	}
	var first time.Time
	if err == nil {
		first, err = time.Parse(time.RFC3339, string(entry.Value()))
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("read the first hour of %s/%s: %w", organization, trail, err)
	}
	return first, true, nil
}

// Stuck is the hour of an organization's trail that could not be sealed because its accounts disagree; false if there is none.
func (p Progress) Stuck(ctx context.Context, organization string, trail schema.Trail) (time.Time, bool, error) {
	blocked, err := p.blocks(ctx)
	b, ok := blocked[series{organization, trail}]
	return b.Hour, ok, err
}

// learn keeps a series together with the first hour it has a partition for.
func (p Progress) learn(ctx context.Context, s series, first time.Time) error {
	_, err := p.KV.Create(ctx, prefixKnown+s.key(), []byte(first.UTC().Format(time.RFC3339)))
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("keep the series %s/%s: %w", s.organization, s.trail, err)
	}
	return nil
}

// list reads the hour that is kept for each series under keys of a prefix.
func (p Progress) list(ctx context.Context, prefix string, have map[series]time.Time) (map[series]time.Time, error) {
	all := map[series]time.Time{}
	err := p.each(ctx, prefix, func(s series) bool {
		hour, ok := have[s]
		if ok {
			all[s] = hour
		}
		return !ok
	}, func(s series, value []byte) (err error) {
		all[s], err = time.Parse(time.RFC3339, string(value))
		return err
	})
	return all, err
}

// each visits what is kept for each series under keys of a prefix, if it is wanted. Which keys there are is asked of the server
// that leads the bucket, not of a consumer: in a cluster, that may be with a server that lags behind, and a series that
// is missing there would miss an hour.
func (p Progress) each(ctx context.Context, prefix string, want func(series) bool, visit func(s series, value []byte) error) error {
	stream, err := p.JS.Stream(ctx, "KV_"+p.KV.Bucket())
	if err != nil {
		return err
	}
	subject := "$KV." + p.KV.Bucket() + "." + prefix
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject+">"))
	if err != nil {
		return err
	}
	for key := range info.State.Subjects {
		org, trail, _ := strings.Cut(strings.TrimPrefix(key, subject), ".")
		s := series{org, schema.Trail(trail)}
		if !want(s) {
			continue
		}
		entry, err := p.KV.Get(ctx, prefix+s.key())
		if errors.Is(err, jetstream.ErrKeyNotFound) { // it was deleted
			continue
		}
		if err != nil {
			return err
		}
		if err := visit(s, entry.Value()); err != nil {
			return fmt.Errorf("read %s: %w", prefix+s.key(), err)
		}
	}
	return nil
}

// Blocked lists, for each organization and trail that waits for somebody to repair it, the first hour that
// could not be sealed.
func (p Progress) Blocked(ctx context.Context, length time.Duration) ([]schema.Partition, error) {
	all, err := p.Blocks(ctx, length)
	list := make([]schema.Partition, 0, len(all))
	for i := range all {
		list = append(list, all[i].Partition)
	}
	return list, err
}

// Sealed is the instant up to which every hour of an organization's trails is rolled up.
func (p Progress) Sealed(ctx context.Context, organization string, trails []schema.Trail) (time.Time, error) {
	until, err := p.Next(ctx)
	if err != nil {
		return time.Time{}, err
	}
	blocked, err := p.blocks(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, t := range trails {
		if b, ok := blocked[series{organization, t}]; ok && b.Hour.Before(until) {
			until = b.Hour
		}
	}
	return until, nil
}

// Began is the first hour that any of an organization's trails has a partition for, zero if none has.
func (p Progress) Began(ctx context.Context, organization string, trails []schema.Trail) (began time.Time, err error) {
	for _, t := range trails {
		entry, err := p.KV.Get(ctx, prefixKnown+series{organization, t}.key())
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		var first time.Time
		if err == nil {
			first, err = time.Parse(time.RFC3339, string(entry.Value()))
		}
		if err != nil {
			return began, fmt.Errorf("look up the first hour of %s/%s: %w", organization, t, err)
		}
		if began.IsZero() || first.Before(began) {
			began = first
		}
	}
	return began, nil
}

// Loss is a run of messages that the stream has lost, and who answers for it.
type Loss struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Organization and Trail are those that the messages were of, if that is known. Only their manifests state the loss then.
	Organization string       `json:"organization,omitempty"`
	Trail        schema.Trail `json:"trail,omitempty"`
	By           string       `json:"by"`
	Reason       string       `json:"reason"`
	At           time.Time    `json:"at"`
}

// Losses lists what was accepted.
func (p Progress) Losses(ctx context.Context) (losses []Loss, err error) {
	entry, err := p.KV.Get(ctx, keyLost)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &losses)
	}
	if err != nil {
		return nil, fmt.Errorf("read the accepted losses: %w", err)
	}
	return losses, nil
}

// Accept has the rollup go on over a loss. It is stated in the manifests of the hours it lies in.
func (p Progress) Accept(ctx context.Context, l Loss) error {
	losses, err := p.Losses(ctx)
	if err != nil {
		return err
	}
	data, err := json.Marshal(append(losses, l))
	if err != nil {
		return fmt.Errorf("keep the accepted losses: %w", err)
	}
	if _, err := p.KV.Put(ctx, keyLost, data); err != nil {
		return fmt.Errorf("keep the accepted losses: %w", err)
	}
	return nil
}
