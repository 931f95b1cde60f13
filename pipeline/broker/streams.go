package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/claims"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
)

// Names of the streams, their consumers, and the key-value buckets.
const (
	StreamAudit      = "AUDIT"
	StreamHours      = "HOURS"
	StreamPartitions = "PARTITIONS"
	StreamExports    = "EXPORTS"
	StreamDeadLetter = "DEADLETTER"
	StreamTallies    = tally.Stream
	StreamClaims     = claims.Stream

	ConsumerWriter     = "writer"
	ConsumerBulkWriter = "writer-bulk"
	ConsumerRollup     = "rollup"
	ConsumerExporter   = "exporter"

	BucketRollup  = "kansa_rollup"  // how far the rollup has come
	BucketExports = "kansa_exports" // the state of each export
	BucketLinks   = "kansa_links"   // download links, by the hash of their token

	BucketSettings = "kansa_settings" // what people decide: see package settings
	BucketAccess   = "kansa_access"   // users, keys and sessions: see package access

	BucketRecording     = schema.RecordingBucket // the switches of the trails: see package settings
	BucketVerifications = "kansa_verifications"  // what was verified last: see package integrity
	BucketReconcile     = "kansa_reconcile"      // sealed hours from which the table differs: see package reconcile
)

const (
	subjectTick         = schema.SubjectHours + ".tick"
	subjectTickSchedule = schema.SubjectHours + ".schedule"
)

// Settings of the streams.
type Settings struct {
	Replicas int
	// Shards is how many consumers a new stream of events is shared out among; default 1. See SetShards.
	Shards int
	// AuditMaxAge and AuditMaxBytes bound AUDIT: how far back a lost ClickHouse can be filled again,
	// and when producers are pushed back. 0 is no bound.
	AuditMaxAge   time.Duration
	AuditMaxBytes int64
	// DuplicateWindow is how long the server knows a message by its id.
	DuplicateWindow time.Duration
	// AckWait is how long the writer holds a message before another may have it.
	AckWait time.Duration
	// ExportAckWait is the same for the exporter and a request; default 30 s.
	ExportAckWait time.Duration
	// Hour is the length of a partition.
	Hour time.Duration
}

