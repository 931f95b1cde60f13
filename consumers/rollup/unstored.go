package rollup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrUnstored means that messages of an organization's trail were acknowledged although the ledger has no entry of them:
// another client settled them, the writer died at the last permitted delivery, or the ledger lost entries. The stream has the messages,
// so [Unstored] can be stored from it.
var ErrUnstored = errors.New("acknowledged messages have no ledger entry")

// ErrLate means that a message came after the hour was sealed that its time is in.
var ErrLate = errors.New("a message came after its hour was sealed")

// Run is messages of the stream that follow one another.
type Run struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

func (r Run) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// most is how many runs an error or a record names.
const most = 20

// Runs writes runs as kansa repair --accept takes them, the first ones if there are many.
func Runs(all []Run) string {
	names := make([]string, min(len(all), most))
	for i := range names {
		names[i] = all[i].String()
	}
	text := strings.Join(names, ",")
	if left := len(all) - len(names); left > 0 {
		text += fmt.Sprintf(" and %d more ranges", left)
	}
	return text
}

// addTo appends a message to runs that are in order.
func addTo(all []Run, first, last uint64) []Run {
	if n := len(all); n > 0 && all[n-1].Last+1 == first {
		all[n-1].Last = last
		return all
	}
	return append(all, Run{first, last})
}

// Unstored is a message that the stream has and the ledger has no entry of, although it was acknowledged.
type Unstored struct {
	floor.Message
	Organization string
	Trail        schema.Trail
	// Late says that its hour was sealed before it came: it belongs in no partition any more.
	Late bool
}

// ownerOf finds the organization and trail of a message. One on a subject that names neither can only become a dead letter; it is
// the operator's, whose trail waits for it.
func ownerOf(subject string) series {
	organization, trail, err := schema.ParseEventSubject(subject)
	if err != nil {
		return series{schema.SystemOrganization, schema.Activity}
	}
	return series{organization, trail}
}

// accounting is what became of the messages that the ledger has no entry of.
type accounting struct {
	gaps     []seal.Gap            // accepted losses, of unknown organizations
	gapsBy   map[series][]seal.Gap // accepted losses of one organization's trail
	unstored []Unstored
	lost     []Run  // not accepted; of unknown organizations
	lastSeq  uint64 // of the hour
}

// err is what holds up a series, or nil.
func (a *accounting) err(s series) error {
	var runs, late []Run
	n := 0
	for i := range a.unstored {
		u := &a.unstored[i]
		switch {
		case u.Organization != s.organization || u.Trail != s.trail:
		case u.Late:
			late = addTo(late, u.Seq, u.Seq)
		default:
			runs = addTo(runs, u.Seq, u.Seq)
			n++
		}
	}
	switch {
	case n == 1:
		return fmt.Errorf("%w: message %s of %s/%s was acknowledged but never stored, or its entry is gone; the stream has it: kansa repair --fix stores it", ErrUnstored, Runs(runs), s.organization, s.trail)
	case n > 1:
		return fmt.Errorf("%w: %d messages of %s/%s (%s) were acknowledged but never stored, or their entries are gone; the stream has them: kansa repair --fix stores them", ErrUnstored, n, s.organization, s.trail, Runs(runs))
	case len(late) > 0:
		return fmt.Errorf("%w: message %s of %s/%s: the clocks of the broker's servers are further apart than rollup.grace. Its events are in no partition; "+
			"kansa repair --accept %s goes on and has the manifests say so", ErrLate, Runs(late), s.organization, s.trail, Runs(late))
	}
	return nil
}

// lostErr is what holds up everybody, or nil.
func (a *accounting) lostErr() error {
	if len(a.lost) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s: the stream has lost them and the ledger has no entry, so nobody can say whose events they had. "+
		"If they are gone for good, kansa repair --accept %s goes on without them and has the manifests say so", ErrLost, Runs(a.lost), Runs(a.lost))
}

