package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/request"
)

// writeAtOnce is how much may be written by one deadline. A long answer has a new deadline for each part, so that a slow client gets all of it.
const writeAtOnce = 64 << 10

// response is one that is closed when the client does not read it, or when what let the client in has ended.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	// refused is called before a refusal is answered.
	refused func()

	mu    sync.Mutex
	ended bool
	wrote bool
}

// errUnread is why a response was closed that its client does not read.
var errUnread = errors.New("the client did not read its answer within api.write_timeout")

// arm sets the deadline of the next write; 0 clears it.
func (r *response) arm(within time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return access.ErrEnded
	}
	at := time.Time{}
	if within > 0 {
		at = time.Now().Add(within)
	}
	_ = r.control.SetWriteDeadline(at) // a recorder of a test has none
	return nil
}

// end closes the response. One of which nothing was written yet is left to its handler.
func (r *response) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wrote {
		r.ended = true
		_ = r.control.SetWriteDeadline(time.Unix(1, 0)) // a recorder of a test has none
	}
}

// WriteHeader implements http.ResponseWriter.
func (r *response) WriteHeader(code int) {
	if code >= http.StatusOK {
		r.began()
	}
	if code == http.StatusTooManyRequests || code == http.StatusUnauthorized || code == http.StatusForbidden {
		r.refused()
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *response) began() {
	r.mu.Lock()
	r.wrote = true
	r.mu.Unlock()
}

func (r *response) hasBegun() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrote
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (n int, err error) {
	r.began()
	for {
		if err := r.arm(r.timeout); err != nil {
			return n, err
		}
		some := p[n:min(len(p), n+writeAtOnce)]
		m, err := r.ResponseWriter.Write(some)
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: %w", errUnread, err)
		}
		if err != nil {
			return n, err
		}
		if n == len(p) {
			return n, r.arm(0)
		}
	}
}

// FlushError is for http.ResponseController, and Flush for those who do not know it.
func (r *response) FlushError() error {
	r.began()
	if err := r.arm(r.timeout); err != nil {
		return err
	}
	if err := r.control.Flush(); err != nil {
		return err
	}
	return r.arm(0)
}

// Flush implements http.Flusher.
func (r *response) Flush() { _ = r.FlushError() } // the next write fails, too

// Unwrap is for http.ResponseController.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// responseOf finds the response in what handlers have put around it.
func responseOf(w http.ResponseWriter) *response {
	for {
		switch v := w.(type) {
		case *response:
			return v
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return nil
		}
	}
}

// guarded has next answer with deadlines and safe headers, and a panic end with the request.
func guarded(next http.Handler, timeout time.Duration, refused *refusals, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := &response{ResponseWriter: w, control: http.NewResponseController(w), timeout: timeout}
		to.refused = func() { refused.wait(r.Context()) }
		_ = to.arm(0) // that of the connection's request before
		defer func() {
			err := request.Caught(r.Context(), log, "request", recover())
			if err != nil && to.hasBegun() {
				panic(http.ErrAbortHandler) // the answer is incomplete, and its reader has to notice
			}
			if err != nil {
				plain(to, r, http.StatusInternalServerError, "a fault of the program ended this request: the log has it under the request id")
			}
			_ = to.arm(timeout) // for what is in buffers
		}()
		safe(w.Header())
		next.ServeHTTP(to, r)
	})
}

// safe sets headers that hold unless a handler says otherwise: an answer is not stored, not taken for what it is not, and not shown
// within another page.
func safe(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// held has a request end with what let the client in: its context is done, and a response under way is closed.
func held(ctx context.Context, w http.ResponseWriter) (stop func() bool) {
	r := responseOf(w)
	return context.AfterFunc(ctx, func() {
		if r != nil && errors.Is(context.Cause(ctx), access.ErrEnded) {
			r.end()
		}
	})
}
