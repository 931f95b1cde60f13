package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/floor"
)

// Change is a setting of a stream or a consumer that is not as Setup made it: it was changed while Kansa runs.
type Change struct {
	Stream   string
	Consumer string // empty: of the stream itself
	Setting  string // as nats stream info and nats consumer info --json name it; empty: it is missing
	Is       string
	Should   string
	// Configured says that another process of Kansa made it so: the two have different configurations.
	Configured bool
}

// What names the stream or consumer.
func (c Change) What() string {
	if c.Consumer != "" {
		return "consumer " + c.Consumer + " of stream " + c.Stream
	}
	return "stream " + c.Stream
}

func (c Change) String() string {
	if c.Setting == "" {
		return c.What() + " is missing"
	}
	return fmt.Sprintf("%s: %s is %s and should be %s", c.What(), c.Setting, c.Is, c.Should)
}

// Breaks reports whether events can be lost, or not be taken, because of it.
func (c Change) Breaks() bool {
	return slices.Contains([]string{"", "retention", "sealed", "discard", "subjects", "subject_transform", "no_ack", "storage", "persist_mode", "max_msgs", "max_msg_size"}, c.Setting)
}

// metaSettings is what a consumer's metadata say of its settings: a hash of those that a process of Kansa set.
const metaSettings = "kansa.settings"

// stamp adds the hash of a consumer's settings to its metadata.
func stamp(cfg jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	cfg.Metadata = map[string]string{metaSettings: stampOf(cfg)}
	return cfg
}

func stampOf(cfg jetstream.ConsumerConfig) string {
	cfg.Metadata, cfg.DeliverPolicy, cfg.OptStartSeq = nil, 0, 0
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode(cfg) // a hash takes everything
	return fmt.Sprintf("%016x", h.Sum64())
}

// keepStream remembers how a stream was set up.
func (c *Client) keepStream(info *jetstream.StreamInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[info.Config.Name] = info.Config
}

// ownedConsumer is a consumer as it was set up.
type ownedConsumer struct {
	stream string
	want   jetstream.ConsumerConfig // as it was asked for
	have   jetstream.ConsumerConfig // as the server made it
}

// durations are settings that are nanoseconds.
var durations = []string{"ack_wait", "max_age", "duplicate_window", "inactive_threshold", "max_expires", "subject_delete_marker_ttl", "priority_timeout"}

// differences lists the settings in which two configurations differ, but for those left out.
func differences(is, should any, except ...string) (all []Change, err error) {
	fields := func(v any) (m map[string]json.RawMessage, err error) {
		data, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(data, &m)
		}
		return m, err
	}
	a, err := fields(is)
	if err != nil {
		return nil, fmt.Errorf("compare settings: %w", err)
	}
	b, err := fields(should)
	if err != nil {
		return nil, fmt.Errorf("compare settings: %w", err)
	}
	names := slices.Collect(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if string(a[name]) == string(b[name]) || slices.Contains(except, name) {
			continue
		}
		all = append(all, Change{Setting: name, Is: shown(name, a[name]), Should: shown(name, b[name])})
	}
	return all, nil
}

func shown(name string, value json.RawMessage) string {
	var n int64
	switch {
	case len(value) == 0:
		return "not set"
	case slices.Contains(durations, name) && json.Unmarshal(value, &n) == nil:
		return time.Duration(n).String()
	}
	text := strings.Trim(string(value), `"`)
	if len(text) > 80 {
		text = text[:80] + "…"
	}
	return text
}

