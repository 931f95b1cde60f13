package rollup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Kinds of reasons for which a series is blocked.
const (
	KindDisagree = "disagree" // stream, table and file do not have the same events
	KindUnstored = "unstored" // messages that the stream has are not in the ledger
	KindLate     = "late"     // a message came after its hour was sealed
	KindLost     = "lost"     // the stream has lost messages
	KindChain    = "chain"    // the previous manifest is missing or is not what was sealed
	KindUnclear  = "unclear"  // ledger entries of a message contradict each other
	KindSwitches = "switches" // the switches of the organization's trails cannot be read
	KindFailed   = "failed"   // the partition could not be made, time and again, while others could
)

// kindOf is the kind of an error that no retry removes by itself, or nothing.
func kindOf(err error) string {
	switch {
	case errors.Is(err, ErrLost):
		return KindLost
	case errors.Is(err, ErrUnstored):
		return KindUnstored
	case errors.Is(err, ErrLate):
		return KindLate
	case errors.Is(err, tally.ErrContradiction):
		return KindUnclear
	case errors.Is(err, recording.ErrUnknown):
		return KindSwitches
	case errors.Is(err, ErrDisagree):
		return KindDisagree
	case errors.Is(err, ErrChain), errors.Is(err, seal.ErrSignature), errors.Is(err, seal.ErrManifest):
		return KindChain
	}
	return ""
}

// block is why a series waits, and where it goes on.
type block struct {
	Hour   time.Time `json:"hour"`
	After  uint64    `json:"after,omitempty"` // the last message of the stream before the hour; 0 if that is not known
	Kind   string    `json:"kind,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Messages are those of the hour that were not stored, as far as they are not too many.
	Messages []Run `json:"messages,omitempty"`
}

// parse reads a block, and what earlier versions kept: the hour alone.
func (b *block) parse(value []byte) (err error) {
	if len(value) > 0 && value[0] != '{' {
		*b = block{Kind: KindDisagree, Reason: ErrDisagree.Error()}
		b.Hour, err = time.Parse(time.RFC3339, string(value))
		return err
	}
	return json.Unmarshal(value, b)
}

// Block is an organization's trail that waits, and why.
type Block struct {
	schema.Partition // the first hour that could not be sealed

	Kind     string
	Reason   string
	Since    time.Time
	Messages []Run
}

// Blocks lists the organizations' trails that cannot be sealed, while the others go on.
func (p Progress) Blocks(ctx context.Context, length time.Duration) ([]Block, error) {
	all, err := p.blocks(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Block, 0, len(all))
	for s, b := range all {
		list = append(list, Block{
			Partition: schema.Partition{Organization: s.organization, Trail: s.trail, Hour: b.Hour, Length: length},
			Kind:      b.Kind, Reason: b.Reason, Since: b.Since, Messages: b.Messages,
		})
	}
	slices.SortFunc(list, func(a, b Block) int { return strings.Compare(a.Path(), b.Path()) })
	return list, nil
}

func (p Progress) blocks(ctx context.Context) (map[series]block, error) {
	all := map[series]block{}
	err := p.each(ctx, prefixBlocked, func(series) bool { return true }, func(s series, value []byte) error {
		var b block
		if err := b.parse(value); err != nil {
			return err
		}
		all[s] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the blocked series: %w", err)
	}
	return all, nil
}

func (p Progress) block(ctx context.Context, s series, b block) error {
	b.Hour, b.Since = b.Hour.UTC(), b.Since.UTC().Truncate(time.Second)
	value, err := json.Marshal(b)
	if err == nil {
		_, err = p.KV.Put(ctx, prefixBlocked+s.key(), value)
	}
	if err != nil {
		return fmt.Errorf("block the series %s: %w", s.key(), err)
	}
	return nil
}

func (p Progress) unblock(ctx context.Context, s series) error {
	if err := p.KV.Delete(ctx, prefixBlocked+s.key()); err != nil {
		return fmt.Errorf("unblock the series %s: %w", s.key(), err)
	}
	return nil
}

// Stop is why no organization's hours are sealed.
type Stop struct {
	Hour   time.Time `json:"hour"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Lost are the messages of which nobody knows whose they were.
	Lost []Run `json:"lost,omitempty"`
}

// Stopped returns why nothing is sealed at all, or nil: the stream has lost messages.
func (p Progress) Stopped(ctx context.Context) (*Stop, error) {
	entry, err := p.KV.Get(ctx, keyStopped)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	var s Stop
	if err == nil {
		err = json.Unmarshal(entry.Value(), &s)
	}
	if err != nil {
		return nil, fmt.Errorf("read why nothing is sealed: %w", err)
	}
	return &s, nil
}

func (p Progress) stop(ctx context.Context, s Stop) error {
	s.Hour, s.Since = s.Hour.UTC(), s.Since.UTC().Truncate(time.Second)
	value, err := json.Marshal(s)
	if err == nil {
		_, err = p.KV.Put(ctx, keyStopped, value)
	}
	if err != nil {
		return fmt.Errorf("keep why nothing is sealed: %w", err)
	}
	return nil
}

func (p Progress) resume(ctx context.Context) error {
	if err := p.KV.Delete(ctx, keyStopped); err != nil {
		return fmt.Errorf("forget why nothing was sealed: %w", err)
	}
	return nil
}

// Waiting counts the organizations' trails that are not sealed: those that are blocked, or all if nothing is sealed.
func (p Progress) Waiting(ctx context.Context) (int, error) {
	stopped, err := p.Stopped(ctx)
	if err != nil {
		return 0, err
	}
	prefix := prefixBlocked
	if stopped != nil {
		prefix = prefixKnown
	}
	n := 0
	err = p.each(ctx, prefix, func(series) bool { n++; return prefix == prefixBlocked }, func(series, []byte) error { return nil })
	if err != nil {
		return 0, fmt.Errorf("count the series that wait: %w", err)
	}
	if stopped != nil {
		return max(n, 1), nil // events of an organization that is not known yet wait, too
	}
	blocked, err := p.blocks(ctx)
	return len(blocked), err
}
