package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/health"
)

// currentChecks are those of the roles, once they have started.
func (s *System) currentChecks() []health.Check {
	if c := s.checks.Load(); c != nil {
		return *c
	}
	return []health.Check{{Role: "kansa", Name: "start", Severity: health.Failing, Look: func(context.Context) error {
		return errors.New("it is starting")
	}}}
}

// allChecks are what the roles of this process need and do.
func (s *System) allChecks(roles []Role, progress *rollup.Progress) []health.Check {
	var all []health.Check
	for _, r := range roles {
		add := func(name string, severity health.Severity, look func(context.Context) error) {
			all = append(all, health.Check{Role: string(r), Name: name, Severity: severity, Look: look})
		}
		add("broker", health.Failing, s.brokerAnswers)
		if r == RoleWriter || r == RoleRollup {
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
		case RoleRollup:
			hour := s.Config.Rollup.Hour
			add("progress", health.Failing, func(ctx context.Context) error { return rollupKeepsUp(ctx, progress, hour) })
			add("agreement", health.Warning, func(ctx context.Context) error { return nothingBlocked(ctx, progress, hour) })
			add("table", health.Warning, seldom(s.tableIsAsSealed))
		case RoleExporter:
			add("deliveries", health.Warning, s.deliveriesSucceed)
		case RoleGateway:
			add("stream", health.Warning, s.streamHasRoom)
		case RoleAPI:
			add("keys", health.Warning, s.apiKeysLast)
		}
	}
	own := func(name string, look func(context.Context) error) {
		all = append(all, health.Check{Role: "kansa", Name: name, Severity: health.Warning, Look: look})
	}
	for _, d := range s.disks() {
		own("disk", d.Look)
	}
	own("files", SecretFiles(s.Config, roles).Look)
	own("certificates", s.certificates.Look)
	if s.server == nil {
		own("broker", seldom(s.brokerIsSafe))
	}
	if s.Store != nil {
		own("clickhouse", seldom(s.engineIsWell))
	}
	return all
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

func nothingBlocked(ctx context.Context, progress *rollup.Progress, hour time.Duration) error {
	blocked, err := progress.Blocked(ctx, hour)
	if err != nil || len(blocked) == 0 {
		return err
	}
	paths := make([]string, len(blocked))
	for i, p := range blocked {
		paths[i] = p.Path()
	}
	found := fmt.Errorf("accounts disagree, and these wait for kansa repair: %s", strings.Join(paths, ", "))
	return health.Do(health.Named(found, "accounts disagree, and %d trails wait for kansa repair", len(paths)), "kansa repair, and find out why before --fix")
}

func (s *System) deliveriesSucceed(context.Context) error {
	if failing := s.Exporter.Failing(); len(failing) > 0 {
		found := fmt.Errorf("%d are to be tried again: %s", len(failing), strings.Join(failing, "; "))
		return health.Do(health.Named(found, "%d deliveries are to be tried again", len(failing)), "kansa export list; kansa destination test ORGANIZATION/NAME")
	}
	return nil
}

// streamHasRoom says when producers are about to be pushed back.
func (s *System) streamHasRoom(ctx context.Context) error {
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	info := stream.CachedInfo()
	if most := info.Config.MaxBytes; most > 0 && info.State.Bytes > uint64(most)/10*9 {
		return health.Do(fmt.Errorf("stream %s is nearly full: %d bytes of %d (streams.audit_max_bytes)", info.Config.Name, info.State.Bytes, most),
			"see to the writers if they are behind; or raise streams.audit_max_bytes, or lower streams.audit_max_age")
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