// Changes lists what was changed of the streams and consumers since Setup. Of consumers, those that are missing are left out: the
// watchdog makes them again.
func (c *Client) Changes(ctx context.Context) (all []Change, err error) {
	c.mu.Lock()
	streams, consumers := maps.Clone(c.streams), maps.Clone(c.owned)
	c.mu.Unlock()
	seen := map[string]bool{}
	var layoutNow *layout
	list := c.JS.ListStreams(ctx)
	for info := range list.Info() {
		want, ok := streams[info.Config.Name]
		if !ok {
			continue
		}
		seen[want.Name] = true
		if want.Name == StreamAudit {
			if l, err := layoutOf(&info.Config); err == nil {
				layoutNow = &l
			}
		}
		found, err := differences(info.Config, want, "metadata")
		if err != nil {
			return nil, err
		}
		for _, d := range found {
			d.Stream = want.Name
			all = append(all, d)
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the streams: %w", err)
	}
	for name := range streams {
		if !seen[name] {
			all = append(all, Change{Stream: name})
		}
	}
	for name, o := range consumers {
		if o.stream == StreamAudit && layoutNow != nil && !slices.ContainsFunc(layoutNow.all(), func(s floor.Shard) bool { return s.Consumer == name }) {
			continue // the stream was resharded
		}
		consumer, err := c.JS.Consumer(ctx, o.stream, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up consumer %s: %w", name, err)
		}
		info := consumer.CachedInfo()
		found, err := differences(info.Config, o.have, "metadata", "deliver_policy", "opt_start_seq", "opt_start_time")
		if err != nil {
			return nil, err
		}
		by := info.Config.Metadata[metaSettings]
		for _, d := range found {
			d.Stream, d.Consumer, d.Configured = o.stream, name, by != "" && by != stampOf(o.want)
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(strings.Compare(a.What(), b.What()), strings.Compare(a.Setting, b.Setting))
	})
	return all, nil
}

// ResetConsumer gives a consumer the settings that Setup gave it. One whose settings cannot be changed is deleted: the watchdog makes it again
// when the leases of its messages are over.
func (c *Client) ResetConsumer(ctx context.Context, name string) error {
	c.mu.Lock()
	o, ok := c.owned[name]
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("reset consumer %s: it was not set up", name)
	}
	st, err := c.JS.Stream(ctx, o.stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", o.stream, err)
	}
	have, err := st.Consumer(ctx, name)
	if err != nil {
		return fmt.Errorf("look up consumer %s: %w", name, err)
	}
	info := have.CachedInfo()
	if info.Paused {
		if _, err := st.ResumeConsumer(ctx, name); err != nil {
			return fmt.Errorf("resume consumer %s: %w", name, err)
		}
	}
	cfg := stamp(o.want)
	cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = info.Config.DeliverPolicy, info.Config.OptStartSeq, info.Config.OptStartTime
	if _, err = st.UpdateConsumer(ctx, cfg); err == nil {
		again, err := c.JS.Consumer(ctx, o.stream, name)
		if err != nil {
			return fmt.Errorf("look up consumer %s: %w", name, err)
		}
		left, err := differences(again.CachedInfo().Config, o.have, "metadata", "deliver_policy", "opt_start_seq", "opt_start_time")
		if err != nil || len(left) == 0 {
			return err
		}
	}
	if err := st.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete consumer %s, whose settings cannot be changed: %w", name, err)
	}
	return nil
}

// ResetStreams gives the streams the settings that Setup gave them, and makes those again that are missing, empty. It returns what it
// changed.
func (c *Client) ResetStreams(ctx context.Context) (done []string, err error) {
	all, err := c.Changes(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	seen := map[string]bool{}
	for _, change := range all {
		if change.Consumer != "" || seen[change.Stream] {
			continue
		}
		seen[change.Stream] = true
		c.mu.Lock()
		cfg := c.streams[change.Stream]
		c.mu.Unlock()
		if change.Setting == "" {
			if _, err = c.JS.CreateStream(ctx, cfg); err == nil {
				done = append(done, change.What()+" was missing and is there again, empty")
			}
		} else if err = c.resetStream(ctx, cfg); err == nil {
			for _, of := range all {
				if of.Stream == change.Stream && of.Consumer == "" {
					done = append(done, fmt.Sprintf("%s: %s was %s and is %s", of.What(), of.Setting, of.Is, of.Should))
				}
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore the settings of stream %s: %w", change.Stream, err))
		}
	}
	return done, errors.Join(errs...)
}

func (c *Client) resetStream(ctx context.Context, cfg jetstream.StreamConfig) error {
	st, err := c.JS.Stream(ctx, cfg.Name)
	if err != nil {
		return err
	}
	cfg.Metadata = st.CachedInfo().Config.Metadata // which says how it is sharded
	_, err = c.JS.UpdateStream(ctx, cfg)
	return err
}

// KeepTicking sees to it that the schedule of the rollup's ticks is there, and reports whether it was not.
func (c *Client) KeepTicking(ctx context.Context, hour time.Duration) (restored bool, err error) {
	st, err := c.JS.Stream(ctx, StreamHours)
	if err != nil {
		return false, fmt.Errorf("look up stream %s: %w", StreamHours, err)
	}
	if _, err = st.GetLastMsgForSubject(ctx, subjectTickSchedule); err == nil {
		return false, nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, fmt.Errorf("look up the schedule of ticks: %w", err)
	}
	return true, c.Schedule(ctx, Schedule{Subject: subjectTickSchedule, Target: subjectTick, Every: hour})
}

// Idle reports whether the rollup's consumer has nothing to do and is doing nothing.
func (c *Client) Idle(ctx context.Context) (bool, error) {
	consumer, err := c.JS.Consumer(ctx, StreamHours, ConsumerRollup)
	if err != nil {
		return false, fmt.Errorf("look up consumer %s: %w", ConsumerRollup, err)
	}
	return !waits(consumer.CachedInfo()), nil
}

func waits(info *jetstream.ConsumerInfo) bool { return info.NumPending > 0 || info.NumAckPending > 0 }
