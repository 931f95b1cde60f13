package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Options of a demo.
type Options struct {
	Dir           string // fresh; everything lies below it
	Input         Input
	Hour          time.Duration // default 3 s
	EngineCommand []string
	Logger        *slog.Logger
	// Say is told what happens, a sentence each; done and total are events where that can be counted.
	Say func(what string, done, total uint64)
}

// Result is what the demo counted.
type Result struct {
	Published     uint64  `json:"published"`
	Acked         uint64  `json:"acked"`
	Stored        uint64  `json:"stored"`
	Distinct      uint64  `json:"distinct"`
	Partitions    uint64  `json:"partitions"`
	PartitionRows uint64  `json:"partition_rows"`
	SFTPRows      uint64  `json:"sftp_rows"`
	LinkRows      uint64  `json:"link_rows"`
	Rejected      uint64  `json:"rejected"`
	Verified      bool    `json:"verified"`
	Seconds       float64 `json:"seconds"`
	// For people.
	PublishSeconds float64  `json:"-"`
	Organizations  int      `json:"-"`
	Archives       []string `json:"-"`
	Mails          int      `json:"-"`
	Fault          string   `json:"fault,omitempty"` // the first thing that does not agree
}

// Demo is a demo that has been set up. Its parts go on running until Close.
type Demo struct {
	o      Options
	sshd   *sshd.Server
	smtpd  *smtpd.Server
	System *pipeline.System
	began  time.Time
}

// SFTPDir has the archives that arrived on the SSH server.
func (d *Demo) SFTPDir() string { return filepath.Join(d.o.Dir, "sftp") }

// MailDir has the mails that arrived.
func (d *Demo) MailDir() string { return filepath.Join(d.o.Dir, "mail") }

// DownloadDir has the archives that were downloaded by the links in them.
func (d *Demo) DownloadDir() string { return filepath.Join(d.o.Dir, "downloads") }

// DataDir is the pipeline's data_dir.
func (d *Demo) DataDir() string { return filepath.Join(d.o.Dir, "data") }

// SFTPAddr is where the SSH server listens.
func (d *Demo) SFTPAddr() string { return d.sshd.Addr() }

// MailAddr is where the mail server listens.
func (d *Demo) MailAddr() string { return d.smtpd.Addr() }

