package pipeline

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

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

// followSettings has the exporter look at the schedule of each destination, and again whenever the destination is
// changed: what waited for that does not wait until it is due again.
func (s *System) followSettings(ctx context.Context) error {
	return s.Settings.Follow(ctx, func(key string) {
		if id, ok := strings.CutPrefix(key, settings.DestinationPrefix); ok {
			organization, name, _ := strings.Cut(id, ".")
			s.Exporter.ScheduleChanged(organization, name)
		}
	})
}
