package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/producers/turns"
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

// from is who asks as far as it is known without looking at what he shows.
func from(ctx huma.Context) *who {
	agent := strings.ToValidUTF8(ctx.Header("User-Agent"), "?")
	return &who{Principal: access.Principal{Kind: "nobody", ID: "-"}, ip: request.From(ctx.Context()).IP, agent: strings.ToValidUTF8(agent[:min(len(agent), 200)], "")}
}

// bounded answers 429 where an address asks too often.
func (a *audit) bounded(ctx huma.Context, next func(huma.Context)) {
	w := from(ctx)
	if !a.limit(ctx, a.limits.address, "address", rate.Network(w.ip), w, "requests from this address") {
		next(ctx)
	}
}

// limit answers 429 if a key exceeds a limit, and records the first of a row in the trail. name is the label of the metric.
func (a *audit) limit(ctx huma.Context, r *rate.Limiter, name, key string, w *who, of string) bool {
	wait, first := r.Take(key)
	if wait == 0 {
		return false
	}
	a.limits.refused.Add(name)
	if first {
		a.tell(ctx.Context(), w, "request.limited", "read", schema.Denied, "", "too many "+of+": "+ctx.Method()+" "+ctx.URL().Path, nil)
	}
	retryAfter(ctx.SetHeader, wait)
	_ = huma.WriteErr(a.api, ctx, http.StatusTooManyRequests, "too many "+of+": ask again after Retry-After seconds") // who asked may be gone
	return true
}

// finishing are operations that may end the credential they came by, and still have to answer.
var finishing = []string{"sign-out", "put-user", "delete-user", "revoke-key"}