// Setup creates what is missing and brings what is there up to date. It may run at any time, in any
// number of processes. A stream that is there with settings that break a guarantee is refused with an
// error that answers to [ErrUnsafe].
func (c *Client) Setup(ctx context.Context, s Settings) error {
	// A direct answer may come from any server that has the stream, and that one may lag behind: what is not there
	// yet would be taken for what is not there.
	alone := s.Replicas <= 1
	base := jetstream.StreamConfig{Storage: jetstream.FileStorage, Replicas: max(s.Replicas, 1), AllowDirect: alone}
	audit := base
	audit.Name, audit.Subjects, audit.SubjectTransform = StreamAudit, eventSubjects(), eventTransform()
	layout{shards: max(s.Shards, 1)}.into(&audit)
	audit.Discard, audit.MaxAge, audit.MaxBytes = jetstream.DiscardNew, s.AuditMaxAge, unlimited(s.AuditMaxBytes)
	audit.MaxMsgSize, audit.Duplicates = schema.MaxMessageBytes+8<<10, s.DuplicateWindow

	hours := base
	hours.Name, hours.Subjects, hours.Retention = StreamHours, []string{schema.SubjectHours + ".>"}, jetstream.WorkQueuePolicy
	// One tick says as much as a hundred: the rollup looks for itself which hours are due.
	hours.MaxMsgsPerSubject, hours.Discard, hours.AllowMsgSchedules = 1, jetstream.DiscardOld, true

	partitions := base
	partitions.Name, partitions.Subjects, partitions.Discard = StreamPartitions, []string{schema.SubjectPartitions + ".*.*"}, jetstream.DiscardOld
	partitions.MaxMsgs, partitions.Duplicates = 10_000_000, time.Hour

	exports := base
	exports.Name, exports.Subjects, exports.Retention = StreamExports, []string{schema.SubjectExports + ".*"}, jetstream.WorkQueuePolicy
	exports.Discard, exports.Duplicates = jetstream.DiscardNew, time.Hour

	dead := base
	dead.Name, dead.Subjects = StreamDeadLetter, []string{schema.SubjectDeadLetter + ".*"}
	dead.Discard, dead.Duplicates = jetstream.DiscardNew, time.Hour
	dead.MaxMsgSize = maxPayload

	// As long as the messages that they are of, so that the two can be held against each other.
	tallies := base
	tallies.Name, tallies.Subjects, tallies.Discard, tallies.MaxAge = StreamTallies, []string{tally.Subject}, jetstream.DiscardNew, s.AuditMaxAge

	// As long as an insert may take, and a writer that starts looks back.
	claimed := base
	claimed.Name, claimed.Subjects, claimed.Discard, claimed.MaxAge = StreamClaims, []string{claims.Subject}, jetstream.DiscardOld, max(5*time.Minute, 2*s.AckWait)

	// What is made takes several syncs, on a disk that may be busy with all that there is already.
	patiently := func(step func(context.Context) error) error {
		if !alone {
			return step(ctx)
		}
		ctx, cancel := context.WithTimeout(ctx, setUpPatience)
		defer cancel()
		return step(ctx)
	}
	for _, cfg := range []jetstream.StreamConfig{audit, hours, partitions, exports, dead, tallies, claimed} {
		if err := patiently(func(ctx context.Context) error { return c.ensureStream(ctx, cfg) }); err != nil {
			return err
		}
	}
	if err := patiently(func(ctx context.Context) error { return c.setWriters(ctx, s.AckWait) }); err != nil {
		return err
	}
	consumers := map[string]jetstream.ConsumerConfig{
		StreamHours:   {Durable: ConsumerRollup, AckWait: 30 * time.Second, MaxAckPending: 1, FilterSubject: subjectTick},
		StreamExports: {Durable: ConsumerExporter, AckWait: cmp.Or(s.ExportAckWait, 30*time.Second), MaxAckPending: 64, FilterSubject: schema.SubjectExports + ".*"},
	}
	for stream, cfg := range consumers {
		if err := patiently(func(ctx context.Context) error { return c.setConsumer(ctx, stream, explicit(cfg)) }); err != nil {
			return err
		}
	}
	for _, bucket := range buckets() {
		if err := patiently(func(ctx context.Context) error { return c.ensureBucket(ctx, bucket, base.Replicas) }); err != nil {
			return fmt.Errorf("set up bucket %s: %w", bucket, err)
		}
	}
	recording := jetstream.KeyValueConfig{
		Bucket: BucketRecording, History: 1, Storage: jetstream.FileStorage, Replicas: base.Replicas,
		// Publishers hear at once that there is something new.
		RePublish: &jetstream.RePublish{Source: schema.RecordingKeys + ".*", Destination: schema.SubjectRecording + ".{{wildcard(1)}}", HeadersOnly: true},
	}
	return patiently(func(ctx context.Context) error {
		if _, err := c.JS.CreateOrUpdateKeyValue(ctx, recording); err != nil {
			return fmt.Errorf("set up bucket %s: %w", BucketRecording, err)
		}
		st, err := c.JS.Stream(ctx, schema.RecordingStream)
		if err != nil {
			return fmt.Errorf("look up bucket %s: %w", BucketRecording, err)
		}
		c.keepStream(st.CachedInfo())
		return c.Schedule(ctx, Schedule{Subject: subjectTickSchedule, Target: subjectTick, Every: s.Hour})
	})
}

// setUpPatience bounds each step of Setup, but in a cluster, where an answer that does not come soon never comes.
const setUpPatience = 30 * time.Second

func unlimited(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// ensureBucket makes a bucket, or brings its stream up to date.
func (c *Client) ensureBucket(ctx context.Context, bucket string, replicas int) error {
	st, err := c.JS.Stream(ctx, "KV_"+bucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		cfg := jetstream.KeyValueConfig{Bucket: bucket, History: 1, Storage: jetstream.FileStorage, Replicas: replicas}
		if _, err := c.JS.CreateKeyValue(ctx, cfg); err != nil && !errors.Is(err, jetstream.ErrBucketExists) { // another process was first
			return err
		}
		st, err = c.JS.Stream(ctx, "KV_"+bucket)
	}
	if err != nil {
		return err
	}
	cfg := st.CachedInfo().Config
	if err := checkStream(cfg); err != nil {
		return err
	}
	// Nothing in a bucket ends by itself.
	want := cfg
	want.Replicas, want.AllowDirect = replicas, replicas == 1
	want.MaxAge, want.MaxBytes, want.MaxMsgs, want.Discard = 0, -1, -1, jetstream.DiscardNew
	if cfg.Replicas == want.Replicas && cfg.AllowDirect == want.AllowDirect && cfg.MaxAge == 0 && cfg.MaxBytes <= 0 && cfg.MaxMsgs <= 0 && cfg.Discard == want.Discard {
		c.keepStream(st.CachedInfo())
		return nil
	}
	info, err := c.JS.UpdateStream(ctx, want)
	if err == nil {
		c.keepStream(info.CachedInfo())
	}
	return err
}

func (c *Client) ensureStream(ctx context.Context, cfg jetstream.StreamConfig) error {
	if have, err := c.JS.Stream(ctx, cfg.Name); err == nil {
		if err := checkStream(have.CachedInfo().Config); err != nil {
			return err
		}
		if cfg.Metadata != nil { // what it says is decided when the stream is made, and by SetShards
			cfg.Metadata = have.CachedInfo().Config.Metadata
		}
	} else if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("look up stream %s: %w", cfg.Name, err)
	}
	st, err := c.JS.CreateOrUpdateStream(ctx, cfg)
	if err != nil {
		return fmt.Errorf("set up stream %s: %w", cfg.Name, err)
	}
	c.keepStream(st.CachedInfo())
	return nil
}

