package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/oidc"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/schema"
)

// OpenID is the sign-in by an OpenID provider.
type OpenID struct {
	Provider *oidc.Provider
	Issuer   string
	// Title is what the button calls it.
	Title string
	// Roles are what groups give; the first that fits holds. Without any, a user has the role that he was given here.
	Roles []GroupRole
	// Create makes users at their first sign-in.
	Create bool
}

// GroupRole is the role of a group's members.
type GroupRole struct {
	Group        string
	Role         access.Role
	Organization string
}

const (
	// bindingCookie binds a sign-in to the browser that began it, lest somebody else be led to finish it.
	bindingCookie = "kansa_sign_in"
	openIDPath    = "/api/v1/session/openid"
	// OpenIDCallback is where the provider leads browsers back to.
	OpenIDCallback = openIDPath + "/callback"
	// signInFor is how long a sign-in at the provider may take.
	signInFor = 10 * time.Minute
)

// begun is what is kept of a sign-in under its state.
type begun struct {
	oidc.Pending
	Browser []byte `json:"browser"` // SHA-256 of the cookie
}

// ways are those to sign in.
type ways struct {
	Password bool   `json:"password"`
	OpenID   string `json:"openid,omitempty" doc:"What the button says; there is none without"`
}

type redirect struct {
	Status    int
	Location  string        `header:"Location"`
	Cache     string        `header:"Cache-Control"`
	Referrer  string        `header:"Referrer-Policy"`
	SetCookie []http.Cookie `header:"Set-Cookie"`
}

// leadTo sends a browser elsewhere, and nobody where it came from: that has the code in it.
func leadTo(to string, cookies ...http.Cookie) *redirect {
	return &redirect{http.StatusSeeOther, to, "no-store", "no-referrer", cookies}
}

func (a *audit) bindingCookie(ctx context.Context, value string, age time.Duration) http.Cookie {
	return http.Cookie{Name: bindingCookie, Value: value, Path: openIDPath, MaxAge: int(age.Seconds()), HttpOnly: true, Secure: a.secure(ctx), SameSite: http.SameSiteLaxMode}
}

// openID registers the sign-in by the provider. open bounds how often it may be tried.
func (a *audit) openID(open huma.Middlewares) {
	tags := []string{"access"}
	huma.Register(a.api, huma.Operation{
		OperationID: "ways-to-sign-in", Method: http.MethodGet, Path: "/api/v1/session/ways", Summary: "How one may sign in", Tags: tags, Errors: []int{429},
	}, func(context.Context, *struct{}) (*struct{ Body ways }, error) {
		w := ways{Password: true}
		if a.o.OpenID != nil {
			w.OpenID = a.o.OpenID.Title
		}
		return &struct{ Body ways }{w}, nil
	})
	there := func(context.Context) error {
		if a.o.OpenID == nil {
			return huma.Error404NotFound("there is no sign-in by OpenID: api.oidc is not set")
		}
		return nil
	}
	huma.Register(a.api, huma.Operation{
		OperationID: "begin-openid", Method: http.MethodGet, Path: openIDPath, Summary: "Sign in by OpenID: leads a browser to the provider", Tags: tags, Middlewares: open,
		DefaultStatus: http.StatusSeeOther, Errors: []int{404, 429, 503},
	}, func(ctx context.Context, _ *struct{}) (*redirect, error) {
		if err := there(ctx); err != nil {
			return nil, err
		}
		to, pending, err := a.o.OpenID.Provider.Begin(ctx)
		if err != nil {
			a.o.Logger.WarnContext(ctx, "the OpenID provider can not be asked", slog.Any("error", err))
			return nil, huma.Error503ServiceUnavailable("the OpenID provider can not be asked at the moment")
		}
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails
		browser := base64.RawURLEncoding.EncodeToString(b)
		if err := a.o.Access.Keep(ctx, pending.State, begun{pending, digest(browser)}, signInFor); err != nil {
			return nil, problem(err)
		}
		return leadTo(to, a.bindingCookie(ctx, browser, signInFor)), nil
	})
	type input struct {
		State   string `query:"state" maxLength:"1000"`
		Code    string `query:"code" maxLength:"10000"`
		Error   string `query:"error" maxLength:"1000"`
		Browser string `cookie:"kansa_sign_in"`
	}
	huma.Register(a.api, huma.Operation{
		OperationID: "finish-openid", Method: http.MethodGet, Path: OpenIDCallback, Summary: "Where the provider leads the browser back to, and from there to the console", Tags: tags, Middlewares: open,
		DefaultStatus: http.StatusSeeOther, Errors: []int{404, 429},
	}, func(ctx context.Context, in *input) (*redirect, error) {
		if err := there(ctx); err != nil {
			return nil, err
		}
		token, err := a.finish(ctx, in.State, in.Browser, in.Code, in.Error)
		done := a.bindingCookie(ctx, "", -time.Second)
		switch {
		case err == nil:
			for range 2 { // its beginning and its end
				a.limits.signIn.Return(rate.Network(asking(ctx).ip))
			}
			return leadTo("/", done, a.sessionCookie(ctx, token)), nil
		case errors.Is(err, access.ErrUnknown), errors.Is(err, oidc.ErrRefused):
			return leadTo("/?sign-in=refused", done), nil
		}
		a.o.Logger.WarnContext(ctx, "a sign-in by OpenID failed", slog.Any("error", err))
		return leadTo("/?sign-in=failed", done), nil
	})
}

func digest(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// finish ends a sign-in that this browser began, once, and tells the trail.
func (a *audit) finish(ctx context.Context, state, browser, code, refusal string) (token string, err error) {
	w := asking(ctx)
	w.Kind = "user"
	why := "OpenID: this browser did not begin it, or it took too long"
	defer func() {
		if errors.Is(err, access.ErrUnknown) || errors.Is(err, oidc.ErrRefused) {
			a.tell(ctx, w, "signin.refused", "signin", schema.Denied, "", why, nil)
		}
	}()
	var b begun
	if err := a.o.Access.Take(ctx, state, &b); err != nil {
		return "", err
	}
	if subtle.ConstantTimeCompare(b.Browser, digest(browser)) != 1 {
		return "", access.ErrUnknown
	}
	if refusal != "" || code == "" {
		why = "OpenID: the provider did not let him"
		return "", access.ErrUnknown
	}
	person, err := a.o.OpenID.Provider.Finish(ctx, b.Pending, code)
	if err != nil {
		why = "OpenID: " + err.Error()
		return "", err
	}
	w.ID = person.Name[:min(len(person.Name), 64)]
	v := &access.Vouched{Issuer: a.o.OpenID.Issuer, Subject: person.Subject, Name: person.Name, Create: a.o.OpenID.Create}
	if !a.o.OpenID.assign(v, person.Groups) {
		why = "OpenID: none of the person's groups has a role"
		return "", access.ErrUnknown
	}
	token, p, err := a.o.Access.SignInVouched(ctx, v)
	if err != nil {
		why = "OpenID: " + err.Error()
		if p != nil {
			w.Organization = p.Organization
		}
		return "", err
	}
	w.UID = p.UID
	a.tell(ctx, w, "signin.allowed", "signin", schema.Success, p.Organization, "OpenID", nil)
	return token, nil
}

// assign gives what the groups give; false is nothing.
func (o *OpenID) assign(v *access.Vouched, groups []string) bool {
	if len(o.Roles) == 0 {
		return true
	}
	for _, r := range o.Roles {
		for _, g := range groups {
			if g == r.Group {
				v.Role, v.Organization = r.Role, r.Organization
				return true
			}
		}
	}
	return false
}
