package exporter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// tick has the exporter look at a schedule.
func (f *fixture) tick(t *testing.T, name string) {
	t.Helper()
	f.exporter.ScheduleChanged("acme", name)
}

// Requirement B3: a paused destination gets nothing; resumed, it gets all, in order. One that fails for long has
// somebody mailed, once; when it works again, once more.
func TestDeliveryHealth(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24*4)
	dir := filepath.Join(t.TempDir(), "archives")
	d := exporter.Destination{
		Name: "store", Organization: "acme", FromFile: true, Bucket: "file://" + filepath.ToSlash(dir), Schedule: &exporter.Schedule{Since: start},
		Notify: []string{"ops@example.com"}, Paused: true,
	}
	f.run(t, d)
	first := exporter.ScheduledID("acme", "store", start)
	f.tick(t, "store") // which requests nothing
	f.submit(t, exporter.Request{
		ID: first, Organization: "acme", Trails: schema.Trails, From: start, To: start.AddDate(0, 0, 1), Destination: "store", Scheduled: true,
	})
	if e := f.until(t, first, is(exporter.Waiting)); !strings.Contains(e.Error, "paused") {
		t.Errorf("got %+v", e)
	}
	if _, err := f.settings.PauseDestination(t.Context(), "acme", "store", "test", false); err != nil {
		t.Fatal(err)
	}
	f.tick(t, "store")
	f.until(t, first, is(exporter.Retrying)) // there is no such directory
	var h exporter.Health
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // it is kept a moment later
		var err error
		if h, err = f.states.Health(t.Context(), "acme", "store"); err != nil {
			t.Fatal(err)
		}
		return h.Failures > 0, h
	})
	if h.LastError == "" || h.Alerted || !h.Next.Equal(start) {
		t.Errorf("health %+v", h)
	}
	// The next attempt is a minute away, in which nothing is to be learned: it is brought about.
	f.mu.Lock()
	f.now = f.now.Add(time.Hour)
	f.mu.Unlock()
	e, _, err := f.states.Get(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	again := e.Request
	await.State(t, await.Limit, "the mail of the delivery", func() (bool, any) {
		if f.mailed() > 0 {
			return true, nil
		}
		f.handle(t, again)
		return false, "no mail"
	})
	f.handle(t, again)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.handle(t, again)
	for i := range 4 {
		f.until(t, exporter.ScheduledID("acme", "store", start.AddDate(0, 0, i)), is(exporter.Done))
	}
	f.mails.mu.Lock()
	subjects := make([]string, len(f.mails.sent))
	for i, m := range f.mails.sent {
		subjects[i] = m.Subject
	}
	f.mails.mu.Unlock()
	if want := []string{"Audit archives do not reach store of acme", "Audit archives reach store of acme again"}; !cmp.Equal(subjects, want) {
		t.Errorf("mails %q", subjects)
	}
	if h, err = f.states.Health(t.Context(), "acme", "store"); err != nil || h.Failures != 0 || !h.FailingSince.IsZero() || h.LastFile == "" {
		t.Errorf("health %+v, %v", h, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.zip"))
	if err != nil || len(files) != 4 {
		t.Errorf("files %q, %v", files, err)
	}
	if codes := f.codes(); !slices.Contains(codes, "export.failed") || !slices.Contains(codes, "export.delivered") || !slices.Contains(codes, "destination.updated") {
		t.Errorf("own trail has %q", codes)
	}
}

func (f *fixture) mailed() int {
	f.mails.mu.Lock()
	defer f.mails.mu.Unlock()
	return len(f.mails.sent)
}

// handle has the exporter see a request at once, besides the one on the stream.
func (f *fixture) handle(t *testing.T, r exporter.Request) {
	t.Helper()
	body, err := exporter.EncodeRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	// That it fails is what is tried.
	_ = f.exporter.Handle(t.Context(), message{subject: "audit.exports.acme", data: body})
}

// Requirement I1: exports of a trail that is off are refused, scheduled ones wait.
func TestExportsOff(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.run(t, exporter.Destination{
		Name: "store", Organization: "acme", FromFile: true, Bucket: "file://" + filepath.ToSlash(t.TempDir()), Schedule: &exporter.Schedule{Since: start},
	})
	o, err := f.settings.Organization(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	o.ExportsOff = []schema.Trail{schema.Access}
	if o, err = f.settings.SaveOrganization(t.Context(), *o, "test"); err != nil {
		t.Fatal(err)
	}
	f.tick(t, "store")
	id := exporter.ScheduledID("acme", "store", start)
	if e := f.until(t, id, is(exporter.Waiting)); !strings.Contains(e.Error, "switched off") {
		t.Errorf("got %+v", e)
	}
	if _, err := f.intake().Ask(t.Context(), anonymous(day(""))); !errors.Is(err, exporter.ErrOff) {
		t.Errorf("got %v", err)
	}
	o.ExportsOff = nil
	if _, err := f.settings.SaveOrganization(t.Context(), *o, "test"); err != nil {
		t.Fatal(err)
	}
	f.until(t, id, is(exporter.Done))
}

func (f *fixture) intake() *exporter.Intake {
	return &exporter.Intake{
		JS: f.client.JS, Bucket: f.bucket, States: f.states, Settings: f.settings, Closed: f.closedUntil, Linger: 7 * 24 * time.Hour, Record: f.record, Now: f.clock,
		Began: func(_ context.Context, organization string, _ []schema.Trail) (time.Time, error) {
			if organization == "acme" {
				return start, nil
			}
			return time.Time{}, nil
		},
	}
}

func anonymous(r exporter.Request) exporter.Request {
	r.ID = ""
	return r
}

// Requirement Z8: three a day for each trail; the same again is the same archive and costs nothing; what was
// revoked is not given again. Requirement Z5: an estimate, and the range that is meant where none is given.
func TestIntake(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.run(t)
	in := f.intake()
	first, err := in.Ask(t.Context(), anonymous(day("")))
	if err != nil || first.Again || first.Left[schema.Activity] != 2 {
		t.Fatalf("%+v, %v", first, err)
	}
	e := f.until(t, first.Export.ID, is(exporter.Done))
	same, err := in.Ask(t.Context(), anonymous(day("")))
	if err != nil || !same.Again || same.Export.ID != first.Export.ID || same.Left[schema.Activity] != 2 {
		t.Errorf("%+v, %v", same, err)
	}
	estimate, err := in.Estimate(t.Context(), anonymous(day("")))
	if err != nil || estimate.Rows != e.Rows || estimate.Files != e.Files {
		t.Errorf("%+v, %v; the archive has %+v", estimate, err, e)
	}
	if _, err := in.Revoke(t.Context(), first.Export.ID, "test"); err != nil {
		t.Fatal(err)
	}
	again, err := in.Ask(t.Context(), anonymous(day("")))
	if err != nil || again.Again || again.Left[schema.Access] != 1 {
		t.Errorf("after it was revoked: %+v, %v", again, err)
	}
	r := anonymous(day(""))
	r.Trails = []schema.Trail{schema.Access}
	for range 3 {
		r.To = r.To.Add(-time.Hour)
		_, err = in.Ask(t.Context(), r)
	}
	if !errors.Is(err, exporter.ErrQuota) || !strings.Contains(err.Error(), "3 of 3 access exports used today") {
		t.Errorf("a fourth export: %v", err)
	}
	f.mu.Lock()
	f.now = f.now.Add(24 * time.Hour)
	f.mu.Unlock()
	if _, err := in.Ask(t.Context(), r); err != nil {
		t.Errorf("the day after: %v", err)
	}
	open, err := in.Ask(t.Context(), exporter.Request{Organization: "acme", MailTo: []string{"a@example.com"}})
	if err != nil || !open.Export.To.Equal(start.Add(24*time.Hour)) || !open.Export.From.Equal(start) || len(open.Export.Trails) != 2 {
		t.Errorf("without a range: %+v, %v", open, err)
	}
	if e, err := in.Estimate(t.Context(), exporter.Request{Organization: "globex"}); err != nil || !e.From.Equal(e.To.AddDate(-2, 0, 0)) {
		t.Errorf("where nothing was recorded: %+v, %v", e, err)
	}
	if _, err := in.Ask(t.Context(), exporter.Request{Organization: "acme", MailTo: []string{"a@example.com"}, From: start, To: f.clock().Add(time.Hour)}); err == nil ||
		!strings.Contains(err.Error(), "is in the future") {
		t.Errorf("a range that is not over: %v", err)
	}
	if _, err := in.Ask(t.Context(), exporter.Request{Organization: "acme", Destination: "none"}); !errors.Is(err, exporter.ErrNoDestination) {
		t.Errorf("an unknown destination: %v", err)
	}
	if _, err := in.Revoke(t.Context(), "none", "test"); !errors.Is(err, exporter.ErrNoExport) {
		t.Errorf("got %v", err)
	}
}

// Requirement I15: every fault at once, each with field, value and remedy.
func TestDestinationFaults(t *testing.T) {
	t.Parallel()
	d := exporter.Destination{
		Name: "a b", Organization: "acme/x", Trails: []schema.Trail{"audit"}, Mail: []string{"nobody"}, Bucket: "archives",
		Schedule: &exporter.Schedule{Cron: "15 1 * * *", TimeZone: "Tokyo", Period: time.Millisecond}, Notify: []string{"@"},
	}
	err := d.Normalize()
	for _, want := range []string{
		`name "a b" is no name`, `"acme/x"`, `"audit"`, `mail[0] "nobody"`, `bucket "archives"`, `notify[0] "@"`, `schedule.cron "15 1 * * *"`, `schedule.time_zone "Tokyo"`,
		`schedule.period "1ms"`, "2 of them are given",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in:\n%v", want, err)
		}
	}
	s := exporter.Schedule{Cron: "0 15 1 * * *", TimeZone: "Asia/Tokyo"}
	next, err := s.Next(start)
	if want := start.Add(16*time.Hour + 15*time.Minute); err != nil || !next.Equal(want) {
		t.Errorf("next %s, %v; want %s", next, err, want)
	}
}

var _ exporter.Settings = (*settings.Store)(nil)

// A schedule is run by the exporter's clock: not before it is due, on the day of a clock change too; where its last
// hour is not sealed yet, as soon as it is, and not a period later.
func TestScheduleWaitsForItsTimeAndItsLastHour(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	from := time.Date(2027, 3, 27, 0, 0, 0, 0, time.UTC)
	due := from.AddDate(0, 0, 1).Add(time.Hour) // 01:15 does not exist in London on that day
	set := func(now, closed time.Time) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now, f.closed = now, closed
	}
	set(due.Add(-time.Second), from.AddDate(0, 0, 1))
	f.run(t, exporter.Destination{
		Name: "nightly", Organization: "acme", FromFile: true, Bucket: "file://" + filepath.ToSlash(t.TempDir()),
		Schedule: &exporter.Schedule{Cron: "0 15 1 * * *", TimeZone: "Europe/London", Since: from},
	})
	f.tick(t, "nightly")
	await.State(t, await.Limit, "the first look at the schedule", func() (bool, any) {
		h, err := f.states.Health(t.Context(), "acme", "nightly")
		return err == nil && h.Next.Equal(from), h
	})
	set(due, from.AddDate(0, 0, 1).Add(-time.Hour)) // the last hour is not sealed
	f.tick(t, "nightly")
	set(due.Add(2*time.Second), from.AddDate(0, 0, 1))
	e := f.until(t, exporter.ScheduledID("acme", "nightly", from), is(exporter.Done))
	if e.Created.Before(due) {
		t.Errorf("the archive was requested at %s, before it was due at %s", e.Created, due)
	}
	var h exporter.Health
	await.State(t, await.Limit, "the schedule to go on", func() (bool, any) {
		var err error
		h, err = f.states.Health(t.Context(), "acme", "nightly")
		return err == nil && h.Next.Equal(from.AddDate(0, 0, 1)), h
	})
	s := exporter.Schedule{Cron: "0 15 1 * * *", TimeZone: "Europe/London", Period: 24 * time.Hour}
	if next, err := s.NextRun(h.Next, f.clock()); err != nil || !next.Equal(from.AddDate(0, 0, 2).Add(15*time.Minute)) {
		t.Errorf("the next run is %s, %v", next, err)
	}
}

// After an outage of a server, the first delivery that succeeds has the others attempted that wait out their pauses.
func TestDeliveryWakesOthersOfItsServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	dir := filepath.Join(t.TempDir(), "archives")
	bucket := "file://" + filepath.ToSlash(dir)
	f.backoff, f.correctEvery = time.Hour, time.Hour // no attempt comes by itself
	f.run(t,
		exporter.Destination{Name: "one", Organization: "acme", FromFile: true, Bucket: bucket},
		exporter.Destination{Name: "two", Organization: "acme", FromFile: true, Bucket: bucket},
	)
	f.mails.refuse("", errors.New("connection refused"))
	request := func(id, destination string) exporter.Request {
		r := day(id)
		if destination != "" {
			r.Destination, r.MailTo, r.Scheduled = destination, nil, true
		}
		return r
	}
	waiting := []exporter.Request{request("w1", "one"), request("w2", "two"), request("w3", "one"), request("other", "")}
	for _, r := range waiting {
		f.submit(t, r)
		f.until(t, r.ID, is(exporter.Retrying))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	await.State(t, await.Limit, "the exports to be noted as waiting", func() (bool, any) {
		keys, err := f.states.KV.Keys(t.Context())
		n := 0
		for _, key := range keys {
			if strings.HasPrefix(key, "down.") {
				n++
			}
		}
		return err == nil && n == len(waiting), keys
	})
	f.submit(t, request("first", "two"))
	for _, id := range []string{"first", "w1", "w2", "w3"} {
		f.until(t, id, is(exporter.Done))
	}
	if e, _, err := f.states.Get(t.Context(), "other"); err != nil || e.State != exporter.Retrying || e.Attempts != 1 {
		t.Errorf("an export for another server: %+v, %v", e, err)
	}
}

// A stored schedule that cannot run, because it names no time or cannot be read, is skipped and reported; those of other
// destinations run, and one whose destination is removed is forgotten.
func TestBadScheduleStopsNoOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	good := exporter.Destination{
		Name: "nightly", Organization: "acme", FromFile: true, Bucket: "file://" + filepath.ToSlash(t.TempDir()), Schedule: &exporter.Schedule{Since: start},
	}
	f.run(t, good)
	for name, value := range map[string]string{
		"never":   `{"name":"never","organization":"acme","trails":["activity"],"bucket":"mem://","schedule":{"cron":"0 0 0 30 2 *","period":"24h0m0s"}}`,
		"nowhere": `{"name":"nowhere","organization":"acme","trails":["activity"],"bucket":"mem://","schedule":{"cron":"0 15 1 * * *","time_zone":"Mars","period":"24h0m0s"}}`,
		"damaged": `{"name":`,
	} {
		document := `{"version":2,"value":` + value + `}`
		if _, err := f.settings.KV.PutString(t.Context(), "destination.acme."+name, document); err != nil {
			t.Fatal(err)
		}
		f.tick(t, name)
	}
	await.State(t, await.Limit, "three schedules to be skipped", func() (bool, any) {
		skipped := f.exporter.SkippedSchedules()
		return len(skipped) == 3, skipped
	})
	f.tick(t, "nightly")
	f.until(t, exporter.ScheduledID("acme", "nightly", start), is(exporter.Done))
	for _, want := range []string{"acme/damaged: ", "acme/never: ", "acme/nowhere: "} {
		if text := strings.Join(f.exporter.SkippedSchedules(), "\n"); !strings.Contains(text, want) {
			t.Errorf("%q does not name %s", text, want)
		}
	}
	for _, name := range []string{"never", "nowhere", "damaged"} {
		if err := f.settings.RemoveDestination(t.Context(), "acme", name, settings.Change{By: "ann"}); err != nil {
			t.Error(err)
		}
		f.tick(t, name)
	}
	await.State(t, await.Limit, "the schedules to be forgotten", func() (bool, any) {
		skipped := f.exporter.SkippedSchedules()
		return len(skipped) == 0, skipped
	})
}

