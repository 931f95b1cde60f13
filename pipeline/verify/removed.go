package verify

import (
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// wasRemoved tells whether the file of a partition is not there because it was removed on purpose. While it is still
// there, a statement says only that it will be.
func wasRemoved(l *files, k link, there bool, ring *seal.Ring) (bool, error) {
	f, said := l.removed[k.name[:len(k.name)-len(schema.ManifestSuffix)]]
	if !said {
		return false, nil
	}
	data, err := f.small()
	if err != nil {
		return false, err
	}
	r, err := ring.OpenRemoval(data)
	if err != nil {
		return false, err
	}
	if err := r.Of(k.Manifest, k.hash); err != nil {
		return false, err
	}
	return !there, nil
}

// removals adds up what was removed.
type removals struct {
	partitions, rows uint64
	first, last      time.Time
}

func (g *removals) add(s *seal.Sealed) {
	if g.partitions == 0 || s.HourStart.Before(g.first) {
		g.first = s.HourStart
	}
	if s.HourEnd.After(g.last) {
		g.last = s.HourEnd
	}
	g.partitions++
	g.rows += s.Rows
}

func (g *removals) note(r *Report) {
	if g.partitions > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d partitions with %d events, from %s to %s, were removed by retention: their manifests say what was in them",
			g.partitions, g.rows, stamp(g.first), stamp(g.last)))
	}
}
