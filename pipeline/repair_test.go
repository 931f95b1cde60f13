package pipeline_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/repair"
)

// What happens to rows in ClickHouse behind everybody's back is found before an hour is signed, named message
// by message, and mended from the stream.
func TestTamperedRowsAreFoundAndRepaired(t *testing.T) {
	t.Parallel()
	cfg := pipelinetest.Config(t)
	writing, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: cfg, Roles: []pipeline.Role{pipeline.RoleWriter}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, writing, 7, 20_000, nil)
	pipelinetest.UntilStored(t, writing.Store, 20_000, time.Minute)
	conn := writing.Store.Conn()
	// lastOf is the last message of an organization's trail.
	lastOf := func(n int) (seq uint64) {
		err := conn.QueryRow(t.Context(), fmt.Sprintf("SELECT max(stream_seq) FROM audit_events GROUP BY organization, trail ORDER BY organization, trail LIMIT 1 OFFSET %d", n)).
			Scan(&seq)
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	exec := func(query string) {
		t.Helper()
		if err := conn.Exec(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]uint64{}
	seq := lastOf(0)
	exec(fmt.Sprintf("DELETE FROM audit_events WHERE stream_seq = %d", seq))
	want[repair.Missing] = seq
	seq = lastOf(1)
	exec(fmt.Sprintf("ALTER TABLE audit_events UPDATE description = 'nothing happened' WHERE stream_seq = %d AND batch_index = 0 SETTINGS mutations_sync = 2", seq))
	want[repair.Changed] = seq
	seq = lastOf(2)
	exec(fmt.Sprintf("INSERT INTO audit_events SELECT * REPLACE (1000000 AS stream_seq) FROM (SELECT * FROM audit_events WHERE stream_seq = %d) SETTINGS insert_deduplicate = 0", seq))
	want[repair.Added] = 1000000
	// Rows that are there twice are no harm: the table collapses them, and so does who asks.
	seq = lastOf(3)
	exec(fmt.Sprintf("INSERT INTO audit_events SELECT * FROM audit_events WHERE stream_seq = %d SETTINGS insert_deduplicate = 0", seq))
	if err := writing.Close(); err != nil {
		t.Fatal(err)
	}

	s := pipelinetest.Start(t, cfg)
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	progress := rollup.Progress{JS: s.Client.JS, KV: kv}
	blocked := func() int {
		all, err := progress.Blocked(t.Context(), cfg.Rollup.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { n := blocked(); return n == 3, n })
	finds(t, s, true, map[string]string{"rollup/agreement": "wait for kansa repair"})
	ask := func(q repair.Request) map[string]repair.Difference {
		t.Helper()
		report, err := repair.Ask(t.Context(), s.Client.NC, q)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]repair.Difference{}
		for _, d := range report.Differences {
			found[d.Kind] = d
		}
		return found
	}
	found := ask(repair.Request{})
	for kind, seq := range want {
		if found[kind].StreamSeq != seq || found[kind].Done != "" {
			t.Errorf("%s: found %+v, want message %d", kind, found[kind], seq)
		}
	}
	if found = ask(repair.Request{Fix: true}); found[repair.Missing].Done == "" || found[repair.Changed].Left == "" || found[repair.Added].Left == "" {
		t.Errorf("without leave to remove rows it did %+v", found)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { n := blocked(); return n == 2, n })
	ask(repair.Request{Fix: true, Replace: true})
	pipelinetest.Until(t, time.Minute, func() (bool, any) { n := blocked(); return n == 0, n })
	if found := ask(repair.Request{}); len(found) != 0 {
		t.Errorf("left are %+v", found)
	}
	var counts string
	err = s.Store.Conn().QueryRow(t.Context(), `SELECT toString(groupArray((event, n))) FROM (SELECT event, toInt64(sum(n)) AS n FROM (
		SELECT event, toInt64(events) AS n FROM audit_event_counts WHERE organization = 'acme' UNION ALL SELECT event, toInt64(-1) FROM audit_events WHERE organization = 'acme'
	) GROUP BY event HAVING n != 0)`).Scan(&counts)
	if err != nil || counts != "[]" {
		t.Errorf("the hourly counts differ from the table by %s, %v", counts, err)
	}

	// The alarms are events of the system's own trail, and a metric.
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var n uint64
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events WHERE organization = '"+owntrail.Organization+"' AND event = 'hour.disagreed'").Scan(&n)
		return n == 3, []any{n, err}
	})
	r, err := http.Get(s.Health.URL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"kansa_rollup_agreement_failures_total 3", "kansa_rollup_blocked_trails 0", `kansa_stream_messages{stream="AUDIT"}`, "kansa_writer_lag_seconds", "kansa_dead_letters 0", `kansa_exporter_deliveries_total{result="delivered"} 0`} {
		if !strings.Contains(string(body), line) {
			t.Errorf("the metrics do not have %s:\n%s", line, body)
		}
	}
}