// Exports that failed do not use the day up. Those under way do, so that requests at the same moment cannot exceed it.
func TestOnlyDeliveredExportsUseUpTheDay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.run(t)
	f.mails.refuse("", &mail.Error{Class: mail.ErrRecipient, Code: 550, Err: errors.New("550 no such user")})
	in := f.intake()
	ask := func(hours int) (*exporter.Asked, error) {
		r := anonymous(day(""))
		r.To = r.To.Add(-time.Duration(hours) * time.Hour)
		return in.Ask(t.Context(), r)
	}
	for i := range 5 {
		asked, err := ask(i)
		if err != nil {
			t.Fatalf("request %d, after %d that failed: %v", i, i, err)
		}
		if asked.Left[schema.Activity] != 2 {
			t.Errorf("request %d leaves %d, want 2", i, asked.Left[schema.Activity])
		}
		f.until(t, asked.Export.ID, is(exporter.Failed))
	}
	f.mails.refuse("", nil)
	f.mu.Lock()
	f.closed = start // what is requested now waits
	f.mu.Unlock()
	const atOnce = 8
	errs := make(chan error, atOnce)
	for i := range atOnce {
		go func() {
			_, err := ask(5 + i)
			errs <- err
		}()
	}
	taken := 0
	for range atOnce {
		switch err := await.Receive(t, await.Limit, "a request to be answered", errs); {
		case err == nil:
			taken++
		case !errors.Is(err, exporter.ErrQuota):
			t.Error(err)
		}
	}
	if taken != 3 {
		t.Errorf("%d of %d requests at once were taken, want 3", taken, atOnce)
	}
	f.mu.Lock()
	f.closed = start.AddDate(0, 0, 1)
	f.mu.Unlock()
	all, err := f.states.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	delivered := 0
	for _, e := range all {
		if e.State != exporter.Failed {
			f.until(t, e.ID, is(exporter.Done))
			delivered++
		}
	}
	if _, err := ask(20); delivered != 3 || !errors.Is(err, exporter.ErrQuota) {
		t.Errorf("after %d deliveries: %v", delivered, err)
	}
}

