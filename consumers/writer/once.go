package writer

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/claims"
	"github.com/kansa-audit/kansa/schema"
)

// An event whose producer gave it its id is stored once within Config.IDWindow, by any route and in any message that it comes in
// again. The broker knows messages, not events, so the writer looks the ids up in the table. Two copies may be under way at once,
// with two inserts, of two processes perhaps: the ids of an insert are claimed while it goes on, so that the second one looks after the first has ended.

// StoredID is an event of the table.
type StoredID struct {
	StreamSeq  uint64
	RecordedAt time.Time
	// Content is its hash, as codec.Part.Contents has it.
	Content uint64
}

// Claims order inserts that have ids in common, of all writers; see package claims.
type Claims interface {
	// Take returns when no insert that claimed any of the ids before is under way.
	Take(ctx context.Context, messages []claims.Message) (release func(), err error)
}

// alone is the only writer, with one insert at a time.
type alone struct{}

func (alone) Take(context.Context, []claims.Message) (func(), error) { return func() {}, nil }

// errReused means that an id belongs to another event.
type errReused struct {
	id uuid.UUID
	of *StoredID // nil if that is of the same insert
}

func (e *errReused) Error() string {
	at := "published together with it"
	if e.of != nil {
		at = "recorded at " + e.of.RecordedAt.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("id: %s is that of another event, %s, with other content: give each event an id of its own", e.id, at)
}

// group is what an insert has of an organization's trail.
type group struct {
	organization string
	trail        schema.Trail
}

// once claims the ids that producers gave the events of items, and takes off the items what the table has already. A copy is left
// out and counted; another event under a known id is dead-lettered. release ends the claims, after the insert.
func (w *Writer) once(ctx context.Context, items []*item, have map[uint64]int) (skipped int, release func(), err error) {
	release = func() {}
	groups := map[group][]*item{}
	var claimed []claims.Message
	for _, it := range items {
		if rows := it.part.Block; w.cfg.IDWindow > 0 && !it.done && rows.Given() && have[it.part.StreamSeq] < rows.Rows() {
			g := group{it.part.Organization, it.part.Trail}
			groups[g] = append(groups[g], it)
			m := claims.Message{StreamSeq: it.part.StreamSeq, IDs: make([]uuid.UUID, rows.Rows())}
			for row := range m.IDs {
				m.IDs[row] = rows.ID(row)
			}
			claimed = append(claimed, m)
		}
	}
	if len(claimed) == 0 {
		return 0, release, nil
	}
	if release, err = w.cfg.Claims.Take(ctx, claimed); err != nil {
		return 0, func() {}, err
	}
	defer func() {
		if err != nil {
			release()
			release = func() {}
		}
	}()
	for g, of := range groups {
		n, err := w.onceOf(ctx, g, of)
		if err != nil {
			return 0, release, err
		}
		skipped += n
	}
	return skipped, release, nil
}

func (w *Writer) onceOf(ctx context.Context, g group, items []*item) (skipped int, err error) {
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.part.StreamSeq, b.part.StreamSeq) })
	first, last := items[0].part.RecordedAt, items[0].part.RecordedAt
	var ids []uuid.UUID
	for _, it := range items {
		if at := it.part.RecordedAt; at.Before(first) {
			first = at
		} else if at.After(last) {
			last = at
		}
		for row := range it.part.Block.Rows() {
			ids = append(ids, it.part.Block.ID(row))
		}
	}
	stored, err := w.table.StoredIDs(ctx, g.organization, g.trail, ids, first.Add(-w.cfg.IDWindow), last.Add(w.cfg.IDWindow))
	if err != nil {
		return 0, fmt.Errorf("look up %d ids: %w", len(ids), err)
	}
	type seen struct {
		of  *item
		row int
	}
	here := make(map[uuid.UUID]seen, len(ids))
	contents := map[*item][]uint64{} // made for those that have a copy
	content := func(it *item, row int) uint64 {
		if contents[it] == nil {
			contents[it] = it.part.Contents()
		}
		return contents[it][row]
	}
	var letters []consumers.DeadLetter
	dropped := map[*item][]int{}
	for _, it := range items {
		for row := range it.part.Block.Rows() {
			id := it.part.Block.ID(row)
			var other uint64
			reused := &errReused{id: id}
			if s := w.elsewhere(stored[id], it); s != nil {
				other, reused.of = s.Content, s
			} else if s, ok := here[id]; ok {
				other = content(s.of, s.row)
			} else {
				here[id] = seen{it, row}
				continue
			}
			dropped[it] = append(dropped[it], row)
			if content(it, row) != other {
				letters = append(letters, w.reused(it, row, reused))
			}
		}
	}
	if len(letters) > 0 {
		if err := w.dead.Put(ctx, letters); err != nil {
			return 0, fmt.Errorf("dead-letter events with ids of others: %w", err)
		}
		w.stats.rejected.Add(uint64(len(letters)))
		w.cfg.Logger.Warn("events rejected: their ids are those of other events", slog.String("organization", g.organization),
			slog.Int("events", len(letters)), slog.Any("reason", letters[0].Reason))
	}
	for it, rows := range dropped {
		it.part.Drop(rows)
		it.tally.Rows, it.tally.Sum = uint64(it.part.Block.Rows()), it.part.Sum()
		skipped += len(rows)
	}
	return skipped - len(letters), nil
}

// elsewhere returns a stored event that is of another message, and near enough in time.
func (w *Writer) elsewhere(stored []StoredID, it *item) *StoredID {
	for i := range stored {
		s := &stored[i]
		if s.StreamSeq == it.part.StreamSeq && s.RecordedAt.Equal(it.part.RecordedAt) {
			continue // it was stored by an earlier delivery
		}
		if apart := s.RecordedAt.Sub(it.part.RecordedAt).Abs(); apart <= w.cfg.IDWindow {
			return s
		}
	}
	return nil
}

func (w *Writer) reused(it *item, row int, reason error) consumers.DeadLetter {
	data, contentType := it.part.Block.Raw(row)
	index := row
	if it.part.Index != nil {
		index = int(it.part.Index[row])
	}
	return consumers.DeadLetter{
		Reason: reason, Subject: it.subject, StreamSeq: it.part.StreamSeq, BatchIndex: index, RecordedAt: it.part.RecordedAt, RecordedBy: it.part.RecordedBy,
		ContentType: contentType, Data: data,
	}
}
