package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/schema/codec"
)

// insertSettings make an insert one synchronous, atomic block that is not sorted and merged once more
// before it is stored: it is sorted already, and a row twice in it can't be.
func insertSettings(ctx context.Context, token string) clickhouse.Settings {
	settings := clickhouse.Settings{
		"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": token, "optimize_on_insert": 0,
		"max_insert_threads": 1, "min_insert_block_size_rows": 0, "min_insert_block_size_bytes": 0,
		"max_insert_block_size": 1 << 22, "deduplicate_blocks_in_dependent_materialized_views": 1,
		// Merges make the indexes; until then the little that is new is read without.
		"materialize_skip_indexes_on_insert": 0,
	}
	if deadline, ok := ctx.Deadline(); ok {
		// The server gives up when we do, so that nothing is stored behind our back. How long the request was
		// under way only the embedded engine knows, which reads the comment.
		settings["max_execution_time"] = int(math.Ceil(max(time.Until(deadline).Seconds(), 1)))
		settings["log_comment"] = engine.Until(deadline)
	}
	return settings
}

var insertQuery = "INSERT INTO audit_events (" + strings.Join(codec.InsertColumns, ", ") + ")"

// Insert stores all of in, or nothing; see writer.Table.
func (s *Store) Insert(ctx context.Context, token string, in *codec.Insert) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(s.inserts.settings(insertSettings(ctx, token))))
	if s.native {
		return s.insertNative(ctx, in)
	}
	if err := s.conn.InsertFormat(ctx, "Native", insertQuery, in.Native()); err != nil {
		return fmt.Errorf("insert %d events: %w", in.Rows(), err)
	}
	return nil
}

// InBackground returns the same store with inserts that give way to other inserts and to queries. It is not to be closed.
func (s *Store) InBackground() *Store {
	b := *s
	b.inserts = background
	return &b
}

// insertNative goes the way of the native protocol, where the columns have to have the server's types.
func (s *Store) insertNative(ctx context.Context, in *codec.Insert) error {
	batch, err := s.conn.PrepareBatch(ctx, insertQuery)
	if err != nil {
		return fmt.Errorf("prepare insert: %w", err)
	}
	defer batch.Close()
	for i, c := range in.Columns() {
		if err := appendColumn(batch.Column(i), c, in.Rows()); err != nil {
			return fmt.Errorf("insert column %s: %w", c.Name, err)
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert %d events: %w", in.Rows(), err)
	}
	return nil
}

func appendColumn(to driver.BatchColumn, c codec.Column, rows int) error {
	readers := make([]io.Reader, len(c.Segments))
	for i, s := range c.Segments {
		readers[i] = bytes.NewReader(s)
	}
	r := proto.NewReader(io.MultiReader(readers...))
	switch c.Type {
	case "String":
		return appendRows(to, r, rows, &proto.ColStr{})
	case "UInt32":
		return appendRows(to, r, rows, &proto.ColUInt32{})
	case "UInt64":
		return appendRows(to, r, rows, &proto.ColUInt64{})
	case "UUID":
		return appendRows(to, r, rows, &proto.ColUUID{})
	case "DateTime('UTC')":
		return appendRows(to, r, rows, &proto.ColDateTime{Location: time.UTC})
	case "DateTime64(6, 'UTC')":
		return appendRows(to, r, rows, new(proto.ColDateTime64).WithPrecision(proto.PrecisionMicro).WithLocation(time.UTC))
	case "Map(String, String)":
		return appendRows(to, r, rows, proto.NewMap[string, string](new(proto.ColStr), new(proto.ColStr)))
	default:
		return fmt.Errorf("type %s is not known", c.Type)
	}
}

func appendRows[T any](to driver.BatchColumn, r *proto.Reader, rows int, col interface {
	DecodeColumn(r *proto.Reader, rows int) error
	Row(i int) T
},
) error {
	if err := col.DecodeColumn(r, rows); err != nil {
		return err
	}
	values := make([]T, rows)
	for i := range values {
		values[i] = col.Row(i)
	}
	return to.Append(values)
}

// comment gives a query a comment that the embedded engine reads, which is spoken to by HTTP.
func (s *Store) comment(ctx context.Context, comment string) context.Context {
	if s.native {
		return ctx
	}
	return clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"log_comment": comment}))
}

