package pipeline_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/reconcile"
	"github.com/kansa-audit/kansa/schema"
)

// sealedUpToNow waits until what is stored now is sealed.
func sealedUpToNow(t *testing.T, s *pipeline.System) {
	t.Helper()
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	progress, now := rollup.Progress{JS: s.Client.JS, KV: kv}, time.Now()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		next, err := progress.Next(t.Context())
		return err == nil && next.After(now), []any{"sealed until", next, err}
	})
}

// restored has a running system restore, and waits for the end.
func restored(t *testing.T, s *pipeline.System, q reconcile.Request) *reconcile.Restoration {
	t.Helper()
	job, err := reconcile.Start(t.Context(), s.Client.NC, q)
	if err != nil {
		t.Fatal(err)
	}
	var last *reconcile.Restoration
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		status, err := reconcile.Ask(t.Context(), s.Client.NC)
		if err != nil {
			return false, err
		}
		last = status.Last
		return last != nil && last.ID == job.ID && !last.Ended.IsZero(), last
	})
	if last.Failed != "" || len(last.Left) > 0 {
		t.Errorf("the restoration left something: %+v", last)
	}
	return last
}

// Rows that are deleted, changed or added after their hours were sealed are found, reported everywhere, and restored from the
// partitions; so is a whole table.
func TestTableIsRestoredFromSealedHours(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Rollup.ComparePercent = 100
	s := pipelinetest.Start(t, c)
	conn := s.Store.Conn()
	exec := func(query string, v ...any) {
		t.Helper()
		if err := conn.Exec(t.Context(), fmt.Sprintf(query, v...)); err != nil {
			t.Fatal(err)
		}
	}
	count := func(query string, v ...any) (n uint64) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), fmt.Sprintf(query, v...)).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const ours = "source != '" + owntrail.Source + "'"
	for seed := range uint64(4) {
		publish(t, s, seed+1, 6000, nil)
		sealedUpToNow(t, s) // so that they lie in several hours
	}
	stored := count("SELECT count() FROM audit_events FINAL WHERE " + ours)
	if stored != 24_000 {
		t.Fatalf("%d events are stored", stored)
	}
	// sums has a sum of hashes for each column.
	sums := func() string {
		var columns, sums string
		if err := conn.QueryRow(t.Context(), "SELECT arrayStringConcat(groupArray(format('concat(\\'{0} \\', toString(sum(cityHash64({0}))))', name)), ', ') FROM system.columns WHERE table = 'audit_events' AND database = currentDatabase()").Scan(&columns); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "SELECT toString(["+columns+"]) FROM audit_events FINAL WHERE "+ours).Scan(&sums); err != nil {
			t.Fatal(err)
		}
		return sums
	}
	before := sums()

	// Three hours of acme's are changed, each in another way.
	var hours []time.Time
	if err := conn.QueryRow(t.Context(), "SELECT groupUniqArray(toStartOfSecond(recorded_at)) FROM audit_events WHERE organization = 'acme' AND trail = 'activity'").Scan(&hours); err != nil || len(hours) < 4 {
		t.Fatal(hours, err)
	}
	in := func(i int) string {
		return fmt.Sprintf("organization = 'acme' AND trail = 'activity' AND recorded_at >= fromUnixTimestamp64Micro(%d, 'UTC') AND recorded_at < fromUnixTimestamp64Micro(%d, 'UTC')", hours[i].UnixMicro(), hours[i].UnixMicro()+1e6)
	}
	exec("DELETE FROM audit_events WHERE %s AND batch_index %% 2 = 0", in(0))
	exec("ALTER TABLE audit_events UPDATE description = 'nothing happened' WHERE %s AND batch_index = 0 SETTINGS mutations_sync = 2", in(1))
	exec("INSERT INTO audit_events SELECT * REPLACE (1000000 AS stream_seq) FROM audit_events WHERE %s AND batch_index = 0 SETTINGS insert_deduplicate = 0", in(2))
	missing := stored - count("SELECT count() FROM audit_events FINAL WHERE %s AND stream_seq != 1000000", ours)
	added := count("SELECT count() FROM audit_events FINAL WHERE stream_seq = 1000000")
	// And somebody invents an organization.
	exec("INSERT INTO audit_events SELECT * REPLACE ('no one: *' AS organization, 'x y' AS trail) FROM (SELECT * FROM audit_events WHERE %s AND batch_index = 1) SETTINGS insert_deduplicate = 0", in(3))
	changed := count("SELECT count() FROM audit_events FINAL WHERE description = 'nothing happened'")

	if count("SELECT count() FROM audit_events WHERE organization = 'no one: *'") == 0 {
		t.Fatal("nobody's events are not in the table")
	}
	if missing == 0 || changed == 0 || added == 0 {
		t.Fatalf("%d missing, %d changed, %d added", missing, changed, added)
	}

	found := func() map[time.Time]reconcile.Finding {
		status, err := reconcile.Ask(t.Context(), s.Client.NC)
		if err != nil {
			t.Fatal(err)
		}
		all := map[time.Time]reconcile.Finding{}
		for _, f := range status.Findings {
			all[f.Hour.UTC()] = f
		}
		return all
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		f := found()
		status, _ := reconcile.Ask(t.Context(), s.Client.NC)
		return len(f) == 4, []any{f, status.Walk, hours, missing, changed, added, in(0)}
	})
	f := found()
	if a, b, c := f[hours[0].UTC()], f[hours[1].UTC()], f[hours[2].UTC()]; a.Missing != missing || a.Changed+a.Added != 0 || b.Changed != changed || b.Missing+b.Added != 0 || c.Added != added || c.Missing+c.Changed != 0 {
		t.Errorf("%d missing, %d changed, %d added; found %+v", missing, changed, added, f)
	}
	finds(t, s, true, map[string]string{"rollup/table": "differs from 4 sealed hours"})
	auditor := newClient(t, s, "auditor", "acme", access.Auditor)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		body := string(auditor.get(t, 200, "/api/v1/audit/events?text=nothing+happened"))
		return strings.Contains(body, `"differs_from_sealed":"changed"`), body
	})
	var shownHours []integrity.Hour
	q := url.Values{"trail": {"activity"}, "from": {hours[0].Format(time.RFC3339)}, "to": {hours[0].Add(time.Second).Format(time.RFC3339)}}
	auditor.json(t, "/api/v1/organizations/acme/integrity/hours?"+q.Encode(), &shownHours)
	if len(shownHours) != 1 || shownHours[0].State != integrity.Differs || !strings.Contains(shownHours[0].Problem, "missing") {
		t.Errorf("the hour is shown as %+v", shownHours)
	}

	// A dry run changes nothing; without --replace, only what is missing is stored.
	if r := restored(t, s, reconcile.Request{DryRun: true}); r.Missing != missing || r.Changed != changed || r.Added != added || r.Stored+r.Removed != 0 || r.Partitions != 3 {
		t.Errorf("a dry run: %+v", r)
	}
	if r := restored(t, s, reconcile.Request{}); r.Stored != missing || r.Removed != 0 {
		t.Errorf("without replacing: %+v", r)
	}
	if f := found(); len(f) != 3 {
		t.Errorf("left are %+v", f)
	}
	if r := restored(t, s, reconcile.Request{Replace: true}); r.Stored != changed || r.Removed != changed+added {
		t.Errorf("replacing: %+v", r)
	}
	if f := found(); len(f) != 1 || f[hours[3].UTC()].Organization != "no one: *" { // of which nothing is sealed
		t.Errorf("left are %+v", f)
	}
	exec("DELETE FROM audit_events WHERE organization = 'no one: *'")
	if after := sums(); after != before {
		t.Errorf("the table is\n%s, and it was\n%s", after, before)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		_, body := get(t, s.Health.URL()+"/readyz", "application/json")
		return !strings.Contains(body, "sealed hours"), body
	})

	// The table is lost, and what the stream holds is not asked for.
	exec("TRUNCATE TABLE audit_events")
	exec("TRUNCATE TABLE audit_event_counts")
	if r := restored(t, s, reconcile.Request{}); r.Stored < stored {
		t.Errorf("a table that was lost: %+v", r)
	}
	if after := sums(); after != before {
		t.Errorf("the table is\n%s, and it was\n%s", after, before)
	}
	if n := count("SELECT toUInt64(sum(events)) FROM audit_event_counts WHERE " + ours); n != stored {
		t.Errorf("%d events are counted, %d are stored", n, stored)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		differs, restored := count("SELECT count() FROM audit_events FINAL WHERE event = 'table.differs'"), count("SELECT count() FROM audit_events FINAL WHERE event = 'table.restored'")
		return differs > 0 && restored > 0, []any{"events of the system", differs, restored}
	})
}

