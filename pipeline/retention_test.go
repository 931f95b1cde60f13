package pipeline_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/retention"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
)

// Requirements Q11, Z4: what is older than an organization keeps, or more, is removed: files, rows and messages, of that
// organization alone; a legal hold stops it; the store and its archives verify, and say what was removed.
func TestRetention(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := pipelinetest.Start(t, c)
	stream, err := s.Client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	var later time.Duration
	// What is told of it would be among what is counted.
	quiet := *s.Settings
	quiet.Record = func(context.Context, schema.Event) {}
	keeper := retention.Keeper{
		Bucket: s.Bucket, Settings: &quiet, Rows: s.Store, Sealer: s.Keys, Stream: stream, Hour: c.Rollup.Hour, Record: quiet.Record, Logger: pipelinetest.Logger(t),
		Now: func() time.Time { return time.Now().Add(later) },
	}
	count := func(org string) (rows, messages, files int) {
		var n uint64
		if err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events WHERE organization = '"+org+"'").Scan(&n); err != nil {
			t.Error(err)
		}
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(schema.EventSubject(org, schema.Activity)+".*"))
		if err != nil {
			t.Error(err)
		}
		found, err := filepath.Glob(filepath.Join(c.DataDir, "partitions", org, "activity", "*", "*", "*", "*"+schema.CSVSuffix))
		if err != nil {
			t.Error(err)
		}
		inSlots := uint64(0)
		for _, n := range info.State.Subjects {
			inSlots += n
		}
		return int(n), int(inSlots), len(found)
	}
	publish := func(org string, n int) {
		e := qlik(n)
		e.Organization, e.ID = org, uuid.New()
		publishAll(t, s, e)
	}
	sealed := func(org string, hours int) {
		t.Helper()
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			rows, messages, files := count(org)
			return files == hours, fmt.Sprint(rows, messages, files)
		})
	}
	for i := range 3 {
		publish("acme", i)
		publish("globex", i)
		// Both, or the next of one of them might fall into the hour of the one before.
		sealed("acme", i+1)
		sealed("globex", i+1)
	}
	set := func(days int, bytes int64, hold *settings.Hold) {
		o, err := quiet.Organization(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		o.RetentionDays, o.RetentionBytes, o.Hold = days, bytes, hold
		if _, err := quiet.SaveOrganization(t.Context(), *o, "ann"); err != nil {
			t.Fatal(err)
		}
	}
	once := func() {
		t.Helper()
		if err := keeper.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, wantRows, wantFiles int) {
		t.Helper()
		rows, messages, files := count("acme")
		if rows != wantRows || messages != wantRows || files != wantFiles {
			t.Errorf("%s: %d rows, %d messages, %d files; want %d, %d, %d", what, rows, messages, files, wantRows, wantRows, wantFiles)
		}
		if rows, messages, files := count("globex"); rows != 3 || messages != 3 || files != 3 {
			t.Errorf("%s: another organization has %d rows, %d messages, %d files", what, rows, messages, files)
		}
	}
	// A size for two files: the oldest goes.
	files, err := filepath.Glob(filepath.Join(c.DataDir, "partitions", "acme", "activity", "*", "*", "*", "*"+schema.CSVSuffix))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	var two int64
	for _, f := range files[1:] {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		two += info.Size()
	}
	set(1, two, &settings.Hold{Reason: "case 7"})
	once()
	check("held", 3, 3)
	var held uint64
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events WHERE organization = 'acme' AND expires_at > '2100-01-01'").Scan(&held)
		return err == nil && held == 3, held
	})
	expire := func(says string) {
		t.Helper()
		for _, table := range []string{"audit_events", "audit_event_counts"} {
			pipelinetest.Until(t, time.Minute, func() (bool, any) {
				var n uint64
				err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM "+table+" WHERE organization = 'acme' AND NOT (expires_at "+says+")").Scan(&n)
				return err == nil && n == 0, fmt.Sprintf("%d of %s do not expire %s, %v", n, table, says, err)
			})
		}
	}
	expire("> '2100-01-01'")
	set(2, 0, nil) // the running rollup does it, which looks what is to be removed every hour
	expire("BETWEEN now() + INTERVAL 47 HOUR AND now() + INTERVAL 49 HOUR")
	set(1, two, nil)
	once()
	check("more than is kept", 2, 2)
	later = 25 * time.Hour
	once()
	once() // again: there is nothing left to do
	if _, _, files := count("acme"); files != 0 {
		t.Errorf("%d files are older than a day", files)
	}
	if rows, _, _ := count("acme"); rows != 0 {
		t.Errorf("%d rows are older than a day", rows)
	}
	report, err := verify.Path(t.Context(), filepath.Join(c.DataDir, "partitions"), verify.Options{Key: s.Keys.Public()})
	if err != nil || !report.OK || !strings.Contains(strings.Join(report.Notes, "\n"), "3 partitions with 3 events") {
		t.Errorf("%+v, %v", report, err)
	}
	// An archive of what was removed says so.
	r := exporter.Request{
		ID: "x", Organization: "acme", Trails: []schema.Trail{schema.Activity}, From: time.Now().Add(-time.Hour), To: time.Now(), MailTo: []string{"a@example.com"},
	}
	plan, err := exporter.PlanArchive(t.Context(), s.Bucket, &r)
	if err != nil || plan.Rows != 0 {
		t.Fatalf("%+v, %v", plan, err)
	}
	file := filepath.Join(t.TempDir(), "x.zip")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	body := plan.NewReader(t.Context())
	if _, err := out.ReadFrom(body); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	if report, err = verify.Path(t.Context(), file, verify.Options{Key: s.Keys.Public()}); err != nil || !report.OK || len(report.Notes) == 0 {
		t.Errorf("%+v, %v", report, err)
	}
	// Without the statement, or with another's, it is a loss.
	statements, err := filepath.Glob(filepath.Join(c.DataDir, "partitions", "acme", "activity", "*", "*", "*", "*"+schema.RemovedSuffix))
	if err != nil || len(statements) != 3 {
		t.Fatal(statements, err)
	}
	text, err := os.ReadFile(statements[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(statements[1], text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(statements[2]); err != nil {
		t.Fatal(err)
	}
	if report, err = verify.Path(t.Context(), filepath.Join(c.DataDir, "partitions"), verify.Options{Key: s.Keys.Public()}); err != nil || len(report.Faults) != 2 {
		t.Errorf("%+v, %v", report.Faults, err)
	}
}