// AwaitInserts returns when no insert into audit_events is under way any more that was when it was called.
func (s *Store) AwaitInserts(ctx context.Context) error {
	// The embedded engine answers when there is none left; another server says which there are.
	ctx = s.comment(ctx, engine.AfterInserts)
	under, err := s.insertsUnderWay(ctx)
	for pause := 10 * time.Millisecond; len(under) > 0 && err == nil; pause = min(2*pause, 200*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d inserts are under way: %w", len(under), ctx.Err())
		case <-time.After(pause):
		}
		var now []string
		now, err = s.insertsUnderWay(ctx)
		under = slices.DeleteFunc(under, func(id string) bool { return !slices.Contains(now, id) })
	}
	return err
}

// insertsUnderWay returns the ids of inserts into audit_events: those of other users, too, if this one may see them.
func (s *Store) insertsUnderWay(ctx context.Context) (ids []string, err error) {
	err = s.each(ctx, "SELECT query_id FROM "+s.system("processes")+" WHERE startsWith(query, 'INSERT INTO audit_events (')", func(scan func(...any) error) error {
		var id string
		err := scan(&id)
		ids = append(ids, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask which inserts are under way, which takes SELECT on system.processes: %w", err)
	}
	return ids, nil
}

// StoredRows returns how many rows the table has for each of the messages; absent means none. A message is
// known by its place in the stream and its time: a broker that lost what it had not acknowledged gives the
// place to another. The times narrow the search to a few granules of the sorting key, too.
func (s *Store) StoredRows(ctx context.Context, parts []codec.Part) (map[uint64]int, error) {
	if len(parts) == 0 {
		return nil, nil
	}
	seqs := make([]uint64, len(parts))
	orgs, times := map[string]bool{}, make(map[uint64]int64, len(parts))
	first, last := parts[0].RecordedAt, parts[0].RecordedAt
	for i := range parts {
		seqs[i] = parts[i].StreamSeq
		orgs[parts[i].Organization], times[seqs[i]] = true, parts[i].RecordedAt.UnixMicro()
		if parts[i].RecordedAt.Before(first) {
			first = parts[i].RecordedAt
		}
		if parts[i].RecordedAt.After(last) {
			last = parts[i].RecordedAt
		}
	}
	names := make([]string, 0, len(orgs))
	for o := range orgs {
		names = append(names, o)
	}
	ctx = s.comment(ctx, engine.AfterLate)
	rows, err := s.conn.Query(ctx, `SELECT stream_seq, toUnixTimestamp64Micro(recorded_at) AS time, uniqExact(batch_index) FROM audit_events
WHERE organization IN (?) AND recorded_at >= fromUnixTimestamp64Micro(?, 'UTC') AND recorded_at <= fromUnixTimestamp64Micro(?, 'UTC') AND stream_seq IN (?)
GROUP BY stream_seq, time`, names, first.UnixMicro(), last.UnixMicro(), seqs)
	if err != nil {
		return nil, fmt.Errorf("look up %d messages: %w", len(seqs), err)
	}
	defer rows.Close()
	stored := map[uint64]int{}
	for rows.Next() {
		var seq, n uint64
		var time int64
		if err := rows.Scan(&seq, &time, &n); err != nil {
			return nil, fmt.Errorf("look up %d messages: %w", len(seqs), err)
		}
		if time == times[seq] {
			stored[seq] = int(n)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look up %d messages: %w", len(seqs), err)
	}
	return stored, nil
}
