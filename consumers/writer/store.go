package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema/codec"
)

// store inserts items and acknowledges them, and tries again for as long as their leases last.
// Items that could not be stored are left alone: the broker gives them to someone again.
func (w *Writer) store(ctx context.Context, items []*item) {
	all := items
	giveBack := func() {
		for _, it := range all {
			w.release(it)
		}
	}
	ours := true
	defer func() {
		if ours {
			giveBack()
		}
	}()
	again := false
	pause := 100 * time.Millisecond
	for {
		items := w.leased(items)
		if len(items) == 0 {
			return
		}
		stored, err := w.insertInTime(ctx, items, again, giveBack)
		w.inserts.note(w.cfg.Now(), err)
		if errors.Is(err, errStuck) {
			ours = false
			return
		}
		if err == nil {
			for _, it := range stored {
				w.ack(it)
			}
			return
		}
		w.stats.failures.Add(1)
		w.cfg.Logger.Warn("insert failed, trying again", slog.Int("messages", len(items)), slog.Any("error", err))
		again = true // it may have been stored all the same
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// leased returns those of items that are ours long enough for an insert to end, or need none.
func (w *Writer) leased(items []*item) []*item {
	least := w.cfg.Now().Add(w.cfg.InsertTimeout + leaseMargin)
	kept, late := make([]*item, 0, len(items)), 0
	for _, it := range items {
		switch {
		case it.done || it.until.After(least):
			kept = append(kept, it)
		case !it.until.IsZero(): // and not given up before
			late++
		}
	}
	if late > 0 {
		w.cfg.Logger.Warn("messages held too long, they will come again", slog.Int("messages", late))
	}
	return kept
}

// errStuck means that an insert went on beyond its time limit, which it should have kept.
var errStuck = errors.New("the insert is stuck")

// insertInTime is insert, but it returns. An insert that is stuck is left behind with its items: what they hold is
// given back when it ends, and the broker gives the messages to somebody again, who looks up what came of it.
func (w *Writer) insertInTime(ctx context.Context, items []*item, again bool, giveBack func()) ([]*item, error) {
	type outcome struct {
		stored []*item
		err    error
	}
	ended := make(chan outcome, 1)
	go func() {
		stored, err := w.insert(ctx, items, again)
		ended <- outcome{stored, err}
	}()
	limit := time.NewTimer(w.cfg.InsertTimeout + leaseMargin)
	defer limit.Stop()
	select {
	case o := <-ended:
		return o.stored, o.err
	case <-limit.C:
	}
	w.stats.failures.Add(1)
	w.stats.stuck.Add(1)
	w.cfg.Logger.Error("an insert is stuck, it is left behind and its messages will come again", slog.Int("messages", len(items)))
	go func() { // nobody can wait for it
		<-ended
		giveBack()
	}()
	return nil, errStuck
}

// insert stores items and their accounts, and returns those that are safe. What may have been stored before is looked
// up, and left out if it was: all of it when it is done again. What the broker stored while its trail was switched off is
// left out and accounted for with no rows, unless the table has it: then it stays, however it came there.
func (w *Writer) insert(ctx context.Context, items []*item, again bool) (_ []*item, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
	defer cancel()
	ctx, end := w.trace(ctx, items)
	var in codec.Insert
	defer func() { end(in.Rows(), err) }()
	// All of items were received before this, so that it holds for them, whichever writer has them.
	recorded, err := w.cfg.Recording.Now(ctx)
	if err != nil {
		return nil, err
	}
	if items = w.withKnownSwitches(recorded, items); len(items) == 0 {
		return nil, nil
	}
	// The broker has answered, so that it is known by now if it was started again since it gave the items.
	server := w.cfg.Server()
	if server == "" {
		return nil, errAway
	}
	items, lookUp := w.given(server, items, again)
	if len(items) == 0 {
		return nil, nil
	}
	have, skipped, unrecorded := map[uint64]int{}, 0, 0
	if lookUp {
		if have, err = w.lookUp(ctx, server, items, again); err != nil {
			return nil, err
		}
		items, skipped = w.leaveOut(ctx, items, have)
	}
	duplicates, release, err := w.once(ctx, items, have)
	if err != nil {
		return nil, err
	}
	defer release()
	first, last := ^uint64(0), uint64(0)
	var inserted []*item
	for _, it := range items {
		if it.done {
			continue
		}
		rows, stored := it.part.Block.Rows(), have[it.part.StreamSeq]
		if stored == 0 && recorded.Off(it.part.Organization, it.part.Trail, it.part.RecordedAt) {
			it.tally.Rows, it.tally.Sum = 0, 0
			it.done = true
			unrecorded += rows
			continue
		}
		if stored >= rows {
			it.done = true
			skipped += rows
			continue
		}
		if stored > 0 {
			// An insert is one block, so this should not be; the table collapses what is there twice.
			w.cfg.Logger.Error("message stored in part, storing it whole", slog.Uint64("stream_seq", it.part.StreamSeq),
				slog.Int("rows", rows), slog.Int("stored", stored))
		}
		in.Add(it.part)
		inserted = append(inserted, it)
		first, last = min(first, it.part.StreamSeq), max(last, it.part.StreamSeq)
	}
	if in.Rows() > 0 {
		// The number of rows is part of the token: the same ends with other messages between them are
		// another insert.
		token := fmt.Sprintf("AUDIT:%d-%d:%d", first, last, in.Rows())
		if err := w.insertRows(ctx, token, &in, lookUp); err != nil {
			return nil, err
		}
		for _, it := range inserted {
			it.done = true
		}
		w.stats.inserts.Add(1)
	}
	w.stats.stored.Add(uint64(in.Rows()))
	w.stats.skipped.Add(uint64(skipped))
	w.stats.duplicates.Add(uint64(duplicates))
	w.stats.unrecorded.Add(uint64(unrecorded))
	tallies := make([]tally.Tally, len(items))
	for i, it := range items {
		tallies[i] = it.tally
	}
	// Of what was stored by another before, too: that one may have died before it could tell.
	if err := w.ledger.Put(ctx, tallies); err != nil {
		return nil, err
	}
	return items, nil
}

// errAway means that nobody can say whether the broker was started again.
var errAway = errors.New("the broker is away")

// given returns the items that are ours still, and whether any of them may have been stored before. What another run of
// the server gave is not ours: it may have given it to somebody else by now, or will.
func (w *Writer) given(server string, items []*item, again bool) (kept []*item, lookUp bool) {
	suspects, lost := w.suspects.Load(), 0
	for _, it := range items {
		if it.server != server && !it.done {
			it.until = time.Time{}
			lost++
			continue
		}
		lookUp = lookUp || !it.done && (again || it.suspect || suspects.has(it.server, it.part.StreamSeq))
		kept = append(kept, it)
	}
	if lost > 0 {
		w.cfg.Logger.Info("the broker was started again, messages that it gave before will come again", slog.Int("messages", lost))
	}
	return kept, lookUp
}

// lookUp returns how many rows the table has of each item. If inserts may be under way that nobody has a lease for any
// more, it waits for them before: those of others who were given messages by an earlier run of the server, and our own
// that failed.
func (w *Writer) lookUp(ctx context.Context, server string, items []*item, again bool) (map[uint64]int, error) {
	if again || w.awaited.Load() != server {
		if err := w.table.AwaitInserts(ctx); err != nil {
			return nil, fmt.Errorf("wait for inserts that are under way: %w", err)
		}
		w.awaited.Store(server)
	}
	parts := make([]codec.Part, 0, len(items))
	for _, it := range items {
		if !it.done {
			parts = append(parts, it.part)
		}
	}
	have, err := w.table.StoredRows(ctx, parts)
	if err != nil {
		return nil, fmt.Errorf("look up what is stored: %w", err)
	}
	return have, nil
}

// mostVanished bounds how often rows may be gone that were inserted.
const mostVanished = 5

// insertRows inserts under a token. If that may have been tried before, the table may leave the rows out because it
// knows the token, of an insert whose rows are there no more: an engine whose disk was full keeps the token of a part
// that it had to set aside. So they are looked for, and inserted under the next token if they are not there. The tokens
// are always the same ones in the same order, so that an insert that comes late is known, too.
func (w *Writer) insertRows(ctx context.Context, token string, in *codec.Insert, triedBefore bool) error {
	for n := 1; n <= mostVanished; n++ {
		next := token
		if n > 1 {
			next = fmt.Sprintf("%s:%d", token, n)
		}
		if err := w.table.Insert(ctx, next, in); err != nil || !triedBefore {
			return err
		}
		have, err := w.table.StoredRows(ctx, in.Parts())
		if err != nil {
			return fmt.Errorf("look up what was inserted: %w", err)
		}
		missing := 0
		for _, p := range in.Parts() {
			if have[p.StreamSeq] < p.Block.Rows() {
				missing++
			}
		}
		if missing == 0 {
			return nil
		}
		w.cfg.Logger.Warn("the table knew an insert whose rows it has not, inserting them under another token",
			slog.String("token", next), slog.Int("messages", missing))
	}
	return fmt.Errorf("insert %d events: %w", in.Rows(), errVanished)
}

// errVanished means that a table takes rows and has them not.
var errVanished = errors.New("the table takes them again and again, and has them not")

func (w *Writer) ack(it *item) {
	if err := w.acks.Publish(it.reply, []byte("+ACK")); err != nil {
		w.cfg.Logger.Warn("acknowledge failed, the message will come again", slog.Any("error", err))
	}
}
