package exporter

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/schema"
)

// Rows 1 and 2: what an organization's admin saves names no file, identity or endpoint of the server.
func TestTenantsCannotNameWhatIsTheServers(t *testing.T) {
	t.Parallel()
	server := func(change func(*sftp.Config)) Destination {
		c := sftp.Config{Host: "sftp.example.com", User: "u", Password: "p"}
		change(&c)
		return Destination{SFTP: &c}
	}
	bucket := func(address string) Destination {
		return Destination{Bucket: address, BucketKeyID: "AKIA", BucketSecret: "s"}
	}
	for name, d := range map[string]Destination{
		"password_file":    server(func(c *sftp.Config) { c.Password, c.PasswordFile = "", "/var/lib/kansa/seal.key" }),
		"private_key_file": server(func(c *sftp.Config) { c.PrivateKeyFile = "/var/lib/kansa/seal.key" }),
		"file bucket":      bucket("file:///var/lib/kansa/partitions?prefix=other/"),
		"memory bucket":    bucket("mem://"),
		"endpoint":         bucket("s3://archives?region=eu-central-1&endpoint=http://attacker.example.com"),
		"hostname":         bucket("s3://archives?region=eu-central-1&hostname_immutable=true"),
		"profile":          bucket("s3://archives?region=eu-central-1&profile=admin"),
		"anonymous":        bucket("s3://archives?region=eu-central-1&anonymous=true"),
		"prefix":           bucket("s3://archives?region=eu-central-1&prefix=other/"),
		"region with host": bucket("s3://archives?region=x@attacker.example.com"),
		"region missing":   bucket("s3://archives"),
		"upper case":       bucket("S3://archives?region=eu-central-1&endpoint=http://a"),
		"fragment":         bucket("s3://archives?region=eu-central-1#x"),
		"other cloud":      bucket("gs://archives"),
		"own identity":     {Bucket: "s3://archives?region=eu-central-1"},
	} {
		if err := d.CheckTenant(nil); !errors.Is(err, schema.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		d.FromFile = true
		if err := d.CheckTenant(nil); err != nil {
			t.Errorf("%s in the configuration file: %v", name, err)
		}
	}
	for _, d := range []Destination{server(func(*sftp.Config) {}), bucket("s3://archives?region=eu-central-1"), bucket("s3://my.archives?region=us-gov-west-1"), {Mail: []string{"a@example.com"}}} {
		if err := d.CheckTenant(new(reach.Policy)); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
	mailOnly := reach.Policy{Kinds: []string{reach.Mail}}
	for _, d := range []Destination{server(func(*sftp.Config) {}), bucket("s3://archives?region=eu-central-1")} {
		if err := d.CheckTenant(&mailOnly); !errors.Is(err, reach.ErrRefused) {
			t.Errorf("%s: %v", d.Kind(), err)
		}
	}
}

// A destination that was saved before the rule is refused when it is used; and what it may connect to is looked at then.
func TestDestinationsAreCheckedWhenTheyAreUsed(t *testing.T) {
	t.Parallel()
	x := New(nil, States{}, Links{}, nil, nil, Config{Reach: new(reach.Policy)})
	if _, err := x.Test(t.Context(), Destination{SFTP: &sftp.Config{Host: "127.0.0.1", User: "u", PasswordFile: "/etc/passwd"}}); !errors.Is(err, schema.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	report, err := x.Test(t.Context(), Destination{SFTP: &sftp.Config{Host: "localhost", Port: 1, User: "u", Password: "p"}})
	if err != nil || report.OK || !strings.Contains(report.Error, reach.ErrRefused.Error()) || strings.Contains(report.Error, "127.0.0.1") {
		t.Errorf("%+v, %v", report, err)
	}
	x = New(nil, States{}, Links{}, nil, nil, Config{Reach: &reach.Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	report, err = x.Test(t.Context(), Destination{SFTP: &sftp.Config{Host: "127.0.0.1", Port: 1, User: "u", Password: "p"}})
	if err != nil || report.OK || !strings.Contains(report.Error, "nothing listens") {
		t.Errorf("%+v, %v", report, err)
	}
}

// Row 3: no cron ends the process, and none is taken that never comes.
func TestCronsThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"TZ=0", "TZ=0 0 0 0 * * *", "CRON_TZ=UTC 0 0 0 * * *", "", " ", "* * * * *", "0 0 0 30 2 *", "0 0 0 31 4,6,9,11 *", "@every 1ns", "@every", "@", "0 0 0 * * * *", "0 0 0 ? ? 99", "0 0 0 * * MON#9", strings.Repeat("9", 1000)} {
		s := Schedule{Cron: text, Period: time.Hour}
		if _, err := s.Next(time.Now()); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	for _, text := range []string{"0 15 1 * * *", "@daily", "*/5 * * * * *", "0 0 0 29 2 *", "0 0 9 ? JAN-MAR mon,fri"} {
		s := Schedule{Cron: text}
		if next, err := s.Next(time.Now()); err != nil || next.IsZero() {
			t.Errorf("%q: %v, %v", text, next, err)
		}
	}
}

// A schedule whose fields contradict each other is refused where it is given.
func TestSchedulesThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Schedule{
		"every with a zone":       {Every: 6 * time.Hour, TimeZone: "Asia/Tokyo"},
		"every below a second":    {Every: 500 * time.Millisecond},
		"every with a fraction":   {Every: 1500 * time.Millisecond},
		"every and cron":          {Every: time.Hour, Cron: "0 15 1 * * *"},
		"@every":                  {Cron: "@every 6h"},
		"zone in the cron":        {Cron: "CRON_TZ=Asia/Tokyo 0 15 1 * * *"},
		"30 February":             {Cron: "0 0 0 30 2 *"},
		"31st of short months":    {Cron: "0 0 0 31 4,6,9,11 *"},
		"the machine's zone":      {TimeZone: "Local"},
		"period with a fraction":  {Period: 1500 * time.Millisecond},
		"period that is negative": {Period: -time.Hour},
	} {
		refused := 0
		s.normalize(func(_, _, _, _ string) { refused++ })
		if refused == 0 {
			t.Errorf("%s is taken: %+v", name, s)
		}
	}
}

func FuzzCron(f *testing.F) {
	for _, text := range []string{"TZ=0", "0 15 1 * * *", "@every 1s", "*/0 * * * * *", "1-0 * * * * *", "0 0 0 ? * 7", "99999999999999999999 * * * * *", "0/1/2 * * * * *"} {
		f.Add(text, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, text, zone string) {
		s := Schedule{Cron: text, TimeZone: zone, Period: time.Hour}
		from := time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC)
		next, err := s.Next(from)
		if err == nil && (next.IsZero() || !next.After(from)) {
			t.Errorf("%q in %q is due at %v", text, zone, next)
		}
		s.normalize(func(_, _, _, _ string) {})
	})
}
