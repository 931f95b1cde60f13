package pipeline_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// migrated is an engine of the test's own, with the tables.
func migrated(t *testing.T) *store.Store {
	t.Helper()
	e, s := openEngine(t, filepath.Join(t.TempDir(), "clickhouse"))
	t.Cleanup(func() {
		_ = s.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// Requirements Q7, Q9: whatever the way a page is found, it is what the whole table, sorted, has there: of each filter, with
// limits and offsets, forwards and backwards, with equal times in both trails, with rows that are stored twice, in parts
// with indexes and without.
func TestPagesAreThoseOfTheWholeTable(t *testing.T) {
	t.Parallel()
	s := migrated(t)
	do := func(query string) {
		t.Helper()
		if err := s.Conn().Exec(t.Context(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	// Ten messages of 100 share a time, of both trails; n is the number of an event.
	fill := func(from, to int) {
		t.Helper()
		do(fmt.Sprintf(`INSERT INTO audit_events (organization, trail, recorded_at, stream_seq, batch_index, id, occurred_at, source, event, action, outcome,
actor_id, actor_name, target_type, target_id, app_id, ip, description, data, data_type, expires_at)
SELECT if(number %% 11 = 0, 'globex', 'acme'), if(intDiv(number, 100) %% 3 = 0, 'access', 'activity') AS trail,
toDateTime64('2026-10-01 00:00:00', 6, 'UTC') + toIntervalMicrosecond(intDiv(number, 1000) * 1000003) AS at, intDiv(number, 100) + 1, number %% 100,
reinterpretAsUUID(number + 1), at - toIntervalSecond(number %% 5), 's' || toString(number %% 3), if(number %% 100000 = 77, 'rare', 'common'), 'a', if(number %% 50 = 0, 'denied', 'success'),
'u-' || toString(number %% 5003), 'Ann', 'report', 'r-' || toString(intDiv(number, 40)), 'app-' || toString(number %% 7), '10.0.0.' || toString(number %% 250),
if(number %% 9973 = 5, 'has a Needle within', 'has none'), if(number = 4321, '{"a":"only One"}', ''), 'd' || toString(number %% 2), '2036-01-01'
FROM numbers(%d, %d) SETTINGS optimize_on_insert = 0, materialize_skip_indexes_on_insert = 0, async_insert = 0`, from, to-from))
	}
	const indexed, all = 320_000, 330_000 // more than a text is looked for in first
	fill(0, indexed)
	do("OPTIMIZE TABLE audit_events FINAL")
	do("SYSTEM STOP MERGES audit_events")
	fill(indexed, all)
	fill(all-1500, all-700) // once more
	insertMessage(t, s, 1<<20)

	var parts, bytes, without uint64
	if err := s.Conn().QueryRow(t.Context(), `SELECT count(), sum(secondary_indices_compressed_bytes), countIf(secondary_indices_compressed_bytes = 0)
FROM system.parts WHERE active AND database = currentDatabase() AND table = 'audit_events'`).Scan(&parts, &bytes, &without); err != nil {
		t.Fatal(err)
	}
	if parts < 3 || bytes == 0 || without != parts-1 {
		t.Errorf("%d parts, %d of them without indexes, %d bytes of indexes; want them in the merged part alone", parts, without, bytes)
	}

	filters := map[string]schema.Filter{
		"":                                 {},
		"trail = 'access'":                 {Trail: schema.Access},
		"source = 's1'":                    {Source: "s1"},
		"event = 'rare'":                   {Event: "rare"},
		"event = 'none'":                   {Event: "none"},
		"action = 'a'":                     {Action: "a"},
		"outcome = 'denied'":               {Outcome: schema.Denied},
		"actor_id = 'u-17'":                {ActorID: "u-17"},
		"actor_id = 'nobody'":              {ActorID: "nobody"},
		"target_type = 'report'":           {TargetType: "report"},
		"target_id = 'r-8210'":             {TargetID: "r-8210"},
		"target_id = 'r-3'":                {TargetID: "r-3"},
		"app_id = 'app-3'":                 {AppID: "app-3"},
		"ip = '10.0.0.9'":                  {IP: "10.0.0.9"},
		"data_type = 'd1'":                 {DataType: "d1"},
		"description ILIKE '%needle%'":     {Text: "nEEDLE"},
		"data ILIKE '%only one%'":          {Text: "only one"},
		"description ILIKE '%has none%'":   {Text: "has none"},
		"description ILIKE '%no such%'":    {Text: "no such"},
		"trail = 'access' AND ip = 'none'": {Trail: schema.Access, IP: "none"},
		"trail = 'activity' AND actor_id = 'u-17' AND description ILIKE '%needle%'": {Trail: schema.Activity, ActorID: "u-17", Text: "needle"},
		"occurred_at >= '2026-10-01 00:01:00' AND occurred_at < '2026-10-01 00:03:00'": {
			Start: time.Date(2026, 10, 1, 0, 1, 0, 0, time.UTC), End: time.Date(2026, 10, 1, 0, 3, 0, 0, time.UTC),
		},
	}
	middle := store.Position{RecordedAt: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC).Add(20 * 1000003 * time.Microsecond), StreamSeq: 205, BatchIndex: 50}
	for condition, filter := range filters {
		for _, q := range []store.Question{
			{Newest: true, Limit: 50},
			{Newest: true, Limit: 3, Offset: 700},
			{Newest: true, Limit: 1001, Offset: 1},
			{Newest: true, Limit: 40, Offset: 400_000},
			{Limit: 50},
			{Limit: 333, UpTo: 3100},
			{Limit: 100, After: middle},
			{Limit: 20, After: middle, UpTo: 1000},
			{Limit: 1, Offset: 2},
		} {
			q.Organization, q.Filter = "acme", filter
			var got []string
			if err := s.Events(t.Context(), &q, func(e *codec.Stored) error {
				got = append(got, fmt.Sprint(e.RecordedAt.UnixMicro(), " ", e.StreamSeq, " ", e.BatchIndex, " ", e.ID, " ", e.Trail, " ", e.Description, string(e.Data)))
				return nil
			}); err != nil {
				t.Fatalf("%s: %v", condition, err)
			}
			if want := naive(t, s, condition, &q); !slices.Equal(got, want) {
				t.Errorf("%q, limit %d, offset %d, newest %t, after %v, up to %d: %d events, want %d\n%.200q\n%.200q",
					condition, q.Limit, q.Offset, q.Newest, q.After, q.UpTo, len(got), len(want), got, want)
			}
		}
	}
}

// Requirement Q8: the log is read stretch by stretch, and is what it would be if it were read at once: of each form, both
// ways, whole and of a filter, with more in a minute than a stretch has, with minutes in which nothing was recorded.
func TestLogIsReadInStretches(t *testing.T) {
	t.Parallel()
	s := migrated(t)
	// 250,000 in one minute, then 100 in each seventh hour.
	if err := s.Conn().Exec(t.Context(), `INSERT INTO audit_events (organization, trail, recorded_at, stream_seq, batch_index, id, occurred_at, source, event, action, outcome, target_id, expires_at)
SELECT 'acme', if(number % 3 = 0, 'access', 'activity'), toDateTime64('2026-10-01 00:00:00', 6, 'UTC') +
if(number < 250000, toIntervalMicrosecond(number * 239), toIntervalHour(7 * intDiv(number - 250000, 100))) AS at, number, 0,
reinterpretAsUUID(number + 1), at, 's', 'e', 'a', 'success', 'r-' || toString(number % 5), '2036-01-01' FROM numbers(260000) SETTINGS max_partitions_per_insert_block = 1000`); err != nil {
		t.Fatal(err)
	}
	for _, q := range []store.Question{{}, {Newest: true}, {Filter: schema.Filter{TargetID: "r-3"}}, {Filter: schema.Filter{TargetID: "none"}}, {UpTo: 100}} {
		q.Organization = "acme"
		condition := "true"
		if q.TargetID != "" {
			condition = "target_id = '" + q.TargetID + "'"
		}
		whole := q
		whole.Limit = 1 << 30
		want := naive(t, s, condition, &whole)
		for _, form := range []store.Table{store.NDJSON, store.CSV, store.TSV} {
			in, err := s.Stream(t.Context(), &q, form)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(in)
			if err = errors.Join(err, in.Close()); err != nil {
				t.Fatal(err)
			}
			header := 1
			if form == store.NDJSON {
				header = 0
				for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
					if len(want) > 0 && !strings.Contains(line, strings.Fields(want[i])[3]) {
						t.Fatalf("%+v: event %d is %s, want %s", q, i, line, want[i])
					}
				}
			}
			if lines := bytes.Count(text, []byte("\n")); lines != len(want)+header {
				t.Errorf("%+v: %d lines of %s, want %d and %d above", q, lines, form, len(want), header)
			}
		}
	}
}

// naive asks for a page by reading the whole table.
func naive(t *testing.T, s *store.Store, condition string, q *store.Question) []string {
	t.Helper()
	where := []string{"organization = 'acme'"}
	if condition != "" {
		where = append(where, condition)
	}
	if !q.After.IsZero() {
		where = append(where, fmt.Sprintf("(toUnixTimestamp64Micro(recorded_at), stream_seq, batch_index) > (%d, %d, %d)", q.After.RecordedAt.UnixMicro(), q.After.StreamSeq, q.After.BatchIndex))
	}
	if q.UpTo > 0 {
		where = append(where, fmt.Sprintf("stream_seq <= %d", q.UpTo))
	}
	order := "recorded_at, stream_seq, batch_index"
	if q.Newest {
		order = "recorded_at DESC, stream_seq DESC, batch_index DESC"
	}
	rows, err := s.Conn().Query(t.Context(), fmt.Sprintf(`SELECT concat(toString(toUnixTimestamp64Micro(recorded_at)), ' ', toString(stream_seq), ' ', toString(batch_index), ' ', toString(id), ' ', trail, ' ', description, data)
FROM audit_events WHERE %s ORDER BY %s LIMIT %d OFFSET %d
SETTINGS use_skip_indexes = 0, optimize_read_in_order = 0, use_query_condition_cache = 0, query_plan_optimize_lazy_materialization = 0`, strings.Join(where, " AND "), order, q.Limit, q.Offset))
	if err != nil {
		t.Fatalf("%s: %v", condition, err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