// Streams are the names of all streams that Setup makes, those of the buckets among them.
func Streams() []string {
	all := []string{StreamAudit, StreamHours, StreamPartitions, StreamExports, StreamDeadLetter, StreamTallies, StreamClaims}
	for _, bucket := range append(buckets(), BucketRecording) {
		all = append(all, "KV_"+bucket)
	}
	return all
}

func buckets() []string {
	return []string{BucketRollup, BucketExports, BucketLinks, BucketSettings, BucketAccess, BucketVerifications, BucketReconcile}
}

// CheckStream refuses a stream that would break a guarantee. The error answers to [ErrUnsafe].
func CheckStream(cfg jetstream.StreamConfig) error { return checkStream(cfg) }

// checkStream refuses what an update can't mend, and what someone must have set on purpose.
func checkStream(cfg jetstream.StreamConfig) error {
	switch {
	case cfg.PersistMode == jetstream.AsyncPersistMode:
		return fmt.Errorf("%w: stream %s has persist_mode async, which acknowledges before it syncs to disk: copy it to a stream without, and delete it",
			ErrUnsafe, cfg.Name)
	case cfg.Storage != jetstream.FileStorage:
		return fmt.Errorf("%w: stream %s keeps its messages in memory: copy it to a stream with file storage, and delete it", ErrUnsafe, cfg.Name)
	case cfg.NoAck:
		return fmt.Errorf("%w: stream %s acknowledges nothing (no_ack): set no_ack: false", ErrUnsafe, cfg.Name)
	}
	return nil
}

// Schedule is a message that the broker itself publishes again and again.
type Schedule struct {
	Subject string // where the schedule is kept; one subject has one schedule
	Target  string // where the messages go
	// Every is the interval; those that divide a day fall on its multiples.
	Every time.Duration
	Data  []byte
}

// Schedule sets s, in place of what its subject had before. Setting it again changes nothing.
func (c *Client) Schedule(ctx context.Context, s Schedule) error {
	pattern := everyPattern(s.Every)
	msg := nats.NewMsg(s.Subject)
	msg.Data = s.Data
	msg.Header.Set(jetstream.ScheduleHeader, pattern)
	msg.Header.Set(jetstream.ScheduleTargetHeader, s.Target)
	stream, err := c.JS.StreamNameBySubject(ctx, s.Subject)
	if err != nil {
		return fmt.Errorf("find the stream of schedule %s: %w", s.Subject, err)
	}
	st, err := c.JS.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", stream, err)
	}
	have, err := st.GetLastMsgForSubject(ctx, s.Subject)
	switch {
	case err == nil && string(have.Data) == string(s.Data) && sameHeaders(have.Header, msg.Header):
		return nil
	case err == nil:
		if err := st.Purge(ctx, jetstream.WithPurgeSubject(s.Subject)); err != nil {
			return fmt.Errorf("remove the old schedule %s: %w", s.Subject, err)
		}
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("look up schedule %s: %w", s.Subject, err)
	}
	if _, err := c.JS.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("set schedule %s (%s): %w", s.Subject, pattern, err)
	}
	return nil
}

// Tick puts a tick among those of the schedule.
func (c *Client) Tick(ctx context.Context) error {
	if _, err := c.JS.Publish(ctx, subjectTick, nil); err != nil {
		return fmt.Errorf("put a tick on %s: %w", subjectTick, err)
	}
	return nil
}

func sameHeaders(have, want nats.Header) bool {
	for _, k := range []string{jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader} {
		if have.Get(k) != want.Get(k) {
			return false
		}
	}
	return true
}

// everyPattern prefers cron, whose ticks fall on whole hours and minutes, to @every, whose ticks fall
// where it was set.
func everyPattern(d time.Duration) string {
	switch s := int(d / time.Second); {
	case d == time.Hour:
		return "0 0 * * * *"
	case d == 24*time.Hour:
		return "0 0 0 * * *"
	case s > 0 && s < 60 && 60%s == 0 && d%time.Second == 0:
		return fmt.Sprintf("*/%d * * * * *", s)
	case s >= 60 && s < 3600 && 3600%s == 0 && s%60 == 0:
		return fmt.Sprintf("0 */%d * * * *", s/60)
	default:
		return "@every " + d.String()
	}
}
