package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/store"
)

// currentChecks are those of the roles, once they have started.
func (s *System) currentChecks() []health.Check {
	if s.started.Load() {
		return s.checks.All()
	}
	return []health.Check{{Role: "kansa", Name: "start", Severity: health.Failing, Look: func(context.Context) error {
		return errors.New("it is starting")
	}}}
}

// addChecks adds what the roles of this process need and do to the list that /readyz, doctor, top, the metrics and the console
// report.
func (s *System) addChecks(roles []Role, progress *rollup.Progress) {
	for _, r := range roles {
		add := func(name string, severity health.Severity, look func(context.Context) error) {
			s.checks.Add(health.Check{Role: string(r), Name: name, Severity: severity, Look: look})
		}
		add("broker", health.Failing, s.brokerAnswers)
		if r == RoleWriter || r == RoleRollup || r == RoleAPI {
			add("engine", health.Failing, s.engineAnswers)
		}
		if r == RoleRollup || r == RoleExporter {
			add("partitions", health.Failing, seldom(s.partitionsAnswer))
		}
		for _, q := range s.watched[r] {
			add("consumer", health.Failing, q.Look)
		}
		switch r {
		case RoleWriter:
			for _, shard := range s.shards {
				add("progress", health.Failing, shard.Look)
			}
			add("storing", health.Failing, s.storingSucceeds)
		case RoleRollup:
			hour := s.Config.Rollup.Hour
			add("progress", health.Failing, func(ctx context.Context) error { return rollupKeepsUp(ctx, progress, hour) })
			s.checks.Add(health.Check{Role: string(r), Name: "table", Severity: health.Failing, Part: true, Look: seldom(s.tableIsAsSealed)})
			add("sealing", health.Failing, func(ctx context.Context) error { return s.sealingSucceeds(ctx, progress) })
			s.checks.Add(health.Check{Role: string(r), Name: "agreement", Severity: health.Failing, Part: true, Look: func(ctx context.Context) error {
				return s.nothingBlocked(ctx, progress, hour)
			}})
		case RoleExporter:
			add("deliveries", health.Warning, s.deliveriesSucceed)
			add("schedules", health.Warning, s.schedulesRun)
		case RoleAPI:
			add("keys", health.Warning, s.apiKeysLast)
		}
	}
	own := func(name string, severity health.Severity, look func(context.Context) error) {
		s.checks.Add(health.Check{Role: "kansa", Name: name, Severity: severity, Look: look})
	}
	for _, d := range s.disks() {
		own("disk", health.Warning, d.Look)
	}
	own("files", health.Warning, SecretFiles(s.Config, roles).Look)
	own("certificates", health.Warning, s.certificates.Look)
	own("room", health.Warning, seldom(s.streamsHaveRoom))
	own("full", health.Failing, seldom(s.streamsAreNotFull))
	own("dead letters", health.Warning, seldom(s.noDeadLetters))
	own("streams", health.Failing, s.drift.streamsAreWell)
	own("settings", health.Warning, s.drift.settingsAreOurs)
	own("consumers", health.Warning, s.drift.consumersAreWell)
	if s.server == nil {
		own("broker", health.Warning, seldom(s.brokerIsSafe))
	}
	if s.Store != nil {
		own("clickhouse", health.Warning, seldom(s.engineIsWell))
	}
}

// seldomEvery is how often is looked at what changes slowly and costs more than a question.
const seldomEvery = 10 * time.Second

// seldom repeats what a look found before, for a while.
func seldom(look func(context.Context) error) func(context.Context) error {
	var mu sync.Mutex
	var at time.Time
	var found error
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if !at.IsZero() && time.Since(at) < seldomEvery {
			return found
		}
		err := look(ctx)
		if ctx.Err() == nil { // or who asked is gone
			at, found = time.Now(), err
		}
		return err
	}
}

