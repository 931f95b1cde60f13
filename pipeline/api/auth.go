package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/schema"
)

// sessionCookie holds the session of a browser.
const sessionCookie = "kansa_session"

type whoKey struct{}

// who is the one who asks, and from where.
type who struct {
	access.Principal
	ip, agent string
}

// asking returns who asks. It is there behind authenticate.
func asking(ctx context.Context) *who {
	w, _ := ctx.Value(whoKey{}).(*who)
	return w
}

func (w *who) String() string { return w.Kind + ":" + w.ID }

// may says whether who asks may act in a role for an organization, the only one he has if none is named.
func (a *audit) may(ctx context.Context, role access.Role, organization string) (string, *who, error) {
	w := asking(ctx)
	if organization == "" {
		organization = w.Organization
	}
	if organization == "" {
		return "", w, huma.Error400BadRequest("organization is missing: you may see several, name one")
	}
	if f := schema.CheckOrganization(organization); f != nil {
		return "", w, huma.Error400BadRequest(f.Error())
	}
	err := w.May(role, organization)
	if err != nil {
		a.tell(ctx, w, "access.refused", "read", schema.Denied, organization, err.Error(), nil)
	}
	return organization, w, err
}

// addressOf is the address of who asks, without the port.
func addressOf(remote string) string {
	ip, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	return ip
}

// from is who asks as far as it is known without looking at what he shows.
func from(ctx huma.Context) *who {
	agent := strings.ToValidUTF8(ctx.Header("User-Agent"), "?")
	return &who{Principal: access.Principal{Kind: "nobody", ID: "-"}, ip: addressOf(ctx.RemoteAddr()), agent: strings.ToValidUTF8(agent[:min(len(agent), 200)], "")}
}

// bounded answers 429 where an address asks too often.
func (a *audit) bounded(ctx huma.Context, next func(huma.Context)) {
	w := from(ctx)
	if !a.limit(ctx, a.limits.address, rate.Network(w.ip), w, "requests from this address") {
		next(ctx)
	}
}

// limit answers 429 if that is one of key too many. Of those in a row, the first is told to the trail.
func (a *audit) limit(ctx huma.Context, r *rate.Limiter, key string, w *who, of string) bool {
	wait, first := r.Take(key)
	if wait == 0 {
		return false
	}
	if first {
		a.tell(ctx.Context(), w, "request.limited", "read", schema.Denied, "", "too many "+of+": "+ctx.Method()+" "+ctx.URL().Path, nil)
	}
	retryAfter(ctx.SetHeader, wait)
	_ = huma.WriteErr(a.api, ctx, http.StatusTooManyRequests, "too many "+of+": ask again after Retry-After seconds") // who asked may be gone
	return true
}

