package rollup

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrDisagree means that what the writer took from the stream, what the table has and what the file says of
// an hour are not the same. Nothing is signed or announced, and the hour stays open for this organization
// and trail until it is repaired.
var ErrDisagree = errors.New("the accounts of an hour disagree")

// ErrLost means that the stream has lost messages and the ledger has no entry of them. Whose events were in them is not
// known, so nobody's hour is signed until somebody accepts the loss.
var ErrLost = errors.New("messages of the stream are lost")

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
	off      map[series][]seal.Gap // in which they were switched off
	unclear  map[series]error      // entries of the ledger that contradict each other, or switches that cannot be read
	accounting
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
		for i := range h.unstored {
			if u := &h.unstored[i]; !u.Late && !yield(series{u.Organization, u.Trail}) {
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

// err is what holds up a series before anything is made of the hour, or nil.
func (h *hour) err(s series) error {
	if err := h.unclear[s]; errors.Is(err, tally.ErrContradiction) {
		return fmt.Errorf("%w; kansa repair --fix takes the stream's count", err)
	} else if err != nil {
		return err
	}
	return h.accounting.err(s)
}

// account asks the ledger and the table about the hour at a position. floor is the place in the stream up to
// which all is acknowledged.
func (r *Rollup) account(ctx context.Context, at position, floor uint64) (*hour, error) {
	h := &hour{start: at.next, length: r.cfg.Hour, accounts: map[series]account{}, unclear: map[series]error{}}
	end := at.next.Add(r.cfg.Hour)
	tallies, after, err := r.ledger.Between(ctx, at.next, end)
	if err != nil {
		return nil, err
	}
	missing, err := r.unaccounted(ctx, at, end, floor, tallies, after)
	if err != nil {
		return nil, err
	}
	h.accounting = *missing
	for i := range tallies {
		t := &tallies[i]
		h.lastSeq = max(h.lastSeq, t.StreamSeq)
		s := series{t.Organization, t.Trail}
		if i > 0 {
			if err := tally.Contradicts(&tallies[i-1], t); err != nil {
				h.unclear[s] = err
				continue
			}
		}
		if t.Rows > 0 {
			a := h.accounts[s]
			a.stream.Merge(seal.Digest{Rows: t.Rows, Sum: t.Sum})
			h.accounts[s] = a
		}
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
