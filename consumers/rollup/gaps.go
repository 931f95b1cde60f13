package rollup

import (
	"context"
	"slices"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// off finds the gaps of an hour in which trails were switched off. An hour is closed when the broker's clock is past
// its end, so that whoever asks, and whenever, is told the same: what is turned later is not in it, and a trail that
// is off then is off until the end.
func (r *Rollup) off(ctx context.Context, h *hour) error {
	if r.cfg.Recording == nil {
		return nil
	}
	now, err := r.cfg.Recording.Now(ctx)
	if err != nil {
		return err
	}
	now.AnyUnknown(func(organization string, err error) {
		for _, t := range schema.Trails {
			h.unclear[series{organization, t}] = err
		}
	})
	h.off = map[series][]seal.Gap{}
	now.Each(h.start, h.start.Add(h.length), func(organization string, trail schema.Trail, g schema.RecordingGap) {
		s := series{organization, trail}
		h.off[s] = append(h.off[s], seal.Gap{From: g.From.UTC(), To: g.To.UTC(), By: g.By, Reason: seal.ReasonOff + g.Reason})
	})
	return nil
}

// gapsOf are those that the manifest of a series states: where it was switched off, and where messages were lost.
// Gaps do not overlap, so that of a loss only what lies beside is a gap of its own; one that lies within is stated with
// the gap that it is in.
func (h *hour) gapsOf(s series) []seal.Gap {
	all := slices.Clone(h.off[s])
	for _, loss := range together(slices.Concat(h.gaps, h.gapsBy[s])) {
		within, apart, left := -1, false, loss.From
		beside := func(to time.Time) {
			if left.Before(to) {
				all, apart = append(all, seal.Gap{From: left, To: to, By: loss.By, Reason: loss.Reason}), true
			}
		}
		for i, off := range h.off[s] {
			if off.From.Before(loss.To) && off.To.After(loss.From) {
				beside(off.From)
				within, left = i, off.To
			}
		}
		if beside(loss.To); !apart && within >= 0 {
			all[within].Reason += "; " + loss.Reason + " (" + loss.By + ")"
		}
	}
	slices.SortFunc(all, func(a, b seal.Gap) int { return a.From.Compare(b.From) })
	return all
}

// together makes one gap of losses that overlap.
func together(all []seal.Gap) []seal.Gap {
	slices.SortStableFunc(all, func(a, b seal.Gap) int { return a.From.Compare(b.From) })
	var apart []seal.Gap
	for _, g := range all {
		n := len(apart)
		if n == 0 || !g.From.Before(apart[n-1].To) {
			apart = append(apart, g)
			continue
		}
		before := &apart[n-1]
		before.Reason += "; " + g.Reason
		if g.By != before.By {
			before.Reason += " (" + g.By + ")"
		}
		if g.To.After(before.To) {
			before.To = g.To
		}
	}
	return apart
}