// authenticate finds out who asks: by a key in the header Authorization, or by the session of a browser.
func (a *audit) authenticate(ctx huma.Context, next func(huma.Context)) {
	var p *access.Principal
	err := access.ErrUnknown
	if secret, ok := strings.CutPrefix(ctx.Header("Authorization"), "Bearer "); ok {
		p, err = a.o.Access.ByKey(ctx.Context(), secret)
	} else if c, cookieErr := huma.ReadCookie(ctx, sessionCookie); cookieErr == nil && sameSite(ctx) {
		p, err = a.o.Access.BySession(ctx.Context(), c.Value)
	}
	w := from(ctx)
	switch {
	case errors.Is(err, access.ErrUnknown):
		if a.limit(ctx, a.limits.signIn, "key "+rate.Network(w.ip), w, "requests with a key or session that is not known") {
			return
		}
		if p != nil {
			w.Kind, w.ID, w.Organization = p.Kind, p.ID, p.Organization
		}
		a.tell(ctx.Context(), w, "signin.refused", "signin", schema.Denied, "", ctx.Method()+" "+ctx.URL().Path, nil)
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="kansa"`)
		_ = huma.WriteErr(a.api, ctx, http.StatusUnauthorized, "give an API key as Authorization: Bearer kansa_…, or sign in") // who asked may be gone
		return
	case err != nil && ctx.Context().Err() != nil: // who asked is gone
		return
	case err != nil:
		a.o.Logger.ErrorContext(ctx.Context(), "sign-in could not be looked at", slog.Any("error", err))
		_ = huma.WriteErr(a.api, ctx, http.StatusServiceUnavailable, "sign-in can not be looked at at the moment")
		return
	}
	w.Principal = *p
	if a.limit(ctx, a.limits.who, w.String(), w, "requests of "+w.ID) {
		return
	}
	next(huma.WithValue(ctx, whoKey{}, w))
}

// sameSite refuses what a page of another site had a browser ask for (the browser says so itself).
func sameSite(ctx huma.Context) bool {
	site := ctx.Header("Sec-Fetch-Site")
	if site == "" || site == "same-origin" || site == "none" {
		return true
	}
	return ctx.Method() == http.MethodGet && ctx.Header("Sec-Fetch-Mode") == "navigate"
}

// tell puts what was done into the trail (requirements Q1, Q3, Q10, B5). It is the trail of the organization of who did it,
// and what an operator did, of the one it was done to; there is none for a name that an operator made up.
func (a *audit) tell(ctx context.Context, w *who, code, action string, outcome schema.Outcome, organization, description string, attributes map[string]string) {
	e := schema.Event{
		Organization: w.Organization, Event: code, Action: action, Outcome: outcome, Trail: schema.Access, Actor: schema.Actor{Type: w.Kind, ID: w.ID}, Description: description,
		Context: schema.Context{IP: w.ip, UserAgent: w.agent}, Attributes: map[string]string{},
	}
	for k, v := range attributes {
		if v != "" {
			e.Attributes[k] = v[:min(len(v), 1000)]
		}
	}
	if outcome == schema.Success && slices.Contains(changes, action) {
		e.Trail = schema.Activity
	}
	if organization != "" && organization != e.Organization {
		if w.Organization == "" && (e.Trail == schema.Activity || action == "signin" || a.known.has(ctx, organization)) {
			e.Organization = organization
		} else {
			e.Attributes["organization"] = organization
		}
	}
	a.o.Record(ctx, e)
}

// changes are the actions that belong into the trail activity.
var changes = []string{"create", "update", "delete", "replay"}

// known are the organizations that have events.
type known struct {
	list func(ctx context.Context) ([]string, error)
	now  func() time.Time

	mu    sync.Mutex
	names map[string]bool
	at    time.Time
}

// knownFor is how long a name that was not known stays so.
const knownFor = 5 * time.Second

func (k *known) has(ctx context.Context, organization string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.names[organization] || k.now().Sub(k.at) < knownFor {
		return k.names[organization]
	}
	k.at = k.now()
	names, err := k.list(ctx)
	if err != nil {
		return false
	}
	k.names = make(map[string]bool, len(names))
	for _, n := range names {
		k.names[n] = true
	}
	return k.names[organization]
}

type signInBody struct {
	Body struct {
		Name     string `json:"name" doc:"The user's name" maxLength:"64"`
		Password string `json:"password" maxLength:"1024"`
	}
}

type firstBody struct {
	Body struct {
		Token    string `json:"token" doc:"From the link that the first start printed"`
		Name     string `json:"name" maxLength:"64"`
		Password string `json:"password" minLength:"12" maxLength:"1024"`
	}
}

type session struct {
	SetCookie http.Cookie `header:"Set-Cookie"`
	Body      access.Principal
}

func (a *audit) sessionCookie(token string) http.Cookie {
	return http.Cookie{Name: sessionCookie, Value: token, Path: "/", HttpOnly: true, Secure: a.o.Secure, SameSite: http.SameSiteLaxMode}
}

// signIn registers how a browser's session begins and ends.
func (a *audit) signIn() {
	open := huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		w := from(ctx)
		if !a.limit(ctx, a.limits.signIn, rate.Network(w.ip), w, "attempts to sign in") {
			next(huma.WithValue(ctx, whoKey{}, w))
		}
	}}
	begin := func(ctx context.Context, name, password string) (*session, error) {
		w := asking(ctx)
		w.Kind, w.ID = "user", strings.ToValidUTF8(name, "?")
		token, p, err := a.o.Access.SignIn(ctx, name, password)
		if err != nil {
			if p != nil {
				w.Organization = p.Organization
			}
			a.tell(ctx, w, "signin.refused", "signin", schema.Denied, "", "password", nil)
			return nil, problem(err)
		}
		a.tell(ctx, w, "signin.allowed", "signin", schema.Success, p.Organization, "password", nil)
		return &session{
			SetCookie: a.sessionCookie(token),
			Body:      *p,
		}, nil
	}
	huma.Register(a.api, huma.Operation{
		OperationID: "sign-in", Method: http.MethodPost, Path: "/api/v1/session", Summary: "Sign in with a password", Tags: []string{"access"}, Middlewares: open,
		Errors: []int{401, 429}, MaxBodyBytes: 16 << 10,
	}, func(ctx context.Context, in *signInBody) (*session, error) {
		return begin(ctx, in.Body.Name, in.Body.Password)
	})
	huma.Register(a.api, huma.Operation{
		OperationID: "first-admin", Method: http.MethodPost, Path: "/api/v1/first", Summary: "Make the first admin", Tags: []string{"access"}, Middlewares: open,
		Errors: []int{401, 422, 429}, MaxBodyBytes: 16 << 10,
	}, func(ctx context.Context, in *firstBody) (*session, error) {
		if _, err := a.o.Access.MakeFirst(ctx, in.Body.Token, in.Body.Name, in.Body.Password); err != nil {
			return nil, problem(err)
		}
		return begin(ctx, in.Body.Name, in.Body.Password)
	})
	a.openID(open)
	register(a, huma.Operation{
		OperationID: "who-am-i", Method: http.MethodGet, Path: "/api/v1/session", Summary: "Who is signed in", Tags: []string{"access"},
	}, func(ctx context.Context, _ *struct{}) (*struct{ Body access.Principal }, error) {
		return &struct{ Body access.Principal }{asking(ctx).Principal}, nil
	})
	register(a, huma.Operation{
		OperationID: "sign-out", Method: http.MethodDelete, Path: "/api/v1/session", Summary: "Sign out", Tags: []string{"access"}, DefaultStatus: http.StatusNoContent,
	}, func(ctx context.Context, in *struct {
		Session string `cookie:"kansa_session"`
	}) (*struct {
		SetCookie http.Cookie `header:"Set-Cookie"`
	}, error,
	) {
		if in.Session != "" {
			if err := a.o.Access.SignOut(ctx, in.Session); err != nil {
				return nil, problem(fmt.Errorf("sign out: %w", err))
			}
		}
		return &struct {
			SetCookie http.Cookie `header:"Set-Cookie"`
		}{http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true}}, nil
	})
}

// register adds an operation for which one has to be signed in.
func register[I, O any](a *audit, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	op.Middlewares = append(op.Middlewares, a.authenticate)
	op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusServiceUnavailable)
	op.Security = []map[string][]string{{"key": {}}, {"session": {}}}
	op.RejectUnknownQueryParameters = true
	huma.Register(a.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			p := problem(err)
			var wrong *Problem
			if op.Method == http.MethodGet && errors.As(p, &wrong) && wrong.Status == http.StatusUnprocessableEntity {
				p = huma.Error400BadRequest(wrong.Detail) // it was a parameter
			}
			var status huma.StatusError
			if errors.As(p, &status) && status.GetStatus() == http.StatusInternalServerError && ctx.Err() == nil { // who asked is there still
				a.o.Logger.ErrorContext(ctx, "request failed", slog.String("operation", op.OperationID), slog.Any("error", err))
			}
			return nil, p
		}
		return out, nil
	})
}
