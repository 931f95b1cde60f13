package rollup

import (
	"context"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Beginning is the first hour that there is a partition of, of an organization's trail.
type Beginning struct {
	Organization string
	Trail        schema.Trail
	First        time.Time
}

// Beginnings lists all of them, in no order.
func (p Progress) Beginnings(ctx context.Context) ([]Beginning, error) {
	known, err := p.known(ctx, nil)
	if err != nil {
		return nil, err
	}
	all := make([]Beginning, 0, len(known))
	for s, first := range known {
		all = append(all, Beginning{s.organization, s.trail, first})
	}
	return all, nil
}