// retain removes the file of an hour as the retention does.
func (f *fixture) retain(t *testing.T, trail schema.Trail, hour int) {
	t.Helper()
	p := schema.Partition{Organization: "acme", Trail: trail, Hour: start.Add(time.Duration(hour) * time.Hour), Length: time.Hour}
	manifest, err := f.bucket.ReadAll(t.Context(), p.ManifestKey())
	if err != nil {
		t.Fatal(err)
	}
	m, err := seal.Parse(manifest)
	if err != nil {
		t.Fatal(err)
	}
	statement, err := f.keys.SealRemoval(t.Context(), seal.NewRemoval(m, f.clock(), "retention of 500 bytes"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.bucket.WriteAll(t.Context(), p.RemovedKey(), statement, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.bucket.Delete(t.Context(), p.CSVKey()); err != nil {
		t.Fatal(err)
	}
}

// A link gives the archive that was mailed, after a rotation of keys too, or says why that is gone: it never gives
// another one, and the same request makes a new archive then.
func TestLinkKeepsItsPromiseOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 24)
	f.run(t)
	in := f.intake()
	plain, rendered := anonymous(day("")), anonymous(day(""))
	rendered.Format = codec.FormatCEF
	var all []exporter.Export
	for _, r := range []exporter.Request{plain, rendered} {
		asked, err := in.Ask(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		e := f.until(t, asked.Export.ID, is(exporter.Done))
		if len(e.Oldest) != 2 || e.ETag == "" {
			t.Errorf("what the link promises is not kept: %+v", e.Promise)
		}
		all = append(all, e)
	}
	if _, err := keys.Rotate(t.Context(), f.keyDir, f.bucket, f.clock()); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		plan, err := exporter.PlanLink(t.Context(), f.bucket, &all[i])
		if err != nil || plan.Size() != all[i].Bytes {
			t.Errorf("%s after a rotation: %v", all[i].File, err)
		}
		if err := exporter.Available(t.Context(), f.bucket, &all[i]); err != nil {
			t.Error(err)
		}
	}
	var err error
	if f.keys, err = keys.Open(t.Context(), f.keyDir, f.bucket); err != nil {
		t.Fatal(err)
	}
	oldest := 0
	for !strings.HasSuffix(all[0].Oldest[0], fmt.Sprintf("/%02d.csv.gz", oldest)) {
		oldest++
	}
	f.retain(t, schema.Access, oldest)
	for i := range all {
		var gone *exporter.Gone
		if err := exporter.Available(t.Context(), f.bucket, &all[i]); !errors.As(err, &gone) || !strings.Contains(gone.Reason, "retention of 500 bytes") {
			t.Errorf("%s after its hour was removed: %v", all[i].File, err)
		}
		if _, err := exporter.PlanLink(t.Context(), f.bucket, &all[i]); !errors.As(err, &gone) {
			t.Errorf("%s after its hour was removed: it is another archive: %v", all[i].File, err)
		}
	}
	if swept, err := f.exporter.Sweep(t.Context()); err != nil || swept.Areas != 1 || len(keysBelow(t, f.bucket)) != 0 {
		t.Errorf("what was rendered stays after its hour was removed: %+v, %v", swept, err)
	}
	again, err := in.Ask(t.Context(), plain)
	if err != nil || again.Again {
		t.Errorf("the same request: %+v, %v; want a new archive", again, err)
	}
}
