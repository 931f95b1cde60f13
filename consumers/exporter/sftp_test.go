//go:build linux

package exporter_test

import (
	"archive/zip"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// localSFTP is the demo's server on a folder.
func localSFTP(t *testing.T, dir string) *sftp.Config {
	t.Helper()
	s, err := sshd.Start(context.Background(), sshd.Options{Dir: dir, User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	host, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return &sftp.Config{Host: host, Port: n, User: "u", Password: "p", Path: "/", HostKeys: []string{s.HostKeyFingerprint()}}
}

// Requirements I2, I3, I4 against real OpenSSH: what can't succeed is given up at once with the reason, what
// may succeed later is tried again, and no half file is left either way.
func TestDeliveryToOpenSSH(t *testing.T) {
	t.Parallel()
	server := sftptest.StartOpenSSH(t)
	f := newFixture(t, 24)
	good := sftp.Config{Host: server.Host, Port: server.Port, User: server.User, Password: server.Password, Path: server.Dir, HostKeys: []string{server.Fingerprint}}
	small := server.SmallDisk(t, 1<<20)
	filler := filepath.Join(small, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20-4096), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		change func(*sftp.Config)
		state  exporter.State
		says   string
	}{
		"by-password": {func(*sftp.Config) {}, exporter.Done, ""},
		"by-key": {func(c *sftp.Config) {
			c.Password, c.PrivateKey, c.Path = "", server.KeyPEM, server.Mkdir(t, "by-key", 0o755)
		}, exporter.Done, ""},
		"wrong-password":   {func(c *sftp.Config) { c.Password = "wrong" }, exporter.Failed, "password"},
		"unknown-host-key": {func(c *sftp.Config) { c.HostKeys = nil }, exporter.Failed, server.Fingerprint},
		"changed-host-key": {func(c *sftp.Config) {
			c.HostKeys = []string{"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}
		}, exporter.Failed, "key"},
		"missing-path": {func(c *sftp.Config) { c.Path = server.Dir + "/none" }, exporter.Failed, "/none"},
		"read-only":    {func(c *sftp.Config) { c.Path = server.Mkdir(t, "read-only", 0o555) }, exporter.Failed, "read-only"},
		"full-disk":    {func(c *sftp.Config) { c.Path = small }, exporter.Retrying, "disk full"},
	}
	var destinations []exporter.Destination
	paths := map[string]string{}
	for name, c := range cases {
		cfg := good
		c.change(&cfg)
		paths[name] = cfg.Path
		destinations = append(destinations, exporter.Destination{Name: name, Organization: "acme", Trails: schema.Trails, SFTP: &cfg})
	}
	f.run(t, destinations...)
	for name := range cases {
		r := day(name)
		r.MailTo, r.Destination = nil, name
		f.submit(t, r)
	}
	for name, c := range cases {
		e := f.until(t, name, is(c.state))
		if !strings.Contains(e.Error, c.says) || strings.Contains(e.Error, server.Password) {
			t.Errorf("%s: %q does not say %q", name, e.Error, c.says)
		}
		if c.state == exporter.Failed && e.Attempts != 1 {
			t.Errorf("%s: tried %d times", name, e.Attempts)
		}
	}
	if names := list(t, small); len(names) != 1 {
		t.Errorf("on the full disk lie %q", names)
	}
	// There is room again: the delivery goes through by itself.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	e := f.until(t, "full-disk", is(exporter.Done))
	for name, dir := range map[string]string{"by-password": server.Dir, "by-key": paths["by-key"], "full-disk": small} {
		names := list(t, dir)
		if len(names) != 1 || !strings.HasSuffix(names[0], ".zip") {
			t.Errorf("%s: the folder has %q", name, names)
			continue
		}
		z, err := zip.OpenReader(filepath.Join(dir, names[0]))
		if err != nil {
			t.Fatal(err)
		}
		if len(z.File) != e.Files {
			t.Errorf("%s: %d files, want %d", name, len(z.File), e.Files)
		}
		_ = z.Close()
	}
	if names := list(t, paths["read-only"]); len(names) != 0 {
		t.Errorf("in the read-only folder lie %q", names)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// A failure that a person has to correct does not end a schedule: it is retried, those in notify learn of it, and
// once it is corrected the same archive is delivered.
func TestScheduleSurvivesPermanentFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		destination func(f *fixture) exporter.Destination
		correct     func(f *fixture, d *exporter.Destination)
		says        string
	}{
		"wrong password": {
			func(*fixture) exporter.Destination {
				server := localSFTP(t, t.TempDir())
				server.Password = "wrong"
				return exporter.Destination{SFTP: server}
			},
			func(_ *fixture, d *exporter.Destination) { d.SFTP.Password = "p" },
			"password",
		},
		"recipient refused": {
			func(f *fixture) exporter.Destination {
				f.mails.refuse("auditor@acme.example", &mail.Error{Class: mail.ErrRecipient, Code: 550, Err: errors.New("550 no such user")})
				return exporter.Destination{Mail: []string{"auditor@acme.example"}}
			},
			func(f *fixture, _ *exporter.Destination) { f.mails.refuse("", nil) },
			"550",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 24)
			f.correctEvery = 20 * time.Millisecond
			d := c.destination(f)
			d.Name, d.Organization, d.Schedule, d.Notify = "nightly", "acme", &exporter.Schedule{Since: start}, []string{"ops@acme.example"}
			f.run(t, d)
			f.tick(t, "nightly")
			id := exporter.ScheduledID("acme", "nightly", start)
			e := f.until(t, id, func(e exporter.Export) bool { return e.State == exporter.Retrying && e.Attempts >= 3 })
			if !strings.Contains(e.Error, c.says) {
				t.Errorf("the state says %q, want it to contain %q", e.Error, c.says)
			}
			f.mu.Lock()
			f.now = f.now.Add(time.Hour)
			f.mu.Unlock()
			await.State(t, await.Limit, "the alert to those in notify", func() (bool, any) { return f.mailed() > 0, f.mailed() })
			kept, err := f.settings.Destination(t.Context(), "acme", "nightly")
			if err != nil {
				t.Fatal(err)
			}
			shown, err := f.settings.ShowDestination(t.Context(), "acme", "nightly")
			if err != nil {
				t.Fatal(err)
			}
			c.correct(f, &kept)
			if _, err := f.settings.SaveDestination(t.Context(), kept, settings.Change{By: "test", Revision: shown.Meta.Revision}); err != nil {
				t.Fatal(err)
			}
			f.until(t, id, is(exporter.Done))
		})
	}
}

// A scheduled export ends with its destination, and does not stand in the way of another destination of that name.
func TestRemovedDestinationEndsItsExports(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.correctEvery = 20 * time.Millisecond
	server := localSFTP(t, t.TempDir())
	server.Password = "wrong"
	d := exporter.Destination{Name: "nightly", Organization: "acme", SFTP: server, Schedule: &exporter.Schedule{Since: start}}
	f.run(t, d)
	f.tick(t, "nightly")
	id := exporter.ScheduledID("acme", "nightly", start)
	f.until(t, id, is(exporter.Retrying))
	if err := f.settings.RemoveDestination(t.Context(), "acme", "nightly", settings.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	f.until(t, id, is(exporter.Failed))
	f.tick(t, "nightly")
	await.State(t, await.Limit, "the destination's progress to be forgotten", func() (bool, any) {
		h, err := f.states.Health(t.Context(), "acme", "nightly")
		return err == nil && h.Next.IsZero() && h.FailingSince.IsZero(), h
	})
	server.Password = "p"
	if _, err := f.settings.SaveDestination(t.Context(), d, settings.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	f.tick(t, "nightly")
	f.until(t, id, is(exporter.Done))
}
