package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Path is where a [Gateway] is meant to be found.
const Path = "/api/v1/events"

// Gateway is the handler of the HTTP way in. It is safe for concurrent use, and holds nothing that would have
// to be closed; the publisher is to be closed after the last request.
type Gateway struct {
	cfg       Config
	publisher *producers.Publisher
	memory    *memory
	known     known
	requests  atomic.Int64

	accepted, rejected, unrecorded, panics atomic.Uint64
	answers                                answers
}

// New returns a gateway in front of a publisher. The publisher's RetryFor is how long a request waits for a
// broker that does not answer: some seconds less than the timeout of the clients.
func New(publisher *producers.Publisher, cfg Config) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("gateway settings: %w", err)
	}
	return &Gateway{
		cfg: cfg, publisher: publisher, memory: newMemory(cfg.Memory, cfg.ClientMemory), known: known{window: cfg.Window},
	}, nil
}

// Stats counts since the gateway was made.
type Stats struct {
	Accepted uint64 // events on the broker's disk
	Rejected uint64 // events told not to be
	// Unrecorded are events that were taken and left out, because their trail is switched off.
	Unrecorded uint64
	// Panics are requests that failed by a fault of the gateway.
	Panics uint64
	// Answers are requests, by the status that they were answered with.
	Answers map[int]uint64
}

// Stats returns the counts.
func (g *Gateway) Stats() Stats {
	return Stats{Accepted: g.accepted.Load(), Rejected: g.rejected.Load(), Unrecorded: g.unrecorded.Load(), Panics: g.panics.Load(), Answers: g.answers.counts()}
}

// answers counts requests by status.
type answers [600]atomic.Uint64

func (a *answers) counts() map[int]uint64 {
	all := map[int]uint64{}
	for code := range a {
		if n := a[code].Load(); n > 0 {
			all[code] = n
		}
	}
	return all
}

// counted counts the answer that is given through it.
type counted struct {
	http.ResponseWriter
	answers *answers
}

func (c counted) WriteHeader(code int) {
	if code >= 200 && code < len(c.answers) {
		c.answers[code].Add(1)
	}
	c.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// ServeHTTP implements [http.Handler].
func (g *Gateway) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	w := counted{to, &g.answers}
	rq := &request{g: g, r: r, began: g.cfg.Now(), id: requestID(r.Header.Get("X-Request-Id"), g.cfg.Now)}
	w.Header().Set("X-Request-Id", rq.id)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(v)
		}
		g.panics.Add(1)
		g.cfg.Logger.Error("request failed by a fault of the gateway", slog.String("request_id", rq.id),
			slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
		rq.problem(newProblem(http.StatusInternalServerError, "internal", "A fault of the gateway", "What became of the events is not known.").
			do("send them again with the same Idempotency-Key, and tell the request's id to those who run it")).write(w)
	}()
	if err := rq.serve(w); err != nil {
		var p *problem
		if !errors.As(err, &p) { // no such is made
			p = newProblem(http.StatusInternalServerError, "internal", "A fault of the gateway", "")
		}
		p = rq.problem(p)
		rq.log(p.Status, p.Title+": "+p.Where)
		p.write(w)
	}
}

// requestID is the client's, if it is good for a log, or a new one.
func requestID(given string, now func() time.Time) string {
	if given == "" || len(given) > 128 {
		return schema.NewID(now()).String()
	}
	for i := range len(given) {
		switch c := given[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == ':', c == '/', c == '=', c == '+':
		default:
			return schema.NewID(now()).String()
		}
	}
	return given
}

// problem is p with the request's id. It is a copy: some problems are shared.
func (rq *request) problem(p *problem) *problem {
	out := *p
	out.RequestID = rq.id
	return &out
}

// log tells of a request that was not accepted in full; never what was in it.
func (rq *request) log(status int, reason string) {
	level := slog.LevelInfo
	if status >= 500 {
		level = slog.LevelWarn
	}
	rq.g.cfg.Logger.LogAttrs(context.Background(), level, "request not accepted in full", slog.String("request_id", rq.id),
		slog.String("client", rq.clientName()), slog.Int("status", status), slog.String("reason", reason), slog.Int("bytes", rq.bytes),
		slog.Int("accepted", rq.accepted), slog.Int("rejected", rq.rejected),
		slog.Duration("took", rq.g.cfg.Now().Sub(rq.began)), slog.Any("error", rq.failure))
}

func (rq *request) clientName() string {
	if rq.client == nil {
		return ""
	}
	return rq.client.Name()
}