// brokerIsSafe asks what was asked at the start, for servers are upgraded and set up anew.
func (s *System) brokerIsSafe(ctx context.Context) error {
	if !s.Client.NC.IsConnected() {
		return nil // which is another check's
	}
	return s.Client.CheckServer(ctx, brokerOptions(s.Config))
}

func (s *System) partitionsAnswer(ctx context.Context) error {
	ok, err := s.Bucket.IsAccessible(ctx)
	switch {
	case err != nil:
		err = fmt.Errorf("the store of the partitions does not answer: %w", err)
	case !ok:
		err = errors.New("the store of the partitions is not there")
	}
	return health.Do(err, "see to it that partitions.url, or the folder of data_dir, can be reached and written to")
}

func (s *System) apiKeysLast(ctx context.Context) error {
	all, err := s.Access.Keys(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for i := range all {
		if err := health.Expiry("the API key "+all[i].Name, all[i].Expires); err != nil {
			errs = append(errs, err)
		}
	}
	return health.Do(health.Named(errors.Join(errs...), "%d API keys have expired or will soon", len(errs)), "make another key (POST /api/v1/keys, or the console's page Access), give it to who has the old one, and revoke that")
}

// Bounds beyond which ClickHouse is not well, before it refuses anything: it slows inserts down at 1,000 parts.
const (
	manyParts = 300
	longQueue = 1000
	longDelay = 300 // seconds
)

func (s *System) engineIsWell(ctx context.Context) error {
	c, err := s.Store.Condition(ctx)
	if err != nil {
		return err
	}
	var errs []error
	fault := func(remedy, format string, v ...any) {
		errs = append(errs, health.Do(fmt.Errorf(format, v...), "%s", remedy))
	}
	if err := store.CheckVersion(c.Version); err != nil {
		fault(store.VersionRemedy, "%w", err)
	}
	if c.Migration != c.Wanted {
		fault("run one version of Kansa everywhere", "its tables are of migration %d, this program is of %d", c.Migration, c.Wanted)
	}
	if c.MostParts > manyParts {
		fault("give ClickHouse more cores, or raise writer.linger: inserts are too many or too small for its merges",
			"%s is in %d parts: merges do not keep up", c.PartsOf, c.MostParts)
	}
	if c.Broken > 0 {
		fault("kansa repair says whether events are missing, and --fix takes them from the stream; then ALTER TABLE … DROP DETACHED PART",
			"%d parts were set aside because they are broken, such as %s", c.Broken, c.BrokenExample)
	}
	if c.ReadOnly > 0 {
		fault("look at ClickHouse Keeper: system.replicas names the table", "%d replicas are read-only", c.ReadOnly)
	}
	if c.Queue > longQueue || c.Delay > longDelay {
		fault("system.replication_queue says what it waits for", "a replica is behind: %d entries in its queue, %d seconds", c.Queue, c.Delay)
	}
	if s.Engine == nil { // an embedded one's is among the disks of this machine
		for _, d := range c.Disks {
			if d.Free < uint64(s.Config.Health.DiskFree) {
				fault("make room: deploy/RUNBOOK.md, Full disk", "the disk %s of ClickHouse (%s) is nearly full: %s of %s are free", d.Name, d.Path, health.Size(d.Free), health.Size(d.Total))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *System) brokerAnswers(context.Context) error {
	if s.server != nil {
		if err := s.server.Err(); err != nil {
			return err
		}
	}
	if !s.Client.NC.IsConnected() {
		return health.Do(errors.New("no connection to NATS"), "start NATS, or look at its log and at nats.url")
	}
	return nil
}

func (s *System) engineAnswers(ctx context.Context) error {
	if err := s.Store.Ping(ctx); err != nil {
		return health.Do(fmt.Errorf("ClickHouse does not answer: %w", err), "start it, or look at its log; meanwhile events wait in the stream")
	}
	return nil
}

// late is how much later than its end an hour may be rolled up, besides another hour.
const late = time.Minute

func rollupKeepsUp(ctx context.Context, progress *rollup.Progress, hour time.Duration) error {
	next, err := progress.Next(ctx)
	if err != nil {
		return err
	}
	if behind := time.Since(next); !next.IsZero() && behind > 2*hour+late {
		return health.Do(fmt.Errorf("it is behind: rolled up is until %s, %s ago", next.Format(time.RFC3339), behind.Round(time.Second)),
			"if the writers are behind, that first; or the log of part=rollup says which hour, and why")
	}
	return nil
}

// nothingBlocked says which organizations' trails are not sealed, while the others are.
func (s *System) nothingBlocked(ctx context.Context, progress *rollup.Progress, hour time.Duration) error {
	blocked, err := progress.Blocks(ctx, hour)
	if err != nil {
		return err
	}
	if len(blocked) > 0 {
		return Blocked(blocked)
	}
	open := s.open()
	return health.Do(health.Named(open.Err(), "%d messages were acknowledged but never stored", len(open.Unstored)), "%s", remedyOf(rollup.KindUnstored))
}

// mostNamed is how many trails a finding names.
const mostNamed = 5

// Blocked says of trails that they are not sealed, why, and what to do.
func Blocked(blocked []rollup.Block) error {
	var reasons, remedies []string
	for i := range blocked {
		b := &blocked[i]
		if i < mostNamed {
			reasons = append(reasons, b.Path()+": "+b.Reason)
		}
		if r := remedyOf(b.Kind); !slices.Contains(remedies, r) {
			remedies = append(remedies, r)
		}
	}
	if more := len(blocked) - mostNamed; more > 0 {
		reasons = append(reasons, fmt.Sprintf("and %d more", more))
	}
	found := fmt.Errorf("%d trails are not sealed and wait for kansa repair: %s", len(blocked), strings.Join(reasons, "; "))
	return health.Do(health.Named(found, "%d trails are not sealed and wait for kansa repair", len(blocked)), "%s", strings.Join(remedies, "; "))
}

// remedyOf is what to do about a blocked trail.
func remedyOf(kind string) string {
	switch kind {
	case rollup.KindUnstored:
		return "kansa repair --fix stores acknowledged messages that were not stored; find out which client settled them"
	case rollup.KindUnclear:
		return "kansa repair --fix takes the stream's count in place of the entries that contradict each other; find out who wrote the other"
	case rollup.KindSwitches:
		return switchesRemedy
	case rollup.KindLate, rollup.KindLost:
		return "kansa repair names the messages, and the command that goes on without them"
	case rollup.KindChain:
		return "put the manifest back into the partition store from a backup (deploy/RUNBOOK.md, Disagreement); sealing goes on within a minute"
	case rollup.KindFailed:
		return "see to the partition store or ClickHouse, whichever the reason names; sealing goes on within a minute"
	}
	return "kansa repair, and find out why before --fix"
}

const (
	// failedFor is how long something may fail before it is reported.
	failedFor = 10 * time.Second
	// seenWithin is how long ago the last failure may be for it to be one still.
	seenWithin = 90 * time.Second
	// sealsWithin is how long one hour may take.
	sealsWithin = 15 * time.Minute
)

// sealingSucceeds says why no organization's hours are sealed.
func (s *System) sealingSucceeds(ctx context.Context, progress *rollup.Progress) error {
	stopped, err := progress.Stopped(ctx)
	if err != nil {
		return err
	}
	if stopped != nil {
		return health.Do(fmt.Errorf("nothing is sealed, of any organization, since %s (the hour of %s): %s", stopped.Since.Format(time.RFC3339), stopped.Hour.Format(time.RFC3339), stopped.Reason),
			"kansa repair names the messages; if they are gone for good: kansa repair --accept %s --by NAME --reason TEXT", rollup.Runs(stopped.Lost))
	}
	if err := s.open().LostErr(); err != nil {
		return health.Do(fmt.Errorf("no hour can be sealed any more: %w", err), "kansa repair names the messages and the command that goes on without them")
	}
	if f := s.Rollup.Failing(); f != nil && time.Since(f.Since) > failedFor {
		next, err := progress.Next(ctx)
		if err != nil {
			return err
		}
		if f.Hour.IsZero() || !next.After(f.Hour) { // or another rollup could
			found := fmt.Errorf("nothing is sealed, of any organization, since %s: %w", f.Since.UTC().Format(time.RFC3339), f.Err)
			return health.Do(health.Named(found, "nothing is sealed, of any organization, since %s", f.Since.UTC().Format(time.RFC3339)), "%s", sealingRemedy(f.Err))
		}
	}
	if since := s.Rollup.Busy(); since > sealsWithin {
		return health.Do(fmt.Errorf("one attempt to seal has taken %s: it may hang", since.Round(time.Second)), "see whether ClickHouse and the partition store answer; if they do, restart the rollup: nothing is lost by it")
	}
	return nil
}

// switchesRemedy is for a document that somebody has written past Kansa.
const switchesRemedy = `put the organization's document back from a backup: nats kv put ` + broker.BucketRecording + ` ORGANIZATION DOCUMENT; {"version":1} says that its trails were never off`

// sealingRemedy is what to do about an error that stops sealing.
func sealingRemedy(err error) string {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return "kansa repair --streams makes streams again that are missing and restores their settings; consumers are made again by themselves within writer.ack_wait"
	case errors.Is(err, keys.ErrMissing), errors.Is(err, keys.ErrMode), errors.Is(err, keys.ErrDamaged), errors.Is(err, keys.ErrForeign), errors.Is(err, fs.ErrPermission):
		return "put the sealing key back, readable by Kansa's user alone (deploy/RUNBOOK.md, Key rotation); sealing goes on within a minute"
	case errors.Is(err, recording.ErrUnknown):
		return switchesRemedy
	}
	return "see to what the reason names: the broker, ClickHouse or the partition store; sealing goes on within a minute"
}

// storingSucceeds says why messages are not stored.
func (s *System) storingSucceeds(context.Context) error {
	for _, w := range s.Writer {
		since, last, err := w.Failing()
		if err == nil || time.Since(since) < failedFor || time.Since(last) > seenWithin {
			continue
		}
		remedy := "see to what the reason names; the writer tries on, and nothing is lost meanwhile"
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse), isFull(err):
			remedy = "kansa repair --streams makes streams again that are missing and restores their settings; if the disk is full, make room"
		case errors.Is(err, recording.ErrUnknown):
			remedy = sealingRemedy(err)
		}
		found := fmt.Errorf("messages are not stored since %s: %w", since.UTC().Format(time.RFC3339), err)
		return health.Do(health.Named(found, "messages are not stored since %s", since.UTC().Format(time.RFC3339)), "%s", remedy)
	}
	return nil
}

// isFull reports whether a stream refused a message because it is full.
func isFull(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && (refused.ErrorCode == 10077 || refused.ErrorCode == 10047 || refused.ErrorCode == 10023)
}

func (s *System) deliveriesSucceed(context.Context) error {
	if failing := s.Exporter.Failing(); len(failing) > 0 {
		found := fmt.Errorf("%d are to be tried again: %s", len(failing), strings.Join(failing, "; "))
		return health.Do(health.Named(found, "%d deliveries are to be tried again", len(failing)), "kansa export list; kansa destination test ORGANIZATION/NAME")
	}
	return nil
}

// schedulesRun says which destinations' schedules are skipped: each concerns that destination alone.
func (s *System) schedulesRun(context.Context) error {
	if skipped := s.Exporter.SkippedSchedules(); len(skipped) > 0 {
		found := fmt.Errorf("%d schedules are skipped: %s", len(skipped), strings.Join(skipped, "; "))
		return health.Do(health.Named(found, "%d schedules are skipped", len(skipped)), "kansa destination list; kansa destination edit ORGANIZATION/NAME, or remove it and add it again")
	}
	return nil
}

const (
	// filling and full are how full a stream or the account may be.
	filling = 0.8
	full    = 0.95
)

// streamsHaveRoom says which streams are about to refuse what is published.
func (s *System) streamsHaveRoom(ctx context.Context) error { return s.fills(ctx, filling, full) }

// streamsAreNotFull says which streams refuse what is published, or are about to.
func (s *System) streamsAreNotFull(ctx context.Context) error { return s.fills(ctx, full, math.Inf(1)) }

func (s *System) fills(ctx context.Context, from, below float64) error {
	var errs []error
	fills := func(what, remedy string, used uint64, most int64) {
		if share := float64(used) / float64(most); most > 0 && share >= from && share < below {
			errs = append(errs, health.Do(fmt.Errorf("%s is %.0f %% full: %s of %s", what, 100*share, health.Size(used), health.Size(uint64(most))), "%s", remedy))
		}
	}
	list := s.Client.JS.ListStreams(ctx)
	for info := range list.Info() {
		if !slices.Contains(broker.Streams(), info.Config.Name) {
			continue
		}
		remedy := "kansa repair --streams, if the bound was changed from outside; otherwise raise max_bytes of the stream"
		switch info.Config.Name {
		case broker.StreamAudit:
			remedy = "see to the writers if they are behind; or raise streams.audit_max_bytes, or lower streams.audit_max_age"
		case broker.StreamDeadLetter:
			remedy = "kansa deadletter list; fix the producer, then kansa deadletter replay"
		}
		fills("stream "+info.Config.Name, remedy, info.State.Bytes, info.Config.MaxBytes)
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list the streams: %w", err)
	}
	if account, err := s.Client.JS.AccountInfo(ctx); err == nil { // whether the broker answers is another check's
		fills("JetStream's storage", "give the account, or jetstream, more max_file_store", account.Store, account.Limits.MaxStore)
	}
	return errors.Join(errs...)
}

// noDeadLetters says how many dead letters wait.
func (s *System) noDeadLetters(ctx context.Context) error {
	stream, err := s.Client.JS.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return nil //nolint:nilerr // that it is missing is another check's
	}
	if n := stream.CachedInfo().State.Msgs; n > 0 {
		return health.Do(fmt.Errorf("%d dead letters wait", n), "kansa deadletter list; fix the producer, then kansa deadletter replay")
	}
	return nil
}

