package settings_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	*settings.Store
	key    string
	events []schema.Event
}

func open(t *testing.T) *fixture {
	t.Helper()
	c := brokertest.SetUp(t)
	f := &fixture{key: filepath.Join(t.TempDir(), settings.KeyFile)}
	f.Store = &settings.Store{
		Record: func(_ context.Context, e schema.Event) { f.events = append(f.events, e) }, Logger: slog.New(slog.DiscardHandler),
		Defaults: settings.Organization{ExportsPerDay: 3, RetentionDays: 730},
	}
	var err error
	if f.Box, err = settings.OpenBox(f.key); err != nil {
		t.Fatal(err)
	}
	if f.Store.Trails, err = c.JS.KeyValue(t.Context(), broker.BucketRecording); err != nil {
		t.Fatal(err)
	}
	if f.KV, err = c.JS.KeyValue(t.Context(), broker.BucketSettings); err != nil {
		t.Fatal(err)
	}
	return f
}

func server() exporter.Destination {
	return exporter.Destination{
		Name: "archive", Organization: "acme",
		SFTP: &sftp.Config{Host: "sftp.example.com", User: "kansa", Password: "open sesame", HostKeys: []string{"SHA256:" + strings.Repeat("A", 43)}, Path: "/in"},
	}
}

// Requirement I14: saved secrets are never shown again, and every change is an event with before and after.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	f := open(t)
	saved, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann"})
	if err != nil || saved.SFTP.Password != exporter.Hidden || saved.Meta.Revision == 0 {
		t.Fatalf("%+v, %v", saved, err)
	}
	d, err := f.Destination(t.Context(), "acme", "archive")
	if err != nil || d.SFTP.Password != "open sesame" {
		t.Errorf("who delivers gets %+v, %v", d.SFTP, err)
	}
	entry, err := f.KV.Get(t.Context(), "destination.acme.archive")
	if err != nil || strings.Contains(string(entry.Value()), "open sesame") {
		t.Errorf("it is kept as %s, %v", entry.Value(), err)
	}
	// An edit that leaves the secret hidden keeps it; one that sends it to another server does not.
	edit := saved.Destination
	edit.SFTP.Path = "/other"
	saved, err = f.SaveDestination(t.Context(), edit, settings.Change{By: "bob", Revision: saved.Meta.Revision})
	if err != nil {
		t.Fatal(err)
	}
	if d, err = f.Destination(t.Context(), "acme", "archive"); err != nil || d.SFTP.Password != "open sesame" || d.SFTP.Path != "/other" {
		t.Errorf("after an edit: %+v, %v", d.SFTP, err)
	}
	edit = saved.Destination
	edit.SFTP.Host = "evil.example.com"
	if _, err = f.SaveDestination(t.Context(), edit, settings.Change{By: "eve", Revision: saved.Meta.Revision}); err == nil || !strings.Contains(err.Error(), "give it again") {
		t.Errorf("a password went to another server: %v", err)
	}
	if err := f.RemoveDestination(t.Context(), "acme", "archive", settings.Change{By: "ann"}); err != nil {
		t.Fatal(err)
	}
	codes := make([]string, len(f.events))
	for i, e := range f.events {
		codes[i] = e.Event
		text, err := json.Marshal(e)
		if err != nil || strings.Contains(string(text), "sesame") {
			t.Errorf("event %s, %v", text, err)
		}
	}
	if want := []string{"destination.created", "destination.updated", "destination.deleted"}; !slices.Equal(codes, want) {
		t.Fatalf("events %q", codes)
	}
	update := f.events[1]
	if update.Actor.ID != "bob" || !strings.Contains(string(update.Before), `"/in"`) || !strings.Contains(string(update.After), `"/other"`) {
		t.Errorf("the change is told as %+v", update)
	}
}

