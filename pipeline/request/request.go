// Package request gives every HTTP request an id and takes it along: into log lines, problems, events of the own trail,
// and what is asked of another process on the way. By it people find everything that belongs to one request.
package request

import (
	"context"
	"log/slog"
	"net/http"
	"regexp"

	"github.com/google/uuid"
)

// Header names the id in requests, answers and questions over the broker.
const Header = "X-Request-Id"

// Attribute is what log lines and events call it.
const Attribute = "request_id"

type key struct{}

// ID is the id of the request that ctx belongs to; empty if it belongs to none.
func ID(ctx context.Context) string {
	id, _ := ctx.Value(key{}).(string)
	return id
}

// With is ctx for the request of an id. One that is not well-formed is left out.
func With(ctx context.Context, id string) context.Context {
	if !wellFormed.MatchString(id) {
		return ctx
	}
	return context.WithValue(ctx, key{}, id)
}

// wellFormed are ids that nothing they are written to could take for something else.
var wellFormed = regexp.MustCompile(`^[A-Za-z0-9._:/=+-]{1,128}$`)

// Handler takes the id that a request brings if it is well-formed, or else makes one, and says it in the answer. It also finds out where
// the request comes from, for From.
func Handler(next http.Handler, proxies Proxies) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(Header)
		if !wellFormed.MatchString(id) {
			id = uuid.NewString()
		}
		w.Header().Set(Header, id)
		r.Header.Set(Header, id) // for the gateway, which answers for itself
		ctx := context.WithValue(r.Context(), key{}, id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, clientKey{}, proxies.Of(r))))
	})
}

// Logs adds the id to the lines that are logged in a context of a request.
func Logs(l *slog.Logger) *slog.Logger {
	if _, ok := l.Handler().(logs); ok {
		return l
	}
	return slog.New(logs{l.Handler()})
}

type logs struct{ slog.Handler }

func (l logs) Handle(ctx context.Context, r slog.Record) error {
	if id := ID(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String(Attribute, id))
	}
	return l.Handler.Handle(ctx, r)
}

func (l logs) WithAttrs(attrs []slog.Attr) slog.Handler { return logs{l.Handler.WithAttrs(attrs)} }
func (l logs) WithGroup(name string) slog.Handler       { return logs{l.Handler.WithGroup(name)} }
