package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/settings"
)

// openSettings opens what people decide. The key that seals secrets is for those alone who deliver.
func (s *System) openSettings() *settings.Store {
	return &settings.Store{
		KV: s.settings, Trails: s.switches, HIPAA: s.Config.Trails.HIPAA, Record: s.own.Record, Logger: s.log.With(slog.String("part", "settings")),
		Defaults: settings.Organization{ExportsPerDay: s.Config.Exports.PerDay, RetentionDays: s.Config.Retention.Days}, Days: s.Config.Retention.Organizations,
		Reach: s.reach(), Hour: s.Config.Rollup.Hour,
	}
}

// settingsKey is the file of the key that seals secrets.
func settingsKey(c *config.Config) string {
	if c.Settings.KeyFile != "" {
		return c.Settings.KeyFile
	}
	return filepath.Join(c.DataDir, settings.KeyFile)
}

// openSecrets opens them with the key.
func (s *System) openSecrets() (*settings.Store, error) {
	box, err := settings.OpenBox(settingsKey(s.Config))
	if err != nil {
		return nil, err
	}
	kept := s.openSettings()
	kept.Box = box
	return kept, nil
}

// schedules gives the broker the schedules of the destinations, and takes away those of others.
func (s *System) schedules(ctx context.Context) error {
	kept, err := s.Settings.Destinations(ctx, "")
	if err != nil {
		return err
	}
	var all []broker.Schedule
	for i := range kept {
		d := &kept[i]
		if d.Schedule == nil || d.Paused {
			continue
		}
		body, err := exporter.EncodeSchedule(d.Name)
		if err != nil {
			return fmt.Errorf("encode the schedule of %s: %w", d.Name, err)
		}
		all = append(all, broker.ExportSchedule(d.Name, d.Organization, d.Schedule.Cron, d.Schedule.TimeZone, d.Schedule.Every, body))
	}
	return s.Client.SetExportSchedules(ctx, all)
}

// followSettings brings the schedules in line with the destinations whenever one is changed, and has a look at the
// schedule of that one at once: what waited for it need not wait for the hour at which it is due.
func (s *System) followSettings(ctx context.Context) error {
	return s.Settings.Follow(ctx, func(key string) {
		id, ok := strings.CutPrefix(key, settings.DestinationPrefix)
		if !ok {
			return
		}
		organization, name, _ := strings.Cut(id, ".")
		if err := errors.Join(s.schedules(ctx), exporter.LookAtSchedule(ctx, s.Client.JS, organization, name)); err != nil && ctx.Err() == nil {
			s.log.Warn("schedules were not brought up to date; the next change or start does", slog.Any("error", err))
		}
	})
}