// unaccounted finds the messages of an hour that the ledger has no entry of: the messages of the stream are numbered without a gap.
func (r *Rollup) unaccounted(ctx context.Context, at position, end time.Time, settled uint64, tallies []tally.Tally, after *tally.Tally) (*accounting, error) {
	a := &accounting{gapsBy: map[series][]seal.Gap{}, lastSeq: at.seq}
	losses, err := r.progress.Losses(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(losses, func(a, b Loss) int { return cmp.Compare(a.First, b.First) })
	last, lastTime, known := at.seq, at.next, at.seq > 0
	if !known {
		// Nothing is known of what came before; of what came since, everything has to be accounted for.
		switch first, ok, err := r.floor.Since(ctx, at.next); {
		case err != nil:
			return nil, err
		case ok:
			last, known = first.Seq-1, true
		}
	}
	if after != nil {
		tallies = append(slices.Clip(tallies), *after)
	}
	for i := range tallies {
		t := &tallies[i]
		if known {
			if err := r.hole(ctx, a, at, end, Run{last + 1, min(t.StreamSeq, settled+1) - 1}, lastTime, t.RecordedAt, losses); err != nil {
				return nil, err
			}
		}
		last, lastTime, known = max(last, t.StreamSeq), t.RecordedAt, true
	}
	if after == nil && known {
		if err := r.hole(ctx, a, at, end, Run{last + 1, settled}, lastTime, end, losses); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// hole looks at messages without an entry. from and to are the times of its neighbours.
func (r *Rollup) hole(ctx context.Context, a *accounting, at position, end time.Time, h Run, from, to time.Time, losses []Loss) error {
	for first := h.First; first <= h.Last; {
		open := Run{first, h.Last}
		if i := slices.IndexFunc(losses, func(l Loss) bool { return l.Last >= first && l.First <= h.Last }); i >= 0 {
			l := losses[i]
			if l.First <= first {
				if from.Before(end) {
					a.accept(l, from.UTC(), minTime(to, end).UTC())
				}
				first = l.Last + 1
				continue
			}
			open.Last = l.First - 1
		}
		next := open.First
		if err := r.floor.Messages(ctx, open.First, open.Last, func(m floor.Message) error {
			if m.Seq > next {
				a.lost = addTo(a.lost, next, m.Seq-1)
			}
			next = m.Seq + 1
			owner := ownerOf(m.Subject)
			u := Unstored{Message: m, Organization: owner.organization, Trail: owner.trail}
			switch {
			case m.Recorded.Before(at.next):
				if u.Late = true; at.seq > 0 {
					a.unstored = append(a.unstored, u)
				}
			case m.Recorded.Before(end):
				a.unstored = append(a.unstored, u)
				a.lastSeq = max(a.lastSeq, m.Seq)
			}
			return nil
		}); err != nil {
			return err
		}
		if next <= open.Last {
			a.lost = addTo(a.lost, next, open.Last)
		}
		first = open.Last + 1
	}
	return nil
}

// accept states an accepted loss.
func (a *accounting) accept(l Loss, from, to time.Time) {
	if l.Organization == "" {
		a.gaps = lossGap(a.gaps, l, from, to)
		return
	}
	s := series{l.Organization, l.Trail}
	a.gapsBy[s] = lossGap(a.gapsBy[s], l, from, to)
}

// Open is what is known of the messages that hold up sealing.
type Open struct {
	Unstored []Unstored
	Lost     []Run // not accepted, and of unknown organizations
}

// Unaccounted lists the messages that hold up sealing: of the hours that blocked series wait for, and of all that is not
// sealed yet, up to the writers' watermark.
func (r *Rollup) Unaccounted(ctx context.Context) (*Open, error) {
	_, settled, err := r.floor.Closed(ctx)
	if err != nil {
		return nil, fmt.Errorf("find how far the writers have come: %w", err)
	}
	at, err := r.progress.position(ctx)
	if err != nil || at.next.IsZero() {
		return &Open{}, err
	}
	blocks, err := r.progress.blocks(ctx)
	if err != nil {
		return nil, err
	}
	open := &Open{}
	seen := map[uint64]bool{}
	look := func(from position, end time.Time, of map[series]bool) error {
		tallies, after, err := r.ledger.Between(ctx, from.next, end)
		if err != nil {
			return err
		}
		a, err := r.unaccounted(ctx, from, end, settled, tallies, after)
		if err != nil {
			return err
		}
		for _, u := range a.unstored {
			if of != nil && !of[series{u.Organization, u.Trail}] || seen[u.Seq] {
				continue
			}
			seen[u.Seq] = true
			open.Unstored = append(open.Unstored, u)
		}
		for _, l := range a.lost {
			if !seen[l.First] {
				seen[l.First] = true
				open.Lost = append(open.Lost, l)
			}
		}
		return nil
	}
	// Others have gone on beyond the hour that a blocked series waits for.
	waiting := map[position]map[series]bool{}
	for s, b := range blocks {
		from := position{b.Hour, b.After}
		if waiting[from] == nil {
			waiting[from] = map[series]bool{}
		}
		waiting[from][s] = true
	}
	for from, of := range waiting {
		if err := look(from, at.next, of); err != nil {
			return nil, err
		}
	}
	// A message that is not settled yet is beyond the watermark.
	if err := look(at, time.Now().Add(24*time.Hour), nil); err != nil {
		return nil, err
	}
	slices.SortFunc(open.Unstored, func(a, b Unstored) int { return cmp.Compare(a.Seq, b.Seq) })
	slices.SortFunc(open.Lost, func(a, b Run) int { return cmp.Compare(a.First, b.First) })
	return open, nil
}

// Watched is how far a rollup has held the ledger against the stream before hours are over. It belongs to one goroutine.
type Watched struct {
	at position
}

// Watch finds messages without a ledger entry before their hours are over: among what was settled since the last call, and since the first
// one that was found. Hours of blocked series are left out.
func (r *Rollup) Watch(ctx context.Context, w *Watched) (*Open, error) {
	until, settled, err := r.floor.Closed(ctx)
	if err != nil {
		return nil, fmt.Errorf("find how far the writers have come: %w", err)
	}
	at, err := r.progress.position(ctx)
	if err != nil || at.next.IsZero() {
		return &Open{}, err
	}
	if at.seq > w.at.seq || w.at.next.IsZero() {
		w.at = at // hours that are sealed, or blocked, are not watched any more
	}
	if settled <= w.at.seq {
		return &Open{}, nil
	}
	end := time.Now().Add(24 * time.Hour)
	tallies, after, err := r.ledger.Between(ctx, w.at.next, end)
	if err != nil {
		return nil, err
	}
	a, err := r.unaccounted(ctx, w.at, end, settled, tallies, after)
	if err != nil {
		return nil, err
	}
	a.unstored = slices.DeleteFunc(a.unstored, func(u Unstored) bool { return u.Late })
	if len(a.unstored)+len(a.lost) == 0 {
		// The next messages were recorded after until, but for clocks that differ.
		w.at = position{until.Add(-time.Minute), settled}
	}
	return &Open{a.unstored, a.lost}, nil
}

// Err says of messages whose hours are not over that they will hold up their organizations' trails, or nil.
func (o *Open) Err() error {
	if len(o.Unstored) == 0 {
		return nil
	}
	u := &o.Unstored[0]
	what := fmt.Sprintf("message %d of %s/%s was", u.Seq, u.Organization, u.Trail)
	if n := len(o.Unstored); n > 1 {
		what = fmt.Sprintf("%d messages, the first of them %d of %s/%s, were", n, u.Seq, u.Organization, u.Trail)
	}
	return fmt.Errorf("%w: %s acknowledged but never stored, or the ledger entry is gone; the hour cannot be sealed until kansa repair --fix stores what is missing", ErrUnstored, what)
}

// LostErr says of lost messages of unknown organizations that they will hold up all sealing, or nil.
func (o *Open) LostErr() error { return (&accounting{lost: o.Lost}).lostErr() }
