package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// endpoints are several ways to the same data. The one that answered last is tried first, so that one that is down
// costs time once, not with every connection.
type endpoints struct{ last atomic.Int64 }

// patience bounds the wait for one endpoint: the driver bounds only that for all of them, and one that takes
// connections and says nothing would use it up.
const patience = 3 * time.Second

func (e *endpoints) dial(ctx context.Context, _ int, opt *clickhouse.Options, dial clickhouse.Dial) (r clickhouse.DialResult, err error) {
	first := int(e.last.Load())
	var errs []error
	for i := range opt.Addr {
		at := (first + i) % len(opt.Addr)
		one, cancel := context.WithTimeout(ctx, patience)
		r, err = dial(one, opt.Addr[at], opt)
		cancel()
		if err == nil {
			e.last.Store(int64(at))
			return r, nil
		}
		errs = append(errs, err)
	}
	return r, errors.Join(errs...)
}
