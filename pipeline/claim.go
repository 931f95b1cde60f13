package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/durable"
)

// lockWait is how long another process may still have data_dir: one that was told to stop a moment ago.
const lockWait = time.Second

// claim takes data_dir and the ports for this process before anything is opened: a second process must not touch what the first one uses.
func (s *System) claim(ctx context.Context, roles []Role) error {
	c := s.Config
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("create data_dir: %w", err)
	}
	// Processes with servers of their own may share a data_dir, which has only keys then.
	if c.NATS.URL == "" || c.ClickHouse.URL == "" {
		lock, err := durable.Lock(filepath.Join(c.DataDir, "lock"), lockWait)
		if err != nil {
			return fmt.Errorf("use data_dir %s: %w: stop the other kansa, or give this one a data_dir of its own", c.DataDir, err)
		}
		s.lock = lock
	}
	return checkPorts(ctx, c, roles)
}

// checkPorts refuses addresses that cannot be listened on, all at once.
func checkPorts(ctx context.Context, c *config.Config, roles []Role) error {
	var errs []error
	check := func(key, address string) {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen on %s: %w: stop what uses it, or set %s", address, err, key))
			return
		}
		_ = l.Close() // it is opened again by the part that it is for
	}
	if c.NATS.URL == "" {
		check("nats.listen and nats.port", net.JoinHostPort(c.NATS.Listen, strconv.Itoa(c.NATS.Port)))
	}
	if c.ClickHouse.URL == "" && (slices.Contains(roles, RoleWriter) || slices.Contains(roles, RoleRollup) || slices.Contains(roles, RoleAPI)) {
		check("clickhouse.listen", c.ClickHouse.Listen)
	}
	if slices.Contains(roles, RoleAPI) || slices.Contains(roles, RoleGateway) {
		check("api.listen", c.API.Listen)
	}
	if c.Health.Listen != "" {
		check("health.listen", c.Health.Listen)
	}
	return errors.Join(errs...)
}
