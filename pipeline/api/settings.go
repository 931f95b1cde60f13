package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/operator"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

// Schedule is what exporter.Schedule looks like in JSON, for the document: it writes and reads itself.
type Schedule struct {
	Cron     string    `json:"cron,omitempty" doc:"Six fields, seconds first"`
	TimeZone string    `json:"time_zone,omitempty" doc:"An IANA name; UTC if left out"`
	Every    string    `json:"every,omitempty" doc:"In place of cron: a duration, such as 1h"`
	Period   string    `json:"period,omitempty" doc:"What one archive holds; 24h if left out"`
	Since    time.Time `json:"since,omitempty" doc:"Where the first archive begins"`
}

// Of names the organization a request is about.
type Of struct {
	Organization string `path:"organization" maxLength:"64"`
}

// Revised is a change of what was seen before.
type Revised struct {
	// IfMatch is the ETag that was seen: of two who change a setting at once, one is told.
	IfMatch string `header:"If-Match" doc:"The ETag of what is replaced; none for what is to be new"`
}

func (r *Revised) revision() (uint64, error) {
	if r.IfMatch == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.Trim(r.IfMatch, `"`), 10, 64)
	if err != nil {
		return 0, huma.Error400BadRequest("If-Match " + r.IfMatch + " is none of our ETags")
	}
	return n, nil
}

func etag(revision uint64) string { return fmt.Sprintf("%q", strconv.FormatUint(revision, 10)) }