// The hourly counts, which serve charts, are corrected if a crash left them behind the events.
func TestHourlyCountsAreCorrected(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := pipelinetest.Start(t, c)
	publish(t, s, 1, 100, nil)
	pipelinetest.UntilStored(t, s.Store, 100, time.Minute)
	conn := s.Store.Conn()
	old := time.Now().Add(-48 * time.Hour).Truncate(time.Hour).UTC()
	for _, query := range []string{
		fmt.Sprintf("INSERT INTO audit_events SELECT * REPLACE (fromUnixTimestamp64Micro(%d, 'UTC') AS recorded_at) FROM audit_events WHERE organization = 'acme' SETTINGS insert_deduplicate = 0", old.Add(time.Minute).UnixMicro()),
		fmt.Sprintf("DELETE FROM audit_event_counts WHERE hour = fromUnixTimestamp(%d) AND trail = 'activity'", old.Unix()),
		fmt.Sprintf("INSERT INTO audit_event_counts SELECT * FROM audit_event_counts WHERE hour = fromUnixTimestamp(%d) AND trail = 'access' SETTINGS insert_deduplicate = 0", old.Unix()),
	} {
		if err := conn.Exec(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	counts := func() (counted, stored uint64) {
		err := conn.QueryRow(t.Context(), fmt.Sprintf("SELECT (SELECT toUInt64(sum(events)) FROM audit_event_counts WHERE hour = fromUnixTimestamp(%[1]d)), (SELECT count() FROM audit_events WHERE toStartOfHour(recorded_at) = fromUnixTimestamp(%[1]d))", old.Unix())).Scan(&counted, &stored)
		if err != nil {
			t.Fatal(err)
		}
		return counted, stored
	}
	if counted, stored := counts(); counted == stored || stored == 0 {
		t.Fatalf("%d counted, %d stored: there is nothing to correct", counted, stored)
	}
	a := &reconcile.Auditor{Table: s.Store, Hour: time.Hour, Logger: pipelinetest.Logger(t), Record: func(context.Context, schema.Event) {}}
	if err := a.CorrectCounts(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if counted, stored := counts(); counted != stored {
		t.Errorf("%d counted, %d stored", counted, stored)
	}
}
