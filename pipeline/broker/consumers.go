package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// setConsumer makes a consumer or brings it up to date. Where one began that is there can't be changed.
func (c *Client) setConsumer(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) error {
	c.mu.Lock()
	c.consumers[cfg.Durable] = cfg
	c.mu.Unlock()
	have, err := c.JS.Consumer(ctx, stream, cfg.Durable)
	switch {
	case err == nil:
		had := have.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq = had.DeliverPolicy, had.OptStartSeq
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return err
	}
	made, err := c.JS.CreateOrUpdateConsumer(ctx, stream, stamp(cfg))
	if err != nil {
		return fmt.Errorf("set up consumer %s of stream %s: %w", cfg.Durable, stream, err)
	}
	info := made.CachedInfo()
	if info.Paused { // a pause outlives an update
		st, err := c.JS.Stream(ctx, stream)
		if err == nil {
			_, err = st.ResumeConsumer(ctx, cfg.Durable)
		}
		if err != nil {
			return fmt.Errorf("resume consumer %s of stream %s: %w", cfg.Durable, stream, err)
		}
	}
	as := info.Config
	as.PauseUntil = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owned[cfg.Durable] = ownedConsumer{stream: stream, want: cfg, have: as}
	return nil
}

// explicit is a consumer whose messages are acknowledged one by one, and given again for ever.
func explicit(cfg jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	cfg.AckPolicy, cfg.MaxDeliver = jetstream.AckExplicitPolicy, -1
	return cfg
}

// Floor is the last message of a stream before which everything is settled, and when that stream was made: of
// another stream of the same name it says nothing. The zero value knows nothing.
type Floor struct {
	Seq     uint64
	Created time.Time
}

// RestoreConsumer makes a consumer of a stream again, as Setup made it, after somebody deleted it. It begins
// after a floor; without one, at the beginning of the stream, which is as right and takes longer. If it was deleted
// because the stream is shared out anew, the error answers to [ErrShards].
func (c *Client) RestoreConsumer(ctx context.Context, stream, name string, after Floor) error {
	c.mu.Lock()
	cfg, ok := c.consumers[name]
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("restore consumer %s of stream %s: it was not set up", name, stream)
	}
	st, err := c.JS.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", stream, err)
	}
	if stream == StreamAudit {
		l, err := layoutOf(&st.CachedInfo().Config)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(l.consumers(0), func(c jetstream.ConsumerConfig) bool { return c.Durable == name }) {
			return fmt.Errorf("%w: stream %s has %d shards now, and consumer %s is none of theirs", ErrShards, stream, l.shards, name)
		}
	}
	if info := st.CachedInfo(); after.Seq > 0 && info.Created.Equal(after.Created) && after.Seq <= info.State.LastSeq {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, after.Seq+1
	}
	_, err = st.CreateConsumer(ctx, stamp(cfg))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) { // another process was first
		return fmt.Errorf("restore consumer %s of stream %s: %w", cfg.Durable, stream, err)
	}
	return nil
}

// TakeBack has the writers' consumers give everything out again that was not acknowledged, without waiting for leases that a process
// had which is gone. It is for a server that no other process could have reached since it was started: a message may otherwise be
// at two writers at once.
func (c *Client) TakeBack(ctx context.Context) error {
	l, _, err := c.layout(ctx)
	if err != nil {
		return err
	}
	for _, s := range l.all() {
		if _, err := c.JS.ResetConsumer(ctx, StreamAudit, s.Consumer); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("reset consumer %s: %w", s.Consumer, err)
		}
	}
	return nil
}
