package broker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/schema"
)

// The stream of events is divided into two lanes and, in each lane, into shards; a consumer takes each shard of each lane. Events that
// an organization publishes beyond its prompt share go into the bulk lane, so that their backlog does not delay the events of others.
//
// Every message of the stream has a slot, the last token of its subject: its publisher's choice, or a hash of organization and
// trail, which the stream itself adds. A shard has every slot of which the remainder by the number of shards is its own.
//
// What is hashed, and into how many slots, never changes: each server of a cluster applies the stream's transform for
// itself, to what it stores, and a change reaches them at different messages. With another transform two servers could
// store one message under two subjects, and two writers, or none, would be given it. So the number of shards is a
// matter of consumers alone.

// MaxShards is the most there can be.
const MaxShards = schema.Slots

// ErrShards means that the stream has other consumers than those this process set out with.
var ErrShards = errors.New("the stream is shared out anew")

// What the stream's metadata say of shards.
const (
	metaShards = "kansa.shards" // how many; 1 if absent
	metaFrom   = "kansa.shards.from"
	metaAfter  = "kansa.shards.after"
	metaReplay = "kansa.replays" // how often all of it was given out from the beginning again; 0 if absent
)

// layout is how the stream is shared out.
type layout struct {
	shards int
	// from is the message at which the consumers begin, and after when they may: nobody works any more by then on what
	// the consumers before them gave out. Both are zero if there were none before them.
	from    uint64
	after   time.Time
	replays int
}

func layoutOf(cfg *jetstream.StreamConfig) (l layout, err error) {
	l.shards = 1
	for key, to := range map[string]func(string) error{
		metaShards: func(v string) (err error) { l.shards, err = strconv.Atoi(v); return err },
		metaReplay: func(v string) (err error) { l.replays, err = strconv.Atoi(v); return err },
		metaFrom:   func(v string) (err error) { l.from, err = strconv.ParseUint(v, 10, 64); return err },
		metaAfter:  func(v string) (err error) { l.after, err = time.Parse(time.RFC3339Nano, v); return err },
	} {
		if v, ok := cfg.Metadata[key]; ok {
			if err := to(v); err != nil {
				return l, fmt.Errorf("metadata %s of stream %s is %q: %w", key, cfg.Name, v, err)
			}
		}
	}
	if l.shards < 1 || l.shards > MaxShards {
		return l, fmt.Errorf("metadata %s of stream %s is %d: from 1 to %d can be", metaShards, cfg.Name, l.shards, MaxShards)
	}
	return l, nil
}

func (l layout) into(cfg *jetstream.StreamConfig) {
	if cfg.Metadata == nil {
		cfg.Metadata = map[string]string{}
	}
	cfg.Metadata[metaShards] = strconv.Itoa(l.shards)
	if l.replays > 0 {
		cfg.Metadata[metaReplay] = strconv.Itoa(l.replays)
	}
	delete(cfg.Metadata, metaFrom)
	delete(cfg.Metadata, metaAfter)
	if l.from > 0 {
		cfg.Metadata[metaFrom] = strconv.FormatUint(l.from, 10)
	}
	if !l.after.IsZero() {
		cfg.Metadata[metaAfter] = l.after.UTC().Format(time.RFC3339Nano)
	}
}

// all returns the shards of both lanes, those of the prompt lane first. The number of shards and of replays is part of the
// consumers' names, so that a process that was started with other numbers does not find them.
func (l layout) all() []floor.Shard {
	var all []floor.Shard
	for lane, name := range [floor.Lanes]string{ConsumerWriter, ConsumerBulkWriter} {
		for shard := range l.shards {
			consumer := name
			if l.shards > 1 {
				consumer = fmt.Sprintf("%s-%d-of-%d", name, shard, l.shards)
			}
			if l.replays > 0 {
				consumer = fmt.Sprintf("%s-r%d", consumer, l.replays)
			}
			all = append(all, floor.Shard{Consumer: consumer, Lane: floor.Lane(lane), Number: shard})
		}
	}
	return all
}

var writerNames = regexp.MustCompile(`^(` + ConsumerWriter + `|` + ConsumerBulkWriter + `)(-\d+-of-\d+)?(-r\d+)?$`)

func (l layout) consumers(ackWait time.Duration) []jetstream.ConsumerConfig {
	var all []jetstream.ConsumerConfig
	for _, s := range l.all() {
		c := jetstream.ConsumerConfig{Durable: s.Consumer, AckWait: ackWait, MaxAckPending: 50_000}
		if l.shards == 1 {
			c.FilterSubject = slotted(s.Lane, "*")
		} else {
			for slot := s.Number; slot < schema.Slots; slot += l.shards {
				c.FilterSubjects = append(c.FilterSubjects, slotted(s.Lane, strconv.Itoa(slot)))
			}
		}
		if l.from > 1 {
			c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, l.from
		}
		all = append(all, c)
	}
	return all
}

