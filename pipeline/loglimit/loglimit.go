// Package loglimit keeps records that repeat from filling a log, no matter which client causes them.
//
// It owns the counting: of one message and level, so many are written in a while, and one more says how many were not. It
// never drops the first ones, and never looks at attributes, which clients can vary.
package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Of one message, most records are written in a window, and while it repeats more often than that,
// mostAgain in each window after it.
const (
	most      = 20
	mostAgain = 1
	window    = 10 * time.Second
	// windowAgain is the window of a message that repeats.
	windowAgain = time.Minute
)

// Handler passes records on to another handler. Those below slog.LevelInfo, which are asked for, are not limited.
type Handler struct {
	next slog.Handler
	s    *state
}

// state is shared by a handler and those derived from it.
type state struct {
	now func() time.Time

	mu    sync.Mutex
	of    map[key]*count
	swept time.Time
}

type key struct {
	level   slog.Level
	message string
}

type count struct {
	began   time.Time
	n       int
	most    int
	window  time.Duration
	handler slog.Handler // of the last record that was not written
}

// New limits what next gets.
func New(next slog.Handler) *Handler { return newHandler(next, time.Now) }

func newHandler(next slog.Handler, now func() time.Time) *Handler {
	return &Handler{next, &state{now: now, of: map[key]*count{}, swept: now()}}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.next.WithAttrs(attrs), h.s}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler { return &Handler{h.next.WithGroup(name), h.s} }

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.next.Handle(ctx, r)
	}
	write, summaries := h.s.take(key{r.Level, r.Message}, h.next)
	for _, s := range summaries {
		if err := s.handler.Handle(ctx, s.record); err != nil {
			return err
		}
	}
	if !write {
		return nil
	}
	return h.next.Handle(ctx, r)
}

type summary struct {
	handler slog.Handler
	record  slog.Record
}

// take counts a record. It returns whether to write it, and what to write before it: how many of which were not written.
func (s *state) take(k key, from slog.Handler) (write bool, summaries []summary) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.swept) >= window {
		s.swept = now
		for k, c := range s.of {
			if now.Sub(c.began) < c.window {
				continue
			}
			if c.n <= c.most {
				delete(s.of, k)
				continue
			}
			r := slog.NewRecord(now, k.level, k.message, 0)
			r.AddAttrs(slog.Int("not_logged", c.n-c.most), slog.Time("since", c.began))
			summaries = append(summaries, summary{c.handler, r})
			s.of[k] = &count{began: now, most: mostAgain, window: windowAgain}
		}
	}
	c := s.of[k]
	if c == nil {
		c = &count{began: now, most: most, window: window}
		s.of[k] = c
	}
	if c.n++; c.n <= c.most {
		return true, summaries
	}
	c.handler = from
	return false, summaries
}
