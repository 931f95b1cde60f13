package engine

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A client that gives an insert up can't know whether it was carried out, or will be: the engine may have
// been stopped, or the request under way for long. Comments (the setting log_comment, which a server
// keeps in its log and nothing else) make it certain for whoever looks afterwards:
//
//   - An insert with [Until] is not begun after that time.
//   - A query with [AfterLate] waits for the inserts that were begun before their time and are still at it
//     after.
//   - A query with [AfterInserts] waits for all of them that are under way when it comes.
//
// So what a lookup after that time does not find is not stored any more by an insert before it.

// AfterLate is the comment of a query that is to see what late inserts did.
const AfterLate = "after late inserts"

// AfterInserts is the comment of a query that is to see what every insert did that is under way.
const AfterInserts = "after inserts"

const untilPrefix = "not begun after "

// Until is the comment of an insert that must not begin after a time, by the clock of this machine.
func Until(t time.Time) string { return untilPrefix + strconv.FormatInt(t.UnixMicro(), 10) }

// untilOf reads what Until wrote; zero is any time.
func untilOf(comment string) time.Time {
	text, ok := strings.CutPrefix(comment, untilPrefix)
	micros, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}

// inserts are those under way that have a time.
type inserts struct {
	mu      sync.Mutex
	running map[*insertUnderWay]struct{}
}

type insertUnderWay struct {
	until time.Time
	ended chan struct{}
}

// begin refuses an insert that comes too late. Whoever gets no error calls end.
func (i *inserts) begin(until time.Time) (end func(), err error) {
	if until.IsZero() {
		return func() {}, nil
	}
	u := &insertUnderWay{until, make(chan struct{})}
	i.mu.Lock()
	if i.running == nil {
		i.running = map[*insertUnderWay]struct{}{}
	}
	i.running[u] = struct{}{}
	i.mu.Unlock()
	end = func() {
		i.mu.Lock()
		delete(i.running, u)
		i.mu.Unlock()
		close(u.ended)
	}
	// Looked at when it is among them: whoever waits either waits for it, or comes before this.
	if late := time.Since(until); late > 0 {
		end()
		return nil, exceptionf(codeTimeoutExceeded, "The insert came %s after its client gave it up, and was not begun (TIMEOUT_EXCEEDED)", late)
	}
	return end, nil
}

// wait returns when the inserts have ended that a query with a comment is to come after.
func (i *inserts) wait(ctx context.Context, comment string) error {
	if comment != AfterLate && comment != AfterInserts {
		return nil
	}
	i.mu.Lock()
	var before []*insertUnderWay
	for u := range i.running {
		if comment == AfterInserts || time.Since(u.until) > 0 {
			before = append(before, u)
		}
	}
	i.mu.Unlock()
	for _, u := range before {
		select {
		case <-u.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