func slotted(lane floor.Lane, slot string) string {
	if lane == floor.Bulk {
		slot = schema.BulkToken + "." + slot
	}
	return fmt.Sprintf("%s.*.*.%s", schema.SubjectEvents, slot)
}

// eventSubjects are what the stream listens to. Slots are named one by one: with a wildcard it would take what is in no
// slot, and no consumer would get it.
func eventSubjects() []string {
	all := []string{schema.SubjectEvents + ".*.*"}
	for lane := range floor.Lanes {
		for slot := range schema.Slots {
			all = append(all, slotted(lane, strconv.Itoa(slot)))
		}
	}
	return all
}

func eventTransform() *jetstream.SubjectTransformConfig {
	return &jetstream.SubjectTransformConfig{
		Source:      schema.SubjectEvents + ".*.*",
		Destination: fmt.Sprintf("%s.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(%d,1,2)}}", schema.SubjectEvents, schema.Slots),
	}
}

// Shards returns how many shards the stream has.
func (c *Client) Shards(ctx context.Context) (int, error) {
	l, _, err := c.layout(ctx)
	return l.shards, err
}

func (c *Client) layout(ctx context.Context) (layout, *jetstream.StreamInfo, error) {
	st, err := c.JS.Stream(ctx, StreamAudit)
	if err != nil {
		return layout{}, nil, fmt.Errorf("look up stream %s: %w", StreamAudit, err)
	}
	l, err := layoutOf(&st.CachedInfo().Config)
	return l, st.CachedInfo(), err
}

// Writers tells how the stream is doing, and then how the consumers of all shards are, those of the prompt lane first.
func (c *Client) Writers(ctx context.Context) (*jetstream.StreamInfo, []floor.Info, error) {
	l, info, err := c.layout(ctx)
	if err != nil {
		return nil, nil, err
	}
	all := make([]floor.Info, 0, int(floor.Lanes)*l.shards)
	for _, s := range l.all() {
		all = append(all, floor.Info{Shard: s})
	}
	var asking errgroup.Group
	for i := range all {
		asking.Go(func() error {
			consumer, err := c.JS.Consumer(ctx, StreamAudit, all[i].Consumer)
			if err != nil {
				return fmt.Errorf("look up consumer %s: %w", all[i].Consumer, err)
			}
			all[i].ConsumerInfo = consumer.CachedInfo()
			return nil
		})
	}
	return info, all, asking.Wait()
}

// markOrganization is the system's own: nobody's events come among its.
const markOrganization = "kansa"

// Mark puts a message without events into a shard of a lane, and returns its place in the stream. When it returns, the leader
// among the servers of the stream has confirmed it: whatever was acknowledged before is before it.
func (c *Client) Mark(ctx context.Context, s floor.Shard) (uint64, error) {
	subject := schema.SlotSubject(markOrganization, schema.Activity, s.Number)
	if s.Lane == floor.Bulk {
		subject = schema.BulkSubject(markOrganization, schema.Activity, s.Number)
	}
	msg := nats.NewMsg(subject)
	msg.Header.Set(schema.HeaderMark, "1")
	ack, err := c.JS.PublishMsg(ctx, msg, jetstream.WithExpectStream(StreamAudit))
	if err != nil {
		return 0, fmt.Errorf("put a mark into stream %s: %w", StreamAudit, err)
	}
	return ack.Sequence, nil
}

// SetShards shares the stream out anew. The consumers that are there are deleted, and made in their new number when
// nobody works any more on what they gave out, from the first message on that was not settled; what the writers find
// stored they leave out. Until then nothing is stored. If it is cut off, it is finished by it, or any Setup, later.
// Writers that run find their consumers gone, and end: they have to be started again.
func (c *Client) SetShards(ctx context.Context, shards int) error {
	if shards < 1 || shards > MaxShards {
		return fmt.Errorf("%d shards can not be: give 1 to %d", shards, MaxShards)
	}
	l, info, err := c.layout(ctx)
	if err != nil {
		return err
	}
	if l.shards != shards {
		// Without marks, all that came since a shard last had something to do would be given out again.
		seq, err := (&floor.Floor{Broker: c}).Marked(ctx)
		if err != nil {
			return err
		}
		next := layout{shards: shards, from: seq + 1, replays: l.replays}
		if err := c.keepLayout(ctx, info.Config, next); err != nil {
			return err
		}
	}
	return c.finishWriters(ctx)
}