type tagged[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

type list[T any] struct {
	Body []T `nullable:"false"`
}

// settings registers what changes: destinations, organizations, exports, users, keys.
func (a *audit) settings() {
	a.destinations()
	a.organizations()
	a.trails()
	a.exports()
	a.people()
}

func (a *audit) ask(w *who) operator.Client { return a.o.Ask(w.String()) }

func (a *audit) destinations() {
	const path = "/api/v1/organizations/{organization}/destinations"
	tags := []string{"destinations"}
	register(a, huma.Operation{OperationID: "list-destinations", Method: http.MethodGet, Path: path, Summary: "Destinations and how deliveries are doing", Tags: tags},
		func(ctx context.Context, in *Of) (*list[operator.DestinationStatus], error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			all, err := a.ask(w).Destinations(ctx, in.Organization)
			if all == nil {
				all = []operator.DestinationStatus{}
			}
			return &list[operator.DestinationStatus]{all}, err
		})
	type put struct {
		Of
		Revised
		Name  string `path:"name" maxLength:"64"`
		Force bool   `query:"force" doc:"Keep it without a test, or although it failed"`
		Body  exporter.Destination
	}
	register(a, huma.Operation{
		OperationID: "put-destination", Method: http.MethodPut, Path: path + "/{name}", Summary: "Make or change a destination, after a test of it", Tags: tags, Errors: []int{412, 422},
	}, func(ctx context.Context, in *put) (*tagged[operator.Saved], error) {
		_, w, err := a.may(ctx, access.Admin, in.Organization)
		if err != nil {
			return nil, err
		}
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		in.Body.Organization, in.Body.Name = in.Organization, in.Name
		saved, err := a.ask(w).SaveDestination(ctx, in.Body, revision, !in.Force)
		if err != nil {
			return nil, err
		}
		out := &tagged[operator.Saved]{Body: *saved}
		if saved.Destination != nil {
			out.ETag = etag(saved.Destination.Meta.Revision)
		}
		return out, nil
	})
	type named struct {
		Of
		Name string `path:"name" maxLength:"64"`
	}
	register(a, huma.Operation{OperationID: "delete-destination", Method: http.MethodDelete, Path: path + "/{name}", Summary: "Forget a destination", Tags: tags, Errors: []int{404, 422}},
		func(ctx context.Context, in *named) (*struct{}, error) {
			_, w, err := a.may(ctx, access.Admin, in.Organization)
			if err != nil {
				return nil, err
			}
			return nil, a.ask(w).RemoveDestination(ctx, in.Organization, in.Name)
		})
	for action, paused := range map[string]bool{"pause": true, "resume": false} {
		register(a, huma.Operation{
			OperationID: action + "-destination", Method: http.MethodPost, Path: path + "/{name}/" + action, Summary: "Hold back its archives, or let them go on", Tags: tags, Errors: []int{404, 422},
		}, func(ctx context.Context, in *named) (*struct{ Body settings.Destination }, error) {
			_, w, err := a.may(ctx, access.Admin, in.Organization)
			if err != nil {
				return nil, err
			}
			d, err := a.ask(w).PauseDestination(ctx, in.Organization, in.Name, paused)
			if err != nil {
				return nil, err
			}
			return &struct{ Body settings.Destination }{*d}, nil
		})
	}
	register(a, huma.Operation{
		OperationID: "test-destination", Method: http.MethodPost, Path: path + "/{name}/test", Summary: "Try a destination, and leave nothing there", Tags: tags, Errors: []int{404, 422},
	}, func(ctx context.Context, in *named) (*struct{ Body exporter.TestReport }, error) {
		_, w, err := a.may(ctx, access.Admin, in.Organization)
		if err != nil {
			return nil, err
		}
		r, err := a.ask(w).TestDestination(ctx, in.Organization, in.Name)
		if err != nil {
			return nil, err
		}
		return &struct{ Body exporter.TestReport }{*r}, nil
	})
}

func (a *audit) organizations() {
	const path = "/api/v1/organizations/{organization}"
	tags := []string{"organizations"}
	register(a, huma.Operation{OperationID: "get-organization", Method: http.MethodGet, Path: path, Summary: "The rules of an organization", Tags: tags},
		func(ctx context.Context, in *Of) (*tagged[settings.Organization], error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			o, err := a.ask(w).Organization(ctx, in.Organization)
			if err != nil {
				return nil, err
			}
			return &tagged[settings.Organization]{etag(o.Meta.Revision), *o}, nil
		})
	type put struct {
		Of
		Revised
		Body settings.Organization
	}
	register(a, huma.Operation{OperationID: "put-organization", Method: http.MethodPut, Path: path, Summary: "Change the rules of an organization", Tags: tags, Errors: []int{412, 422}},
		func(ctx context.Context, in *put) (*tagged[settings.Organization], error) {
			_, w, err := a.may(ctx, access.Admin, in.Organization)
			if err != nil {
				return nil, err
			}
			if in.Body.Meta.Revision, err = in.revision(); err != nil {
				return nil, err
			}
			in.Body.Name = in.Organization
			o, err := a.ask(w).SaveOrganization(ctx, in.Body)
			if err != nil {
				return nil, err
			}
			return &tagged[settings.Organization]{etag(o.Meta.Revision), *o}, nil
		})
}

// trails registers the switches (requirements Z1, Z2, Z3).
func (a *audit) trails() {
	const path = "/api/v1/organizations/{organization}/trails"
	tags := []string{"organizations"}
	register(a, huma.Operation{OperationID: "get-trails", Method: http.MethodGet, Path: path, Summary: "Which trails are recorded, and when they were not", Tags: tags},
		func(ctx context.Context, in *Of) (*tagged[settings.Trails], error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			t, err := a.ask(w).Trails(ctx, in.Organization)
			if err != nil {
				return nil, err
			}
			return &tagged[settings.Trails]{etag(t.Revision), *t}, nil
		})
	type put struct {
		Of
		Revised
		Body settings.SwitchTrails
	}
	register(a, huma.Operation{
		OperationID: "put-trails", Method: http.MethodPut, Path: path, Summary: "Switch trails on or off, or HIPAA, which holds them on; what is left out stays", Tags: tags,
		Errors: []int{409, 412, 422},
	}, func(ctx context.Context, in *put) (*tagged[settings.Trails], error) {
		_, w, err := a.may(ctx, access.Admin, in.Organization)
		if err != nil {
			return nil, err
		}
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		t, err := a.ask(w).SwitchTrails(ctx, in.Organization, in.Body, revision)
		if err != nil {
			return nil, err
		}
		return &tagged[settings.Trails]{etag(t.Revision), *t}, nil
	})
}

// ExportBody asks for an archive.
type ExportBody struct {
	Trails      []schema.Trail `json:"trails,omitempty" doc:"Both if left out"`
	From        time.Time      `json:"from,omitzero" doc:"Two years before the end if left out"`
	To          time.Time      `json:"to,omitzero" doc:"The last closed hour if left out"`
	Destination string         `json:"destination,omitempty" doc:"The name of a destination; or mail_to"`
	MailTo      []string       `json:"mail_to,omitempty" doc:"Who gets a link"`
	render.Content
}

func (b *ExportBody) request(organization string) exporter.Request {
	return exporter.Request{Organization: organization, Trails: b.Trails, From: b.From, To: b.To, Destination: b.Destination, MailTo: b.MailTo, Content: b.Content}
}

func (a *audit) exports() {
	const path = "/api/v1/organizations/{organization}/exports"
	tags := []string{"exports"}
	type post struct {
		Of
		Body ExportBody
	}
	register(a, huma.Operation{
		OperationID: "ask-export", Method: http.MethodPost, Path: path, Summary: "Ask for an archive", Tags: tags, DefaultStatus: http.StatusAccepted, Errors: []int{404, 422, 429},
	}, func(ctx context.Context, in *post) (*struct{ Body exporter.Asked }, error) {
		_, w, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		asked, err := a.ask(w).AskExport(ctx, in.Body.request(in.Organization))
		if err != nil {
			return nil, err
		}
		return &struct{ Body exporter.Asked }{*asked}, nil
	})
	register(a, huma.Operation{
		OperationID: "estimate-export", Method: http.MethodPost, Path: path + "/estimate", Summary: "Say what an archive would hold", Tags: tags, Errors: []int{422},
	}, func(ctx context.Context, in *post) (*struct{ Body exporter.Estimate }, error) {
		_, w, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		e, err := a.ask(w).Estimate(ctx, in.Body.request(in.Organization))
		if err != nil {
			return nil, err
		}
		return &struct{ Body exporter.Estimate }{*e}, nil
	})
	register(a, huma.Operation{OperationID: "list-exports", Method: http.MethodGet, Path: path, Summary: "Exports, the newest first", Tags: tags},
		func(ctx context.Context, in *Of) (*list[exporter.Export], error) {
			if _, _, err := a.may(ctx, access.Auditor, in.Organization); err != nil {
				return nil, err
			}
			all, err := a.o.States.List(ctx)
			if err != nil {
				return nil, err
			}
			own := []exporter.Export{}
			for i := range all {
				if all[i].Organization == in.Organization {
					own = append(own, all[i])
				}
			}
			return &list[exporter.Export]{own}, nil
		})
	type named struct {
		Of
		ID string `path:"id" maxLength:"200"`
	}
	find := func(ctx context.Context, in *named, role access.Role) (*exporter.Export, *who, error) {
		_, w, err := a.may(ctx, role, in.Organization)
		if err != nil {
			return nil, w, err
		}
		e, ok, err := a.o.States.Get(ctx, in.ID)
		if err == nil && (!ok || e.Organization != in.Organization) {
			err = fmt.Errorf("%w: %s", exporter.ErrNoExport, in.ID)
		}
		return &e, w, err
	}
	register(a, huma.Operation{OperationID: "get-export", Method: http.MethodGet, Path: path + "/{id}", Summary: "How an export is doing", Tags: tags, Errors: []int{404}},
		func(ctx context.Context, in *named) (*struct{ Body exporter.Export }, error) {
			e, _, err := find(ctx, in, access.Auditor)
			if err != nil {
				return nil, err
			}
			return &struct{ Body exporter.Export }{*e}, nil
		})
	register(a, huma.Operation{
		OperationID: "revoke-export", Method: http.MethodPost, Path: path + "/{id}/revoke", Summary: "Take back the links of an export", Tags: tags, Errors: []int{404, 422},
	}, func(ctx context.Context, in *named) (*struct{ Body exporter.Export }, error) {
		_, w, err := find(ctx, in, access.Auditor)
		if err != nil {
			return nil, err
		}
		e, err := a.ask(w).Revoke(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return &struct{ Body exporter.Export }{*e}, nil
	})
}

// people registers users and keys. An admin of one organization has to do with its own alone.
func (a *audit) people() {
	tags := []string{"access"}
	admin := func(ctx context.Context, organization string) (*who, error) {
		return a.adminOf(ctx, organization, "users and keys")
	}
	type query struct {
		Organization string `query:"organization" maxLength:"64" doc:"All if left out, for an admin of all"`
	}
	register(a, huma.Operation{OperationID: "list-users", Method: http.MethodGet, Path: "/api/v1/users", Summary: "Users", Tags: tags},
		func(ctx context.Context, in *query) (*list[access.User], error) {
			if w := asking(ctx); in.Organization == "" {
				in.Organization = w.Organization
			}
			if _, err := admin(ctx, in.Organization); err != nil {
				return nil, err
			}
			all, err := a.o.Access.Users(ctx, in.Organization)
			return &list[access.User]{all}, err
		})
	type userBody struct {
		Organization string        `json:"organization,omitempty" maxLength:"64"`
		Role         access.Role   `json:"role" enum:"publisher,auditor,admin"`
		Password     string        `json:"password,omitempty" maxLength:"1024" doc:"Stays if left out"`
		SignIn       access.SignIn `json:"sign_in,omitempty" enum:"password,openid" doc:"Stays if left out; password for a new one"`
	}
	type putUser struct {
		Name string `path:"name" maxLength:"64"`
		Body userBody
	}
	// An admin of one organization cannot take over a user of another, nor learn that there is one: the answer is instead. The store checks
	// this against the user that it replaces.
	mine := func(w *who, instead error) func(*access.User) error {
		return func(u *access.User) error {
			if u != nil && w.Organization != "" && u.Organization != w.Organization {
				return instead
			}
			return nil
		}
	}
	register(a, huma.Operation{OperationID: "put-user", Method: http.MethodPut, Path: "/api/v1/users/{name}", Summary: "Make or change a user", Tags: tags, Errors: []int{409, 422}},
		func(ctx context.Context, in *putUser) (*struct{ Body access.User }, error) {
			w, err := admin(ctx, in.Body.Organization)
			if err != nil {
				return nil, err
			}
			u := access.User{Name: in.Name, Organization: in.Body.Organization, Role: in.Body.Role, By: w.String(), SignIn: in.Body.SignIn}
			change, err := a.o.Access.ChangeUser(access.WithNetwork(ctx, rate.Network(w.ip)), u, in.Body.Password, mine(w, access.ErrTaken))
			if errors.Is(err, access.ErrBusy) {
				return nil, later(slotAgain, err.Error())
			}
			if err != nil {
				return nil, err
			}
			a.tellChange(ctx, w, change)
			return &struct{ Body access.User }{change.After}, nil
		})
	type named struct {
		Name string `path:"name" maxLength:"64"`
	}
	register(a, huma.Operation{OperationID: "delete-user", Method: http.MethodDelete, Path: "/api/v1/users/{name}", Summary: "Forget a user", Tags: tags, Errors: []int{404}},
		func(ctx context.Context, in *named) (*struct{}, error) {
			w, err := admin(ctx, asking(ctx).Organization)
			if err != nil {
				return nil, err
			}
			u, err := a.o.Access.RemoveUser(ctx, in.Name, mine(w, access.ErrNone))
			if err != nil {
				return nil, err
			}
			a.tellWith(ctx, w, "user.deleted", "delete", u.Organization, map[string]string{"name": u.Name, "uid": u.ID, "role": string(u.Role)}, u, nil)
			a.endSessions(ctx, w, u, "the user was removed")
			return nil, nil
		})
	register(a, huma.Operation{OperationID: "list-keys", Method: http.MethodGet, Path: "/api/v1/keys", Summary: "API keys, without their secrets", Tags: tags},
		func(ctx context.Context, in *query) (*list[access.Key], error) {
			if w := asking(ctx); in.Organization == "" {
				in.Organization = w.Organization
			}
			if _, err := admin(ctx, in.Organization); err != nil {
				return nil, err
			}
			all, err := a.o.Access.Keys(ctx, in.Organization)
			return &list[access.Key]{all}, err
		})
	type keyBody struct {
		Name         string      `json:"name" maxLength:"64"`
		Organization string      `json:"organization,omitempty" maxLength:"64"`
		Role         access.Role `json:"role" enum:"publisher,auditor,admin"`
		Days         int         `json:"days,omitempty" minimum:"1" maximum:"3650" default:"365" doc:"How long it works"`
	}
	type newKey struct {
		access.Key
		Secret string `json:"secret" doc:"Shown this once"`
	}
	register(a, huma.Operation{
		OperationID: "create-key", Method: http.MethodPost, Path: "/api/v1/keys", Summary: "Make an API key", Tags: tags, DefaultStatus: http.StatusCreated, Errors: []int{409, 422},
	}, func(ctx context.Context, in *struct{ Body keyBody }) (*struct{ Body newKey }, error) {
		w, err := admin(ctx, in.Body.Organization)
		if err != nil {
			return nil, err
		}
		k := access.Key{
			Name: in.Body.Name, Organization: in.Body.Organization, Role: in.Body.Role, By: w.String(), Expires: time.Now().UTC().AddDate(0, 0, max(in.Body.Days, 1)).Truncate(time.Second),
		}
		secret, err := a.o.Access.CreateKey(ctx, &k)
		if err != nil {
			return nil, err
		}
		a.tell(ctx, w, "key.created", "create", schema.Success, k.Organization, "", map[string]string{
			"name": k.Name, "uid": k.ID, "role": string(k.Role), "of": cmp.Or(k.Organization, "all organizations"), "expires": k.Expires.Format(time.RFC3339),
		})
		return &struct{ Body newKey }{newKey{k, secret}}, nil
	})
	register(a, huma.Operation{OperationID: "revoke-key", Method: http.MethodDelete, Path: "/api/v1/keys/{name}", Summary: "Have a key open nothing any more", Tags: tags, Errors: []int{404}},
		func(ctx context.Context, in *named) (*struct{}, error) {
			w, err := admin(ctx, asking(ctx).Organization) // before he learns which keys there are
			if err != nil {
				return nil, err
			}
			keys, err := a.o.Access.Keys(ctx, w.Organization)
			if err != nil {
				return nil, err
			}
			for i := range keys {
				if keys[i].Name != in.Name {
					continue
				}
				if _, err := a.o.Access.RevokeKey(ctx, in.Name); err != nil {
					return nil, err
				}
				a.tell(ctx, w, "key.revoked", "delete", schema.Success, keys[i].Organization, "", map[string]string{"name": in.Name, "uid": keys[i].ID, "role": string(keys[i].Role)})
				return nil, nil
			}
			return nil, access.ErrNone
		})
}

// tellChange puts a new or changed user into the trail, with what it was and is, and the sessions that the change ended.
func (a *audit) tellChange(ctx context.Context, w *who, c *access.Change) {
	after := &c.After
	attributes := map[string]string{"name": after.Name, "uid": after.ID, "role": string(after.Role)}
	if c.Password {
		attributes["password"] = "set"
	}
	if c.Before == nil {
		a.tellWith(ctx, w, "user.created", "create", after.Organization, attributes, nil, after)
		return
	}
	a.tellWith(ctx, w, "user.updated", "update", after.Organization, attributes, c.Before, after)
	if c.Before.Organization != after.Organization { // the one that loses the user learns of it, too
		a.tellWith(ctx, w, "user.updated", "update", c.Before.Organization, attributes, c.Before, after)
	}
	if c.Ended {
		a.endSessions(ctx, w, after, "the user was changed")
	}
}

// tellWith tells of a change with what was before and what is after.
func (a *audit) tellWith(ctx context.Context, w *who, code, action, organization string, attributes map[string]string, before, after *access.User) {
	e := a.event(ctx, w, code, action, schema.Success, organization, "", attributes)
	for user, to := range map[*access.User]*json.RawMessage{before: &e.Before, after: &e.After} {
		if user == nil {
			continue
		}
		text, err := json.Marshal(user) // it has no secrets
		if err != nil {
			a.o.Logger.ErrorContext(ctx, "a user is not in the event of its change", slog.Any("error", err))
			continue
		}
		*to = text
	}
	a.o.Record(ctx, e)
}

// endSessions removes the sessions that a change has ended, and tells how many they were. The caller may be gone.
func (a *audit) endSessions(ctx context.Context, w *who, u *access.User, why string) {
	n, err := a.o.Access.ForgetSessions(context.WithoutCancel(ctx), u.ID)
	if err != nil {
		a.o.Logger.WarnContext(ctx, "ended sessions were not removed: they open nothing", slog.String("user", u.Name), slog.Any("error", err))
	}
	if n > 0 {
		a.tell(ctx, w, "session.ended", "signout", schema.Success, u.Organization, why, map[string]string{"name": u.Name, "uid": u.ID, "sessions": strconv.Itoa(n)})
	}
}
