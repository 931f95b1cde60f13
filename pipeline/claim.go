package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/durable"
)

// lockWait is how long another process may still have data_dir: one that is stopping.
const lockWait = time.Second

// claim takes data_dir and the ports for this process before anything is opened: a second process must not touch what the first one uses.
func (s *System) claim(ctx context.Context, roles []Role) error {
	c := s.Config
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("create data_dir %s: %w: name a directory that this user may make and write in, with data_dir or --data-dir", c.DataDir, err)
	}
	// Not refused: volumes of Kubernetes are made so. In a directory with the sticky bit others cannot replace files.
	if info, err := os.Stat(c.DataDir); err != nil {
		return fmt.Errorf("use data_dir %s: %w", c.DataDir, err)
	} else if info.Mode().Perm()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
		s.log.Warn("every user of this machine can replace the files of data_dir, and its keys: take the permission from them (chmod o-w)",
			slog.String("data_dir", c.DataDir), slog.String("mode", info.Mode().String()))
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
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // without the address, which we name
		}
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
