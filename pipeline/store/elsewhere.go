package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// lane is the events of one organization and trail.
type lane struct {
	organization string
	trail        schema.Trail
}

// message is one of those in a lane that are in the table.
type message struct {
	seq        uint64
	recordedAt int64 // in microseconds
}

// inQuery bounds how many values a query names, for its text is bounded.
const inQuery = 4000

// StoredElsewhere returns, by the sequence of a message, its rows whose events the table has from an earlier
// message that was recorded since an instant, in order. A message is stored whole or not at all, so that a few of
// its events tell whether it is there; only the messages that have those are looked at further.
func (s *Store) StoredElsewhere(ctx context.Context, parts []codec.Part, since time.Time) (map[uint64][]int, error) {
	lanes := map[lane][]codec.Part{}
	for i := range parts {
		l := lane{parts[i].Organization, parts[i].Trail}
		lanes[l] = append(lanes[l], parts[i])
	}
	stored := map[uint64][]int{}
	for l, parts := range lanes {
		found, err := s.messagesWith(ctx, l, parts, since)
		if err != nil {
			return nil, err
		}
		first, err := s.firstMessages(ctx, l, found)
		if err != nil {
			return nil, err
		}
		for i := range parts {
			p := &parts[i]
			for row := range p.Block.Rows() {
				if seq, ok := first[p.Block.ID(row)]; ok && seq < p.StreamSeq {
					stored[p.StreamSeq] = append(stored[p.StreamSeq], row)
				}
			}
		}
	}
	return stored, nil
}

// messagesWith finds the messages that have the first, the middle or the last event of a part.
func (s *Store) messagesWith(ctx context.Context, l lane, parts []codec.Part, since time.Time) ([]message, error) {
	var ids []string
	last := since
	for i := range parts {
		p := &parts[i]
		if n := p.Block.Rows(); n > 0 {
			rows := []int{0, n / 2, n - 1}
			for _, row := range slices.Compact(rows) {
				ids = append(ids, "'"+p.Block.ID(row).String()+"'")
			}
		}
		if p.RecordedAt.After(last) {
			last = p.RecordedAt
		}
	}
	seen := map[message]bool{}
	for some := range slices.Chunk(ids, inQuery) {
		err := s.each(ctx, "SELECT DISTINCT stream_seq, toUnixTimestamp64Micro(recorded_at) FROM audit_events WHERE "+l.where()+
			" AND recorded_at >= "+micros(since)+" AND recorded_at <= "+micros(last)+" AND id IN ("+strings.Join(some, ", ")+")",
			func(scan func(...any) error) error {
				var m message
				err := scan(&m.seq, &m.recordedAt)
				seen[m] = true
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("look up %d ids: %w", len(some), err)
		}
	}
	found := make([]message, 0, len(seen))
	for m := range seen {
		found = append(found, m)
	}
	return found, nil
}

const (
	// idsInQuery bounds how many ids a query names; each takes 37 bytes of its text.
	idsInQuery = 200_000
	// With more ids than that, every granule may have one, and asking the index costs more than reading the ids.
	idsForIndex = 1000
)

// StoredIDs returns the events of an organization's trail that have some of the ids and were recorded within a time.
func (s *Store) StoredIDs(ctx context.Context, organization string, trail schema.Trail, ids []uuid.UUID, from, to time.Time) (map[uuid.UUID][]writer.StoredID, error) {
	found := map[uuid.UUID][]writer.StoredID{}
	l := lane{organization, trail}
	settings := clickhouse.Settings{"max_query_size": 40*idsInQuery + 1<<16}
	maps.Copy(settings, countSettings)
	if len(ids) > idsForIndex {
		settings["use_skip_indexes"] = 0
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(s.inserts.settings(settings)))
	for some := range slices.Chunk(ids, idsInQuery) {
		// One literal: the parser takes six times as long for one of each.
		text := make([]byte, 0, 37*len(some))
		for i, id := range some {
			if i > 0 {
				text = append(text, ',')
			}
			text = append(text, id.String()...)
		}
		err := s.each(ctx, "SELECT id, stream_seq, toUnixTimestamp64Micro(recorded_at), xxh3("+eventText+") FROM audit_events WHERE "+l.where()+
			" AND recorded_at >= "+micros(from)+" AND recorded_at <= "+micros(to)+" AND id IN (SELECT toUUID(arrayJoin(splitByChar(',', '"+string(text)+"'))))",
			func(scan func(...any) error) error {
				var id uuid.UUID
				var e writer.StoredID
				var at int64
				err := scan(&id, &e.StreamSeq, &at, &e.Content)
				e.RecordedAt = time.UnixMicro(at).UTC()
				found[id] = append(found[id], e)
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("look up %d ids: %w", len(some), err)
		}
	}
	return found, nil
}

// firstMessages returns the first of the messages that has an event, for each of their events.
func (s *Store) firstMessages(ctx context.Context, l lane, messages []message) (map[uuid.UUID]uint64, error) {
	first := map[uuid.UUID]uint64{}
	for some := range slices.Chunk(messages, inQuery/2) {
		seqs, times := make([]string, len(some)), make([]string, len(some))
		for i, m := range some {
			seqs[i], times[i] = strconv.FormatUint(m.seq, 10), micros(time.UnixMicro(m.recordedAt))
		}
		err := s.each(ctx, "SELECT id, min(stream_seq) FROM audit_events WHERE "+l.where()+
			" AND recorded_at IN ("+strings.Join(times, ", ")+") AND stream_seq IN ("+strings.Join(seqs, ", ")+") GROUP BY id",
			func(scan func(...any) error) error {
				var id uuid.UUID
				var seq uint64
				if err := scan(&id, &seq); err != nil {
					return err
				}
				if had, ok := first[id]; !ok || seq < had {
					first[id] = seq
				}
				return nil
			})
		if err != nil {
			return nil, fmt.Errorf("look up the events of %d messages: %w", len(some), err)
		}
	}
	return first, nil
}

func (l lane) where() string {
	return "organization = " + quoteString(l.organization) + " AND trail = " + quoteString(string(l.trail))
}

// each runs a query and visits its rows.
func (s *Store) each(ctx context.Context, query string, visit func(scan func(...any) error) error) error {
	rows, err := s.conn.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := visit(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
