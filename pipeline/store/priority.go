package store

import (
	"maps"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/engine"
)

// class is how urgent a query is. A page must not wait for its part of the processor behind all that other organizations ask for, or
// behind background work.
//
// A query with a lower priority pauses before each block that it reads while one with a higher priority runs. Its threads have a higher
// nice value, too, because a block can take long. For that ClickHouse needs CAP_SYS_NICE; without it, the embedded
// engine has such a query use half of the processors.
type class struct {
	priority int // 1 is the highest; 0 neither pauses nor makes others pause
	nice     int
}

var (
	urgent     = class{1, 0}  // pages and charts
	following  = class{2, 5}  // live tails
	searching  = class{3, 10} // for a text, which has no index
	streaming  = class{4, 15} // of all events
	background = class{0, 10} // inserts of the bulk lane and partitions: they may be late, and must not pause
)

// pause bounds, in milliseconds, how long a query pauses before each block that it reads, lest it never end.
const pause = 100

// settings returns s with those of the class.
func (c class) settings(s clickhouse.Settings) clickhouse.Settings {
	s = maps.Clone(s)
	if s == nil {
		s = clickhouse.Settings{}
	}
	if c.priority > 0 {
		s["priority"], s["low_priority_query_wait_time_ms"] = c.priority, pause
	}
	if c.nice > 0 {
		s[engine.SettingNice] = c.nice
	}
	return s
}
