package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/kansa-audit/kansa/pipeline/access"
)

// insights registers metrics and readiness. Admins and auditors of all organizations get them in full, by key or session, and so do all
// clients of a public address. Others get ready or not ready.
func (s *Server) insights(mux *http.ServeMux) {
	full := func(r *http.Request) bool { return s.o.Public || s.o.Watch != nil && s.operates(r) }
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if full(r) {
			s.o.Details.ServeHTTP(w, r)
			return
		}
		s.o.Ready.ServeHTTP(w, r)
	})
	if s.o.Metrics == nil {
		return
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if full(r) {
			s.o.Metrics.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="kansa"`)
		plain(w, r, http.StatusUnauthorized, "metrics are for operators: give the key of an auditor or admin of all organizations, or scrape health.listen")
	})
}

// operates reports whether a request comes from an admin or auditor of all organizations.
func (s *Server) operates(r *http.Request) bool {
	secret, isKey := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	cookie, err := r.Cookie(sessionCookie)
	if !isKey && (err != nil || foreign(r, hostOf(s.o.PublicURL)) != "") {
		return false
	}
	var p *access.Principal
	if isKey {
		p, err = s.o.Watch.ByKey(r.Context(), secret)
	} else {
		p, err = s.o.Watch.BySession(r.Context(), cookie.Value)
	}
	if err != nil {
		if !errors.Is(err, access.ErrUnknown) && !errors.Is(err, context.Canceled) {
			s.o.Logger.WarnContext(r.Context(), "a key or session could not be looked up", slog.Any("error", err))
		}
		return false
	}
	return p.Organization == "" && p.May(access.Auditor, "") == nil
}
