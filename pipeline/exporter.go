package pipeline

import (
	"context"
	"log/slog"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/operator"
)

func (s *System) startExporter(ctx context.Context) error {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return err
	}
	c := s.Config
	log := s.log.With(slog.String("part", "exporter"))
	var mailer exporter.Mailer
	if c.Mail != nil {
		if mailer, err = mail.New(*c.Mail, log); err != nil {
			return err
		}
	}
	kept, err := s.openSecrets()
	if err != nil {
		return err
	}
	if err := kept.Provision(ctx, c.Destinations); err != nil {
		return err
	}
	s.Settings = kept
	s.Exporter = exporter.New(s.Bucket, s.States, s.Links, mailer, s.Client.JS, exporter.Config{
		Settings: kept, PublicURL: s.publicURL(), LinkTTL: c.LinkTTL(), AlertAfter: c.Exports.AlertAfter, Closed: progress.Sealed, Record: s.own.Record, Logger: log,
		Reach: s.reach(), MailsPerDay: int(c.Limits.MailsPerDay), MailRefused: func() { s.refused.Add("mails") }, Receipts: &keys.Receipts{Dir: c.DataDir, Bucket: s.Bucket}, Tracing: s.tracing,
	})
	s.Intake = &exporter.Intake{
		JS: s.Client.JS, Bucket: s.Bucket, States: s.States, Settings: kept, Closed: progress.Sealed, Began: progress.Began, Linger: c.LinkTTL(), Record: s.own.Record,
	}
	s.roles.Go(func() error { return s.followSettings(s.ended) })
	s.roles.Go(func() error { return s.Exporter.RunSchedules(s.ended) })
	s.roles.Go(func() error { return s.Exporter.Housekeep(s.ended) })
	desk := &operator.Desk{Settings: kept, States: s.States, Intake: s.Intake, Exporter: s.Exporter, Access: &s.Access, Record: s.own.Record, Logger: log}
	s.roles.Go(func() error { return desk.Serve(s.ended, s.Client.NC) })
	return s.work(ctx, RoleExporter, broker.StreamExports, broker.ConsumerExporter, consumers.Work{Handle: s.Exporter.Handle, Parallel: c.Exports.Parallel, Logger: log})
}

// publicURL is where links lead; on one machine, to the API itself.
func (s *System) publicURL() string {
	if s.Config.Exports.PublicURL == "" && s.API != nil {
		return s.API.URL()
	}
	return s.Config.Exports.PublicURL
}