// Replay has all that the stream holds given to the writers once more, after ClickHouse has lost what they stored: what they
// find there they leave out. Like SetShards, it ends the writers that run, and may be cut off.
func (c *Client) Replay(ctx context.Context) error {
	l, info, err := c.layout(ctx)
	if err != nil {
		return err
	}
	next := layout{shards: l.shards, from: max(info.State.FirstSeq, 1), replays: l.replays + 1}
	if err := c.keepLayout(ctx, info.Config, next); err != nil {
		return err
	}
	return c.finishWriters(ctx)
}

// ErrUnfinished means that the broker went away before the consumers were made. How the stream is shared out is kept: the next
// Setup makes them.
var ErrUnfinished = errors.New("the broker went away before the writers' consumers were made; the next start of Kansa makes them")

// awayFor is how long the broker may be away while the consumers are made: an embedded one ends with its writers, and is there again
// when a service manager has started it.
const awayFor = 20 * time.Second

// finishWriters makes the consumers of the shards, also if the broker is started again meanwhile.
func (c *Client) finishWriters(ctx context.Context) error {
	for {
		away, err := c.whileConnected(ctx, func(ctx context.Context) error { return c.setWriters(ctx, 0) })
		if err == nil || ctx.Err() != nil || !away && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		for end := time.Now().Add(awayFor); !c.NC.IsConnected(); {
			if time.Now().After(end) {
				return fmt.Errorf("%w (%w)", ErrUnfinished, err)
			}
			if err := pause(ctx, reachedEvery); err != nil {
				return err
			}
		}
		if err := pause(ctx, time.Second); err != nil { // JetStream is a little later there than the server
			return err
		}
	}
}

const reachedEvery = 200 * time.Millisecond

// whileConnected ends do when the connection is lost, and reports whether it was.
func (c *Client) whileConnected(ctx context.Context, do func(context.Context) error) (away bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	for {
		select {
		case err := <-done:
			cancel()
			return away, err
		case <-time.After(reachedEvery):
			if !c.NC.IsConnected() {
				away = true
				cancel()
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (c *Client) keepLayout(ctx context.Context, cfg jetstream.StreamConfig, l layout) error {
	l.into(&cfg)
	if _, err := c.JS.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("keep how the stream is shared out: %w", err)
	}
	return nil
}

// setWriters makes the consumers of the shards, and sees to it that there are no others. ackWait is for new ones; 0
// leaves it as it was.
func (c *Client) setWriters(ctx context.Context, ackWait time.Duration) error {
	st, err := c.JS.Stream(ctx, StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", StreamAudit, err)
	}
	l, err := layoutOf(&st.CachedInfo().Config)
	if err != nil {
		return err
	}
	have, err := writersOf(ctx, st)
	if err != nil {
		return err
	}
	if ackWait == 0 {
		ackWait = l.lease(have)
	}
	var old []string
	for name := range have {
		if !slices.ContainsFunc(l.consumers(0), func(c jetstream.ConsumerConfig) bool { return c.Durable == name }) {
			old = append(old, name)
		}
	}
	if len(old) > 0 || l.from > 0 && l.after.IsZero() {
		lease := max(ackWait, l.lease(have))
		for _, name := range old {
			if err := st.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				return fmt.Errorf("delete consumer %s: %w", name, err)
			}
		}
		l.after = time.Now().Add(lease + time.Second)
		if err := c.keepLayout(ctx, st.CachedInfo().Config, l); err != nil {
			return err
		}
	}
	all := l.consumers(ackWait)
	missing := slices.ContainsFunc(all, func(c jetstream.ConsumerConfig) bool { _, ok := have[c.Durable]; return !ok })
	if wait := time.Until(l.after); missing && wait > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until nobody works on what the consumers of other shards gave out: %w", ctx.Err())
		case <-time.After(min(wait, time.Hour)):
		}
	}
	var setting errgroup.Group
	setting.SetLimit(8)
	for _, cfg := range all {
		setting.Go(func() error { return c.setConsumer(ctx, StreamAudit, explicit(cfg)) })
	}
	return setting.Wait()
}

// lease is how long a message may be in somebody's hands.
func (l layout) lease(have map[string]time.Duration) time.Duration {
	most := time.Duration(0)
	for _, ackWait := range have {
		most = max(most, ackWait)
	}
	if most == 0 {
		return time.Minute
	}
	return most
}

// writersOf lists the consumers of shards, of whatever number, with how long they lease messages.
func writersOf(ctx context.Context, st jetstream.Stream) (map[string]time.Duration, error) {
	all := map[string]time.Duration{}
	list := st.ListConsumers(ctx)
	for info := range list.Info() {
		if writerNames.MatchString(info.Name) {
			all[info.Name] = info.Config.AckWait
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the consumers of stream %s: %w", StreamAudit, err)
	}
	return all, nil
}