// authenticate finds out who asks: by a key in the header Authorization, or by the session of a browser. The request ends with it.
func (a *audit) authenticate(ctx huma.Context, next func(huma.Context)) {
	look := func(context.Context) (*access.Principal, error) { return nil, access.ErrUnknown }
	if secret, ok := strings.CutPrefix(ctx.Header("Authorization"), "Bearer "); ok {
		look = func(c context.Context) (*access.Principal, error) { return a.o.Watch.ByKey(c, secret) }
	} else if cookie, err := huma.ReadCookie(ctx, sessionCookie); err == nil {
		look = func(c context.Context) (*access.Principal, error) { return a.o.Watch.BySession(c, cookie.Value) }
	}
	entered, p, leave, err := a.o.Watch.Enter(ctx.Context(), look)
	w := from(ctx)
	switch {
	case errors.Is(err, access.ErrUnknown):
		if a.limit(ctx, a.limits.signIn, "unknown_key", "key "+rate.Network(w.ip), w, "requests with a key or session that is not known") {
			return
		}
		if p != nil {
			w.Kind, w.ID, w.UID, w.Organization = p.Kind, p.ID, p.UID, p.Organization
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
	defer leave()
	w.Principal = *p
	if a.limit(ctx, a.limits.who, "key", w.String(), w, "requests of "+w.ID) {
		return
	}
	if !slices.Contains(finishing, ctx.Operation().OperationID) {
		_, to := humago.Unwrap(ctx)
		stop := held(entered, to)
		defer stop()
		ctx = huma.WithContext(ctx, entered)
	}
	next(huma.WithValue(ctx, whoKey{}, w))
}

// slot takes one of what few may have open at once, and gives it back when the request ends. Otherwise it answers 429.
func (a *audit) slot(ctx huma.Context, s *rate.Slots, name, of string, next func(huma.Context)) {
	w := asking(ctx.Context())
	release, reached := s.Take(w.String(), w.Organization)
	if release == nil {
		a.limits.refused.Add(name + "_" + reached)
		retryAfter(ctx.SetHeader, slotAgain)
		_ = huma.WriteErr(a.api, ctx, http.StatusTooManyRequests, "too many "+of+" are open ("+boundsOf[reached]+"): end one, or ask again after Retry-After seconds") // who asked may be gone
		return
	}
	defer release()
	next(ctx)
}

// queried has a query of a page wait for its turn among those of all organizations. A queue that is full is answered 429.
func (a *audit) queried(ctx huma.Context, next func(huma.Context)) {
	w := asking(ctx.Context())
	release, err := a.limits.queries.Take(ctx.Context(), w.Organization)
	switch {
	case errors.Is(err, turns.ErrWaiting):
		a.limits.refused.Add("queries_waiting")
		retryAfter(ctx.SetHeader, time.Second)
		_ = huma.WriteErr(a.api, ctx, http.StatusTooManyRequests, "too many queries of this organization wait for their turn: ask again after Retry-After seconds") // who asked may be gone
		return
	case err != nil: // who asked is gone
		return
	}
	defer release()
	next(ctx)
}

// boundsOf names the bounds of slots.
var boundsOf = map[string]string{"each": "of this key or person", "organization": "of this organization", "all": "in all"}

// tell puts what was done into the trail (requirements Q1, Q3, Q10, B5). It is the trail of the organization of who did it,
// and what an operator did, of the one it was done to; there is none for a name that an operator made up.
func (a *audit) tell(ctx context.Context, w *who, code, action string, outcome schema.Outcome, organization, description string, attributes map[string]string) {
	a.o.Record(ctx, a.event(ctx, w, code, action, outcome, organization, description, attributes))
}

func (a *audit) event(ctx context.Context, w *who, code, action string, outcome schema.Outcome, organization, description string, attributes map[string]string) schema.Event {
	e := schema.Event{
		Organization: w.Organization, Event: code, Action: action, Outcome: outcome, Trail: schema.Access, Actor: schema.Actor{Type: w.Kind, ID: w.ID}, Description: description,
		Context: schema.Context{IP: w.ip, UserAgent: w.agent}, Attributes: map[string]string{},
	}
	if w.UID != "" {
		e.Attributes["actor_uid"] = w.UID
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
		if w.Organization == "" && (e.Trail == schema.Activity || action == "signin" || action == "signout" || a.known.has(ctx, organization)) {
			e.Organization = organization
		} else {
			e.Attributes["organization"] = organization
		}
	}
	return e
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
	Session string `cookie:"kansa_session"`
	Body    struct {
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

// secure tells that the browser speaks TLS, with us or with a proxy.
func (a *audit) secure(ctx context.Context) bool { return a.o.Secure || request.From(ctx).HTTPS }

func (a *audit) sessionCookie(ctx context.Context, token string) http.Cookie {
	return http.Cookie{Name: sessionCookie, Value: token, Path: "/", HttpOnly: true, Secure: a.secure(ctx), SameSite: http.SameSiteLaxMode}
}

// attempt bounds the failed sign-ins of a network, and those by one name from all networks together. The second bound does not hold for
// networks from which the user signed in before, nor for a browser with a session of the user: an attacker cannot lock the user out. The
// caller calls succeeded when the sign-in has succeeded.
func (a *audit) attempt(ctx context.Context, name, token string) (succeeded func(), err error) {
	w := asking(ctx)
	network := rate.Network(w.ip)
	if wait, first := a.limits.signIn.Take(network); wait > 0 {
		return nil, a.tooMany(ctx, w, "sign_in_network", "attempts to sign in from this network", wait, first)
	}
	byName := strings.ToValidUTF8(name, "?")
	wait, first := a.limits.name.Take(byName)
	if wait > 0 {
		known, err := a.o.Access.SignedInFrom(ctx, name, network)
		if err != nil {
			return nil, problem(err)
		}
		if p, err := a.o.Watch.BySession(ctx, token); err == nil && p.ID == name {
			known = true
		}
		if !known {
			a.limits.signIn.Return(network)
			return nil, a.tooMany(ctx, w, "sign_in_name", "attempts to sign in by this name from networks that it never signed in from", wait, first)
		}
	}
	return func() {
		a.limits.signIn.Return(network)
		if wait == 0 {
			a.limits.name.Return(byName)
		}
		if err := a.o.Access.RememberNetwork(ctx, name, network); err != nil && ctx.Err() == nil {
			a.o.Logger.WarnContext(ctx, "the network of a sign-in was not remembered", slog.Any("error", err))
		}
	}, nil
}

func (a *audit) tooMany(ctx context.Context, w *who, name, of string, wait time.Duration, first bool) error {
	a.limits.refused.Add(name)
	if first {
		a.tell(ctx, w, "request.limited", "read", schema.Denied, "", "too many "+of, nil)
	}
	return later(wait, "too many "+of+": ask again after Retry-After seconds")
}

// later is a 429.
func later(wait time.Duration, detail string) error {
	h := http.Header{}
	retryAfter(h.Set, wait)
	return huma.ErrorWithHeaders(huma.Error429TooManyRequests(detail), h)
}

// signIn registers how a browser's session begins and ends.
func (a *audit) signIn() {
	visitor := huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		w := from(ctx)
		next(huma.WithContext(huma.WithValue(ctx, whoKey{}, w), access.WithNetwork(context.WithValue(ctx.Context(), whoKey{}, w), rate.Network(w.ip))))
	}}
	open := append(slices.Clone(visitor), func(ctx huma.Context, next func(huma.Context)) {
		w := asking(ctx.Context())
		if !a.limit(ctx, a.limits.signIn, "sign_in_network", rate.Network(w.ip), w, "attempts to sign in") {
			next(ctx)
		}
	})
	begin := func(ctx context.Context, name, password string) (*session, error) {
		w := asking(ctx)
		w.Kind, w.ID = "user", strings.ToValidUTF8(name, "?")
		token, p, err := a.o.Access.SignIn(ctx, name, password)
		if err != nil {
			if p != nil {
				w.Organization, w.UID = p.Organization, p.UID
			}
			if errors.Is(err, access.ErrUnknown) {
				a.tell(ctx, w, "signin.refused", "signin", schema.Denied, "", "password", nil)
			}
			if errors.Is(err, access.ErrBusy) {
				a.limits.refused.Add("sign_in_waiting")
				return nil, later(slotAgain, err.Error())
			}
			return nil, problem(err)
		}
		w.UID = p.UID
		a.tell(ctx, w, "signin.allowed", "signin", schema.Success, p.Organization, "password", nil)
		return &session{SetCookie: a.sessionCookie(ctx, token), Body: *p}, nil
	}
	huma.Register(a.api, huma.Operation{
		OperationID: "sign-in", Method: http.MethodPost, Path: "/api/v1/session", Summary: "Sign in with a password", Tags: []string{"access"}, Middlewares: visitor,
		Errors: []int{401, 429}, MaxBodyBytes: 16 << 10,
	}, func(ctx context.Context, in *signInBody) (*session, error) {
		succeeded, err := a.attempt(ctx, in.Body.Name, in.Session)
		if err != nil {
			return nil, err
		}
		s, err := begin(ctx, in.Body.Name, in.Body.Password)
		if err == nil {
			succeeded()
		}
		return s, err
	})
	huma.Register(a.api, huma.Operation{
		OperationID: "first-admin", Method: http.MethodPost, Path: "/api/v1/first", Summary: "Make the first admin", Tags: []string{"access"}, Middlewares: open,
		Errors: []int{401, 422, 429}, MaxBodyBytes: 16 << 10,
	}, func(ctx context.Context, in *firstBody) (*session, error) {
		u, err := a.o.Access.MakeFirst(ctx, in.Body.Token, in.Body.Name, in.Body.Password)
		w := asking(ctx)
		if err != nil {
			if errors.Is(err, access.ErrFirst) {
				a.tell(ctx, w, "signin.refused", "signin", schema.Denied, "", "link for the first admin", nil)
			}
			if errors.Is(err, access.ErrBusy) {
				return nil, later(slotAgain, err.Error())
			}
			return nil, problem(err)
		}
		w.Kind, w.ID, w.UID = "user", u.Name, u.ID
		a.tell(ctx, w, "user.first", "create", schema.Success, "", "the first admin was made with the link of the start", map[string]string{"name": u.Name, "uid": u.ID})
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
			w := asking(ctx)
			a.tell(ctx, w, "session.ended", "signout", schema.Success, w.Organization, "sign-out", nil)
		}
		return &struct {
			SetCookie http.Cookie `header:"Set-Cookie"`
		}{http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, Secure: a.secure(ctx), SameSite: http.SameSiteLaxMode}}, nil
	})
}

// register adds an operation for which one has to be signed in.
func register[I, O any](a *audit, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	op.Middlewares = append(huma.Middlewares{a.authenticate}, op.Middlewares...)
	op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusServiceUnavailable)
	op.Security = []map[string][]string{{"key": {}}, {"session": {}}}
	op.RejectUnknownQueryParameters = true
	huma.Register(a.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil && errors.Is(context.Cause(ctx), access.ErrEnded) {
			return nil, huma.Error401Unauthorized(access.ErrEnded.Error())
		}
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