// disks are the directories that this process writes to.
func (s *System) disks() []health.Disk {
	c, least := s.Config, uint64(s.Config.Health.DiskFree)
	var all []health.Disk
	if s.server != nil {
		all = append(all, health.Disk{Name: "nats", Dir: filepath.Join(c.DataDir, "nats"), Least: least})
	}
	if s.Engine != nil {
		all = append(all, health.Disk{Name: "clickhouse", Dir: filepath.Join(c.DataDir, "clickhouse"), Least: least})
	}
	if dir := partitionsDir(c); s.Rollup != nil && dir != "" {
		all = append(all, health.Disk{Name: "partitions", Dir: dir, Least: least})
	}
	return slices.Clip(all)
}

// partitionsDir is where the partitions lie, if that is on this machine.
func partitionsDir(c *config.Config) string {
	target, err := c.PartitionsURL()
	if err != nil {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "file" {
		return ""
	}
	return filepath.FromSlash(u.Path)
}

// tableIsAsSealed says which sealed hours the table does not have as they were sealed.
func (s *System) tableIsAsSealed(ctx context.Context) error {
	found, err := s.findings.List(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	f := &found[0]
	err = fmt.Errorf("the table differs from %d sealed hours, such as %s/%s %s: %s", len(found), f.Organization, f.Trail, f.Hour.Format(time.RFC3339), f)
	err = health.Named(err, "the table differs from %d sealed hours", len(found))
	return health.Do(err, "kansa restore --dry-run shows what differs; kansa restore stores what is missing, and with --replace also removes what was not sealed")
}
