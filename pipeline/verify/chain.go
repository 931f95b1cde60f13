package verify

import (
	"cmp"
	"slices"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// link is a manifest and the file it was read from.
type link struct {
	*seal.Sealed
	name string
	hash string // of its text
}

type chainOf struct {
	organization string
	trail        schema.Trail
}

// chains holds the manifests of each organization and trail against one another. broken are the names of
// manifests that could not be opened: what is next to a hole they made is not reported twice.
func chains(links []link, broken []string, o Options, r *Report) {
	byChain := map[chainOf][]link{}
	for _, l := range links {
		c := chainOf{l.Organization, l.Trail}
		byChain[c] = append(byChain[c], l)
	}
	keys := make([]chainOf, 0, len(byChain))
	for c := range byChain {
		keys = append(keys, c)
	}
	slices.SortFunc(keys, func(a, b chainOf) int {
		return cmp.Or(cmp.Compare(a.organization, b.organization), cmp.Compare(a.trail, b.trail))
	})
	for _, c := range keys {
		r.Series = append(r.Series, chain(byChain[c], broken, o, r))
	}
	if len(keys) == 0 && len(broken) == 0 && (!o.From.IsZero() || !o.To.IsZero()) {
		r.fault(r.Path, nil, ErrRange, "there is no partition in it")
	}
}

func chain(links []link, broken []string, o Options, r *Report) Series {
	slices.SortFunc(links, func(a, b link) int {
		return cmp.Or(a.HourStart.Compare(b.HourStart), cmp.Compare(a.Number, b.Number), cmp.Compare(a.name, b.name))
	})
	first, last := links[0], links[len(links)-1]
	s := Series{
		Organization: first.Organization, Trail: first.Trail, From: first.HourStart, To: last.HourEnd,
		First: first.Number, Last: last.Number, Continues: first.Previous, Hours: uint64(len(links)),
		Gaps: seal.JoinGaps([]seal.Gap{}, first.Gaps...),
	}
	fault := func(l link, format string, v ...any) { r.fault(l.name, hourOf(l.Sealed), ErrChain, format, v...) }
	if o.FromStart && first.Number != 1 {
		fault(first, "the chain begins with manifest number %d, not with 1: what came before is not here", first.Number)
	}
	s.Rows = first.Rows
	for i := 1; i < len(links); i++ {
		a, b := links[i-1], links[i]
		s.Rows += b.Rows
		s.Gaps = seal.JoinGaps(s.Gaps, b.Gaps...)
		missing := b.Number - a.Number - 1
		switch {
		case b.Number <= a.Number || b.HourStart.Before(a.HourEnd):
			fault(b, "fork: it is number %d, of the hour from %s to %s, but %s is number %d and goes to %s",
				b.Number, stamp(b.HourStart), stamp(b.HourEnd), a.name, a.Number, stamp(a.HourEnd))
		case missing > 0 && between(broken, a.name, b.name):
			// Those that are there and could not be opened were reported.
		case missing > 0:
			fault(b, "%d manifests are missing before it: it is number %d, the one before it, %s, is number %d; nothing is known from %s to %s",
				missing, b.Number, a.name, a.Number, stamp(a.HourEnd), stamp(b.HourStart))
		case !b.HourStart.Equal(a.HourEnd):
			fault(b, "it follows %s by its number, but nothing speaks of the time from %s to %s", a.name, stamp(a.HourEnd), stamp(b.HourStart))
		case b.Previous != a.hash:
			fault(b, "fork: it follows a manifest whose text has SHA-256 %s, but %s has %s", b.Previous, a.name, a.hash)
		}
		if b.Generation < a.Generation {
			r.fault(b.name, hourOf(b.Sealed), seal.ErrRetired, "it is sealed with an older key than the manifest before it")
		}
	}
	if !o.From.IsZero() && first.HourStart.After(o.From) {
		r.fault(first.name, hourOf(first.Sealed), ErrRange, "%s/%s begins at %s, after %s", s.Organization, s.Trail, stamp(s.From), stamp(o.From))
	}
	if !o.To.IsZero() && last.HourEnd.Before(o.To) {
		r.fault(last.name, hourOf(last.Sealed), ErrRange, "%s/%s ends at %s, before %s", s.Organization, s.Trail, stamp(s.To), stamp(o.To))
	}
	return s
}

// between tells whether one of the names sorts between two.
func between(names []string, a, b string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return a < n && n < b })
}

func stamp(t time.Time) string { return t.Format(time.RFC3339) }
