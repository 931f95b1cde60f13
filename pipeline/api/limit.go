package api

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/producers/turns"
)

// Limits say how often something may be asked for. The zero value of a field is no bound.
type Limits struct {
	// PerSecond bounds what one key, or one person who is signed in, asks for; ten seconds' worth may come at once.
	PerSecond int
	// AddressPerSecond bounds the same for an address, whoever asks.
	AddressPerSecond int
	// SignInsPerMinute bounds an address's attempts to sign in, and its requests with a key that is not known.
	SignInsPerMinute int
	// Tails, Logs and Downloads bound what is open at once.
	Tails, Logs, Downloads Slots
	// Queries bounds the queries that run at once. Others wait for their turn.
	Queries Queries
	// Refused counts what is refused. May be nil.
	Refused *rate.Refused
}

// Slots bound how much is open at once: of one key, person or link, of one organization, and in all.
type Slots struct{ Each, Organization, Total int }

func (s Slots) slots() *rate.Slots { return rate.NewSlots(s.Each, s.Organization, s.Total) }

// Queries bound how many queries of pages run at once: of one organization, and in all. Of each organization, some may wait.
type Queries struct{ Organization, Total, Waiting int }

func (q Queries) turns() *turns.Turns {
	unbounded := func(n int) int {
		if n == 0 {
			return math.MaxInt
		}
		return n
	}
	return turns.New(unbounded(q.Organization), unbounded(q.Total), unbounded(q.Waiting))
}

// limits count.
type limits struct {
	who, address, signIn *rate.Limiter
	// name bounds the attempts to sign in by a name from networks that it never signed in from.
	name                   *rate.Limiter
	tails, logs, downloads *rate.Slots
	queries                *turns.Turns
	// looks bounds the queries of tails, so that they leave the engine to others; pace how soon one follows another of its organization.
	looks, pace *turns.Turns
	refused     *rate.Refused
}

const (
	// looksAtOnce is how many tails query the engine at once, each for another organization.
	looksAtOnce = 2
	// lookPace is how much time the tails of one organization leave between the begins of two queries. Many tails look less often each.
	lookPace = 200 * time.Millisecond
)

// slotAgain is when to ask again where too much is open.
const slotAgain = 5 * time.Second

func newLimits(l Limits, now func() time.Time) *limits {
	return &limits{
		who:     rate.New(l.PerSecond, time.Second, 10*l.PerSecond, now),
		address: rate.New(l.AddressPerSecond, time.Second, 10*l.AddressPerSecond, now),
		signIn:  rate.New(l.SignInsPerMinute, time.Minute, l.SignInsPerMinute, now),
		name:    rate.New(l.SignInsPerMinute, time.Minute, 3*l.SignInsPerMinute, now),
		tails:   l.Tails.slots(), logs: l.Logs.slots(), downloads: l.Downloads.slots(),
		queries: l.Queries.turns(), looks: turns.New(1, looksAtOnce, math.MaxInt), pace: turns.New(1, math.MaxInt, math.MaxInt), refused: l.Refused,
	}
}

func retryAfter(set func(name, value string), wait time.Duration) {
	set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
}

// bounded has h answer 429 where an address asks too often.
func (l *limits) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait, _ := l.address.Take(rate.Network(request.From(r.Context()).IP)); wait > 0 {
			l.refused.Add("address")
			retryAfter(w.Header().Set, wait)
			answer(w, http.StatusTooManyRequests, "Too many requests", "Wait a moment, and try again.")
			return
		}
		h.ServeHTTP(w, r)
	})
}
