package exporter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// prefixDown + a hash of a server + the id of an export whose last attempt to reach it failed.
const prefixDown = "down."

// server names what deliveries share, for good and bad: when it works again, it does for all of them.
func (d *Destination) server() string {
	switch {
	case d.SFTP != nil:
		return "sftp " + d.SFTP.Address()
	case d.Bucket != "":
		return "bucket " + d.Bucket
	default:
		return "mail"
	}
}

// serverOf names the server of an export, empty if its destination was removed.
func (x *Exporter) serverOf(ctx context.Context, e *Export) (string, error) {
	if e.Destination == "" {
		return (&Destination{}).server(), nil
	}
	d, err := x.cfg.Settings.Destination(ctx, e.Organization, e.Destination)
	if errors.Is(err, ErrNoDestination) {
		return "", nil
	}
	return d.server(), err
}

// spread uses what an attempt found out about a server: after a failure the export is noted, and after a success all
// that are noted for the server are attempted at once. Otherwise each would wait for the end of its own pause.
func (x *Exporter) spread(ctx context.Context, e *Export) error {
	if e.State != Retrying && e.State != Done {
		return nil
	}
	server, err := x.serverOf(ctx, e)
	if err != nil || server == "" {
		return err
	}
	sum := sha256.Sum256([]byte(server))
	prefix := prefixDown + hex.EncodeToString(sum[:8]) + "."
	if e.State == Retrying {
		if _, err := x.states.KV.Put(ctx, prefix+e.ID, nil); err != nil {
			return fmt.Errorf("note that export %s waits for a server: %w", e.ID, err)
		}
		return nil
	}
	waiting, err := keysOf(ctx, x.states.KV, prefix)
	if err != nil {
		return err
	}
	for _, id := range waiting {
		if err := x.wake(ctx, prefix, id); err != nil {
			return err
		}
	}
	if len(waiting) > 1 {
		x.log.Info("server works again; retrying what waits for it", slog.String("server", server), slog.Int("exports", len(waiting)))
	}
	return nil
}

// wake has an export attempted now, in addition to the attempts that are to come, and forgets that it waits.
func (x *Exporter) wake(ctx context.Context, prefix, id string) error {
	e, found, err := x.states.Get(ctx, id)
	if err != nil {
		return err
	}
	if found && e.State == Retrying {
		if err := submit(ctx, x.js, task{Request: &e.Request, Once: true}, fmt.Sprintf("wake.%s.%d", id, e.Updated.UnixNano())); err != nil {
			return err
		}
	}
	return forget(ctx, x.states.KV, prefix+id)
}

// sweepWaiting forgets exports that are noted as waiting for a server and are over.
func (x *Exporter) sweepWaiting(ctx context.Context) (n int, _ error) {
	keys, err := keysOf(ctx, x.states.KV, prefixDown)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		_, id, _ := strings.Cut(key, ".")
		if e, found, err := x.states.Get(ctx, id); err != nil {
			return n, err
		} else if found && e.State != Done && e.State != Failed {
			continue
		}
		if err := forget(ctx, x.states.KV, prefixDown+key); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
