package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
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
		case RoleExporter:
			add("deliveries", health.Warning, s.deliveriesSucceed)
		case RoleGateway:
			add("stream", health.Warning, s.streamHasRoom)
		}
	}
	for _, d := range s.disks() {
		all = append(all, health.Check{Role: "kansa", Name: "disk", Severity: health.Warning, Look: d.Look})
	}
	return all
}

func (s *System) brokerAnswers(context.Context) error {
	if s.server != nil {
		if err := s.server.Err(); err != nil {
			return err
		}
	}
	if !s.Client.NC.IsConnected() {
		return errors.New("no connection to NATS")
	}
	return nil
}

func (s *System) engineAnswers(ctx context.Context) error {
	if err := s.Store.Ping(ctx); err != nil {
		return fmt.Errorf("ClickHouse does not answer: %w", err)
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
		return fmt.Errorf("it is behind: rolled up is until %s, %s ago", next.Format(time.RFC3339), behind.Round(time.Second))
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
	return fmt.Errorf("accounts disagree, and these wait for kansa repair: %s", strings.Join(paths, ", "))
}

func (s *System) deliveriesSucceed(context.Context) error {
	if failing := s.Exporter.Failing(); len(failing) > 0 {
		return fmt.Errorf("%d are to be tried again: %s", len(failing), strings.Join(failing, "; "))
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
		return fmt.Errorf("stream %s is nearly full: %d bytes of %d (streams.audit_max_bytes)", info.Config.Name, info.State.Bytes, most)
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