// Of two who edit at once, one is told.
func TestTwoWhoEdit(t *testing.T) {
	t.Parallel()
	f := open(t)
	saved, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	c := settings.Change{By: "bob", Revision: saved.Meta.Revision}
	if _, err := f.SaveDestination(t.Context(), server(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := f.SaveDestination(t.Context(), server(), c); !errors.Is(err, settings.ErrChanged) {
		t.Errorf("got %v", err)
	}
	if _, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "bob"}); !errors.Is(err, settings.ErrChanged) {
		t.Errorf("one that is there already: %v", err)
	}
	o, err := f.Organization(t.Context(), "acme")
	if err != nil || o.ExportsPerDay != 3 {
		t.Fatalf("%+v, %v", o, err)
	}
	if _, err := f.SaveOrganization(t.Context(), *o, "ann"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.SaveOrganization(t.Context(), *o, "bob"); !errors.Is(err, settings.ErrChanged) {
		t.Errorf("got %v", err)
	}
}

// A secret that was copied to another destination, or that another key sealed, opens nothing.
func TestSealedSecretsStayWhereTheyBelong(t *testing.T) {
	t.Parallel()
	f := open(t)
	if _, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann"}); err != nil {
		t.Fatal(err)
	}
	entry, err := f.KV.Get(t.Context(), "destination.acme.archive")
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(string(entry.Value()), "sftp.example.com", "evil.example.com", 1)
	if _, err := f.KV.PutString(t.Context(), "destination.acme.archive", moved); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Destination(t.Context(), "acme", "archive"); !errors.Is(err, settings.ErrWrong) {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(f.key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := settings.OpenBox(f.key); !errors.Is(err, settings.ErrKey) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v", err)
	}
	other, err := settings.OpenBox(filepath.Join(t.TempDir(), settings.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("x", f.Box.Seal("x", "secret")); !errors.Is(err, settings.ErrWrong) {
		t.Errorf("got %v", err)
	}
}

// Requirement I16: a destination from before algorithms could be chosen goes on offering all of them.
func TestOldSettingsKeepWorking(t *testing.T) {
	t.Parallel()
	f := open(t)
	old, err := os.ReadFile("testdata/destination-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.KV.Put(t.Context(), "destination.acme.archive", old); err != nil {
		t.Fatal(err)
	}
	d, err := f.ShowDestination(t.Context(), "acme", "archive")
	if err != nil {
		t.Fatal(err)
	}
	known := sftp.KnownAlgorithms()
	if len(d.SFTP.KeyExchanges) != len(known.KeyExchanges) || len(d.SFTP.Ciphers) != len(known.Ciphers) || len(d.SFTP.MACs) != len(known.MACs) {
		t.Errorf("got %+v", d.SFTP)
	}
	if err := d.Destination.Normalize(); err != nil {
		t.Error(err)
	}
	if _, err := f.KV.PutString(t.Context(), "destination.acme.archive", strings.Replace(string(old), `"version":1`, `"version":9`, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ShowDestination(t.Context(), "acme", "archive"); err == nil || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("got %v", err)
	}
}

// What the configuration file says is made so, and changed only there.
func TestProvision(t *testing.T) {
	t.Parallel()
	f := open(t)
	file := []exporter.Destination{server()}
	for range 2 {
		if err := f.Provision(t.Context(), file); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.events) != 1 {
		t.Errorf("%d events", len(f.events))
	}
	d, err := f.ShowDestination(t.Context(), "acme", "archive")
	if err != nil || !d.Meta.Managed {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann", Revision: d.Meta.Revision}); err == nil || !strings.Contains(err.Error(), "configuration file") {
		t.Errorf("got %v", err)
	}
	if _, err := f.PauseDestination(t.Context(), "acme", "archive", "ann", true); err != nil {
		t.Error(err)
	}
	if err := f.Provision(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if d, err = f.ShowDestination(t.Context(), "acme", "archive"); err != nil || !d.Paused {
		t.Errorf("a start ended the pause: %+v, %v", d, err)
	}
	if err := f.Provision(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if all, err := f.Destinations(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
}

// One stored document that cannot be read hides no other, stops neither a start nor another organization, and can be
// removed or replaced.
func TestUnreadableSettingConcernsItselfAlone(t *testing.T) {
	t.Parallel()
	f := open(t)
	if err := f.Provision(t.Context(), []exporter.Destination{server()}); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{
		"damaged": `{"version":2,"value":`, "newer": `{"version":9,"value":{}}`, "fields": `{"version":2,"value":{"name":"fields","organization":"globex","colour":"red"}}`,
	}
	for name, text := range bad {
		for _, key := range []string{"destination.globex." + name, "organization." + name} {
			if _, err := f.KV.PutString(t.Context(), key, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := f.Store.Trails.PutString(t.Context(), "damaged", "nonsense"); err != nil {
		t.Fatal(err)
	}
	all, err := f.Destinations(t.Context(), "")
	if err != nil || len(all) != 4 {
		t.Fatalf("%d destinations, %v; want 4", len(all), err)
	}
	for _, d := range all {
		if _, isBad := bad[d.Name]; isBad != (d.Problem != "") || d.Organization == "" || d.Meta.Revision == 0 {
			t.Errorf("listed: %+v", d)
		}
	}
	if err := f.Provision(t.Context(), []exporter.Destination{server()}); err != nil {
		t.Errorf("a start: %v", err)
	}
	organizations, err := f.Organizations(t.Context())
	if err != nil || len(organizations) != 3 || organizations[0].Problem == "" {
		t.Errorf("organizations %+v, %v", organizations, err)
	}
	retentions, err := f.Retentions(t.Context())
	if err != nil || !retentions.Of("damaged").Held || retentions.Of("acme").Held {
		t.Errorf("what cannot be read is to be kept: %+v, %v", retentions, err)
	}
	if trails, err := f.ListTrails(t.Context()); err != nil || len(trails) != 1 || trails[0].Problem == "" {
		t.Errorf("trails %+v, %v", trails, err)
	}
	for name := range bad {
		d := server()
		d.Organization, d.Name = "globex", name
		if _, err := f.SaveDestination(t.Context(), d, settings.Change{By: "ann"}); !errors.Is(err, settings.ErrUnreadable) || !strings.Contains(err.Error(), "kansa destination remove") {
			t.Errorf("%s is replaced unseen: %v", name, err)
		}
		if err := f.RemoveDestination(t.Context(), "globex", name, settings.Change{By: "ann"}); err != nil {
			t.Errorf("%s cannot be removed: %v", name, err)
		}
		if _, err := f.SaveDestination(t.Context(), d, settings.Change{By: "ann"}); err != nil {
			t.Errorf("%s cannot be made again: %v", name, err)
		}
		o, err := f.ShowOrganization(t.Context(), name)
		if err != nil || o.Problem == "" {
			t.Fatalf("%+v, %v", o, err)
		}
		if _, err := f.SaveOrganization(t.Context(), *o, "ann"); err != nil {
			t.Errorf("the rules of %s cannot be replaced: %v", name, err)
		}
		if _, err := f.Organization(t.Context(), name); err != nil {
			t.Errorf("the rules of %s after that: %v", name, err)
		}
	}
	if _, err := f.KV.PutString(t.Context(), "destination.acme.archive", bad["damaged"]); err != nil {
		t.Fatal(err)
	}
	if err := f.Provision(t.Context(), []exporter.Destination{server()}); err != nil {
		t.Errorf("the configuration file does not replace what cannot be read: %v", err)
	}
	if d, err := f.Destination(t.Context(), "acme", "archive"); err != nil || d.SFTP.Password != "open sesame" {
		t.Errorf("%+v, %v", d, err)
	}
}

// What was removed can be made again under its name, by everyone who makes it: a removal leaves a marker with a revision.
func TestRemovedNamesComeBack(t *testing.T) {
	t.Parallel()
	f := open(t)
	for range 3 {
		d, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.SaveDestination(t.Context(), server(), settings.Change{By: "ann"}); !errors.Is(err, settings.ErrChanged) {
			t.Errorf("one that is there: %v", err)
		}
		if err := f.RemoveDestination(t.Context(), "acme", "archive", settings.Change{By: "ann", Revision: d.Meta.Revision}); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range [][]exporter.Destination{{server()}, nil, {server()}, nil} {
		if err := f.Provision(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		if all, err := f.Destinations(t.Context(), ""); err != nil || len(all) != len(file) {
			t.Errorf("the file has %d destinations, there are %d, %v", len(file), len(all), err)
		}
	}
	for range 2 {
		o, err := f.Organization(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.SaveOrganization(t.Context(), *o, "ann"); err != nil {
			t.Fatalf("rules of an organization: %v", err)
		}
		if err := f.KV.Delete(t.Context(), "organization.acme"); err != nil {
			t.Fatal(err)
		}
		_, revision, err := f.Applied(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetApplied(t.Context(), "acme", settings.Retention{Days: 1}, revision); err != nil {
			t.Fatalf("the retention that was applied: %v", err)
		}
		if err := f.KV.Purge(t.Context(), "applied.acme"); err != nil {
			t.Fatal(err)
		}
		s, err := f.ShowTrails(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.SwitchTrails(t.Context(), "acme", settings.SwitchTrails{Access: no(), Reason: "privacy"}, settings.Change{By: "ann", Revision: s.Revision}); err != nil {
			t.Fatalf("switches of trails: %v", err)
		}
		if err := f.Store.Trails.Delete(t.Context(), "acme"); err != nil {
			t.Fatal(err)
		}
	}
}
