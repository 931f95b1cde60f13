package api

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/kansa-audit/kansa/pipeline/rate"
)

// Limits say how often something may be asked for. The zero value of a field is no bound.
type Limits struct {
	// PerSecond bounds what one key, or one person who is signed in, asks for; ten seconds' worth may come at once.
	PerSecond int
	// AddressPerSecond bounds the same for an address, whoever asks.
	AddressPerSecond int
	// SignInsPerMinute bounds an address's attempts to sign in, and its requests with a key that is not known.
	SignInsPerMinute int
}

// limits count.
type limits struct{ who, address, signIn *rate.Limiter }

func newLimits(l Limits, now func() time.Time) *limits {
	return &limits{
		who:     rate.New(l.PerSecond, time.Second, 10*l.PerSecond, now),
		address: rate.New(l.AddressPerSecond, time.Second, 10*l.AddressPerSecond, now),
		signIn:  rate.New(l.SignInsPerMinute, time.Minute, l.SignInsPerMinute, now),
	}
}

func retryAfter(set func(name, value string), wait time.Duration) {
	set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
}

// bounded has h answer 429 where an address asks too often.
func (l *limits) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait, _ := l.address.Take(rate.Network(addressOf(r.RemoteAddr))); wait > 0 {
			retryAfter(w.Header().Set, wait)
			answer(w, http.StatusTooManyRequests, "Too many requests", "Wait a moment, and try again.")
			return
		}
		h.ServeHTTP(w, r)
	})
}