// Start starts the servers and the pipeline.
func Start(ctx context.Context, o Options) (_ *Demo, err error) {
	if o.Hour == 0 {
		o.Hour = 3 * time.Second
	}
	if o.Say == nil {
		o.Say = func(string, uint64, uint64) {}
	}
	d := &Demo{o: o, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, dir := range []string{d.SFTPDir(), d.MailDir(), d.DownloadDir(), d.DataDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create the demo's folders: %w", err)
		}
	}
	password := secret()
	if d.sshd, err = sshd.Start(ctx, sshd.Options{Dir: d.SFTPDir(), User: "archive", Password: password, Log: o.Logger}); err != nil {
		return nil, fmt.Errorf("start the SSH server: %w", err)
	}
	if d.smtpd, err = smtpd.Start(ctx, smtpd.Options{Dir: d.MailDir(), Username: "kansa", Password: password, Log: o.Logger}); err != nil {
		return nil, fmt.Errorf("start the mail server: %w", err)
	}
	cfg, err := d.config(password)
	if err != nil {
		return nil, err
	}
	o.Say("starting NATS JetStream and ClickHouse", 0, 0)
	d.System, err = pipeline.Start(ctx, pipeline.Options{Config: cfg, Roles: pipeline.Roles, EngineCommand: o.EngineCommand, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func secret() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// config is the default one with short hours, free ports, and a destination for each organization.
func (d *Demo) config(password string) (*config.Config, error) {
	certificate := filepath.Join(d.o.Dir, "mail-ca.pem")
	if err := os.WriteFile(certificate, d.smtpd.CertificatePEM(), 0o600); err != nil {
		return nil, fmt.Errorf("keep the mail server's certificate: %w", err)
	}
	c := config.Default()
	c.DataDir, c.NATS.Port, c.API.Listen = d.DataDir(), 0, "127.0.0.1:0"
	c.Rollup.Hour = d.o.Hour
	c.Mail = &mail.Config{
		Host: "127.0.0.1", Port: d.smtpd.Port(), Username: "kansa", Password: password, CAFile: certificate,
		From: "Kansa <audit@kansa.example>",
	}
	host, port, err := splitAddr(d.sshd.Addr())
	if err != nil {
		return nil, err
	}
	for _, org := range d.o.Input.Organizations {
		c.Destinations = append(c.Destinations, exporter.Destination{
			Name: "sftp-" + org, Organization: org,
			SFTP: &sftp.Config{
				Host: host, Port: port, User: "archive", Password: password, Path: "/",
				HostKeys: []string{d.sshd.HostKeyFingerprint()},
			},
			Schedule: &exporter.Schedule{Every: d.o.Hour, Period: 2 * d.o.Hour, Since: d.began.Truncate(2 * d.o.Hour)},
		})
	}
	return c, c.Check()
}

// Run publishes, waits for the archives and counts.
func (d *Demo) Run(ctx context.Context) (*Result, error) {
	r := &Result{Organizations: len(d.o.Input.Organizations)}
	sent := newIDs()
	p, err := producers.New(d.System.Client.JS, producers.Config{Logger: d.o.Logger})
	if err != nil {
		return nil, err
	}
	start := time.Now()
	for e, err := range d.o.Input.Events {
		if err != nil {
			return nil, err
		}
		if _, err := p.PublishAsync(ctx, e); err != nil {
			return nil, fmt.Errorf("publish: %w", err)
		}
		sent.add(e.Organization, e.ID)
		if r.Published++; r.Published%1000 == 0 {
			d.o.Say("publishing", r.Published, d.o.Input.Total)
		}
	}
	if err := p.Close(ctx); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	r.Acked = p.Stats().Acked
	r.PublishSeconds = time.Since(start).Seconds()
	// The last event was recorded before now, so that this is in no hour that holds events.
	end := time.Now().UTC().Truncate(2 * d.o.Hour).Add(2 * d.o.Hour)
	if err := d.deliver(ctx, end, r); err != nil {
		return r, err
	}
	if err := d.count(ctx, end, sent, r); err != nil {
		return r, err
	}
	r.Seconds = time.Since(d.began).Seconds()
	return r, nil
}

// deliver waits until the hours before end are closed and every archive of them has arrived.
func (d *Demo) deliver(ctx context.Context, end time.Time, r *Result) error {
	from := d.began.UTC().Truncate(2 * d.o.Hour)
	ids := make([]string, 0, len(d.o.Input.Organizations))
	for _, org := range d.o.Input.Organizations {
		id := "link-" + org
		ids = append(ids, id)
		err := exporter.Submit(ctx, d.System.Client.JS, exporter.Request{
			ID: id, Organization: org, Trails: schema.Trails, From: from, To: end,
			MailTo: []string{"auditor@" + org + ".example"}, RequestedBy: "demo",
		})
		if err != nil {
			return err
		}
	}
	for t := from; t.Before(end); t = t.Add(2 * d.o.Hour) {
		for _, org := range d.o.Input.Organizations {
			ids = append(ids, exporter.ScheduledID(org, "sftp-"+org, t))
		}
	}
	for i, id := range ids {
		d.o.Say(fmt.Sprintf("waiting until hours of %s close and their archives arrive: %d of %d", d.o.Hour, i, len(ids)), 0, 0)
		x, err := d.System.States.Wait(ctx, id, func(exporter.Export) {})
		if err != nil {
			return err
		}
		if x.State != exporter.Done {
			return fmt.Errorf("export %s: %s: %s", id, x.State, x.Error)
		}
	}
	mails, err := d.smtpd.Wait(ctx, len(d.o.Input.Organizations))
	if err != nil {
		return fmt.Errorf("wait for the mails: %w", err)
	}
	r.Mails = len(mails)
	for _, m := range mails {
		d.o.Say("downloading by the link in the mail", 0, 0)
		path, err := d.download(ctx, m.Text)
		if err != nil {
			return err
		}
		r.Archives = append(r.Archives, path)
	}
	slices.Sort(r.Archives)
	return nil
}

// Close stops everything.
func (d *Demo) Close() error {
	var errs []error
	if d.System != nil {
		errs = append(errs, d.System.Close())
	}
	if d.smtpd != nil {
		errs = append(errs, d.smtpd.Close())
	}
	if d.sshd != nil {
		errs = append(errs, d.sshd.Close())
	}
	return errors.Join(errs...)
}
