package rollup

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrDisagree means that what the writer took from the stream, what the table has and what the file says of
// an hour are not the same. Nothing is signed or announced, and the hour stays open for this organization
// and trail until it is repaired.
var ErrDisagree = errors.New("the accounts of an hour disagree")

// ErrLost means that the stream has lost messages that the writer did not get, or that the writer did not
// account for some it got. Whose events were in them is not known, so that nobody's hour is signed.
var ErrLost = errors.New("messages of the stream are not accounted for")

// Ledger is the writer's account of the messages of AUDIT.
type Ledger interface {
	// Between returns the tallies of the messages that were recorded from one instant up to, and without,
	// another, each once, in the order of the stream; and the first of those recorded later, if any.
	Between(ctx context.Context, from, to time.Time) (tallies []tally.Tally, after *tally.Tally, err error)
}

// hour is what is known of a closed hour before anything is made of it.
type hour struct {
	start    time.Time
	length   time.Duration
	accounts map[series]account
	lastSeq  uint64                // of the messages in it, or before it if it has none
	gaps     []seal.Gap            // in which messages were lost, of whom is not known
	off      map[series][]seal.Gap // in which they were switched off
}

// series visits those that there is something to say of, some of them twice.
func (h *hour) series() iter.Seq[series] {
	return func(yield func(series) bool) {
		for s := range h.accounts {
			if !yield(s) {
				return
			}
		}
		for s := range h.off {
			if !yield(s) {
				return
			}
		}
	}
}

func (h *hour) partition(s series) schema.Partition {
	return schema.Partition{Organization: s.organization, Trail: s.trail, Hour: h.start, Length: h.length}
}

// account is what two of the three who count say of a series.
type account struct {
	stream seal.Digest
	table  Count
	final  bool // the table has rows twice, and only without them it says the same as the stream
}

func (a account) disagree(file *seal.Digest) error {
	says := "there is no file"
	if file != nil {
		says = "the file has " + file.String()
	}
	return fmt.Errorf("%w: the stream had %s events, the table has %s, %s (events:sum of their hashes); kansa repair says which messages it is about",
		ErrDisagree, a.stream, a.table.Digest, says)
}

// account asks the ledger and the table about the hour at a position. floor is the place in the stream up to
// which all is acknowledged.
func (r *Rollup) account(ctx context.Context, at position, floor uint64) (*hour, error) {
	h := &hour{start: at.next, length: r.cfg.Hour, accounts: map[series]account{}, lastSeq: at.seq}
	end := at.next.Add(r.cfg.Hour)
	tallies, after, err := r.ledger.Between(ctx, at.next, end)
	if err != nil {
		return nil, err
	}
	for i := range tallies {
		t := &tallies[i]
		h.lastSeq = max(h.lastSeq, t.StreamSeq)
		if t.Rows > 0 {
			s := series{t.Organization, t.Trail}
			a := h.accounts[s]
			a.stream.Merge(seal.Digest{Rows: t.Rows, Sum: t.Sum})
			h.accounts[s] = a
		}
	}
	if h.gaps, err = r.unbroken(ctx, at, end, floor, tallies, after); err != nil {
		return nil, err
	}
	if err := r.off(ctx, h); err != nil {
		return nil, err
	}
	if err := r.ask(ctx, h, false); err != nil {
		return nil, err
	}
	for _, a := range h.accounts {
		if a.stream != a.table.Digest && a.table.Rows > a.stream.Rows {
			return h, r.ask(ctx, h, true)
		}
	}
	return h, nil
}

// ask adds what the table says. With final it says so only where it did not agree before.
func (r *Rollup) ask(ctx context.Context, h *hour, final bool) error {
	counts, err := r.table.Counts(ctx, h.start, h.start.Add(h.length), final)
	if err != nil {
		return err
	}
	for _, c := range counts {
		s := series{c.Organization, c.Trail}
		a := h.accounts[s]
		if !final || a.stream != a.table.Digest {
			a.table, a.final = c, final
			h.accounts[s] = a
		}
	}
	return nil
}

// most bounds how many messages are looked for one by one.
const most = 1000

// unbroken sees to it that every message of the hour has a tally: they are numbered without a gap. It returns
// the gaps that somebody has accepted.
func (r *Rollup) unbroken(ctx context.Context, at position, end time.Time, floor uint64, tallies []tally.Tally, after *tally.Tally) ([]seal.Gap, error) {
	losses, err := r.progress.Losses(ctx)
	if err != nil {
		return nil, err
	}
	var gaps []seal.Gap
	last, lastTime := at.seq, at.next
	between := func(next uint64, nextTime time.Time) error {
		// Beyond the floor, messages of one lane are stored before earlier ones of the other.
		next = min(next, floor+1)
		if last == 0 || next <= last+1 {
			return nil
		}
		for seq := last + 1; seq < next; seq++ {
			if i := slices.IndexFunc(losses, func(l Loss) bool { return l.First <= seq && seq <= l.Last }); i >= 0 {
				l := losses[i]
				if lastTime.Before(end) {
					gaps = lossGap(gaps, l, lastTime.UTC(), minTime(nextTime, end).UTC())
				}
				seq = l.Last
				continue
			}
			if seq-last > most {
				return fmt.Errorf("%w: %d to %d", ErrLost, last+1, next-1)
			}
			recorded, ok, err := r.floor.Recorded(ctx, seq)
			switch {
			case err != nil:
				return err
			case !ok:
				return fmt.Errorf("%w: message %d is neither in the stream nor in the writer's account (from %d to %d none is); "+
					"kansa repair says more", ErrLost, seq, last+1, next-1)
			case recorded.Before(at.next) && seq > at.seq:
				return fmt.Errorf("%w: message %d came after the hour was sealed that its time, %s, is in: the clocks of the broker's servers are "+
					"further apart than rollup.grace. Its events are in the table and in no partition; kansa repair --accept goes on",
					ErrLost, seq, recorded.Format(time.RFC3339Nano))
			case !recorded.Before(at.next) && recorded.Before(end):
				return fmt.Errorf("%w: message %d was acknowledged, and the writer's account does not have it; kansa repair says more", ErrLost, seq)
			}
		}
		return nil
	}
	if after != nil {
		tallies = append(slices.Clip(tallies), *after)
	}
	for i := range tallies {
		t := &tallies[i]
		if err := between(t.StreamSeq, t.RecordedAt); err != nil {
			return nil, err
		}
		last, lastTime = t.StreamSeq, t.RecordedAt
	}
	if after == nil {
		if err := between(floor+1, end); err != nil {
			return nil, err
		}
	}
	return gaps, nil
}

// lossGap adds the gap of a loss. Where it leaves no time between the messages beside it, it is stated
// together with the one before.
func lossGap(gaps []seal.Gap, l Loss, from, to time.Time) []seal.Gap {
	reason := fmt.Sprintf("messages %d to %d of the stream were lost: %s", l.First, l.Last, l.Reason)
	if n := len(gaps); n > 0 && !gaps[n-1].To.Before(to) {
		gaps[n-1].Reason += "; " + reason
		return gaps
	}
	if !from.Before(to) {
		from = to.Add(-time.Microsecond)
	}
	return append(gaps, seal.Gap{From: from, To: to, By: l.By, Reason: reason})
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
