package analyst

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/schema"
)

// Role is the one that answers the verbs: it has a connection to ClickHouse.
const Role = "api"

// usual bounds a verb. One that creates a user on a cluster may take that long.
const usual = 30 * time.Second

// Queries are the running queries of the embedded engine.
type Queries interface {
	Queries(ctx context.Context) ([]engine.RunningQuery, error)
	KillQuery(ctx context.Context, id, username string) (int, error)
}

// Desk answers the verbs.
type Desk struct {
	Store *Store
	// Queries is nil on a ClickHouse server, and Server is nil with the embedded engine.
	Queries Queries
	Server  *Server
	// Address is where analysts connect, Database what they see.
	Address, Database string
	Record            func(ctx context.Context, e schema.Event)
	Logger            *slog.Logger
}

// Connection is how an analyst connects.
type Connection struct {
	Analyst
	Address  string `json:"address"`
	Database string `json:"database"`
}

// Added is a new analyst with the password, which is shown once.
type Added struct {
	Connection
	Password string `json:"password"`
}

// Query is a running query of an analyst.
type Query struct {
	engine.RunningQuery
	Organization string `json:"organization,omitempty"`
}

type (
	question struct {
		Organization string `json:"organization,omitempty"`
		Name         string `json:"name,omitempty"`
		Days         int    `json:"days,omitempty"`
		QueryID      string `json:"query_id,omitempty"`
		By           string `json:"by,omitempty"`
	}
	nothing struct{}
)

// Share is whose share of the verbs a question counts against: see control.Shared.
func (q question) Share() string { return q.Organization }

// Serve answers until ctx ends.
func (d *Desk) Serve(ctx context.Context, nc *nats.Conn) error {
	return control.Serve(ctx, nc, control.Kinds{ErrNone, ErrTaken}, d.Logger,
		control.On("analyst.list", usual, func(ctx context.Context, q question) ([]Analyst, error) {
			all, err := d.Store.List(ctx, q.Organization)
			list := make([]Analyst, len(all))
			for i := range all {
				list[i] = all[i].Analyst
			}
			return list, err
		}),
		control.On("analyst.show", usual, func(ctx context.Context, q question) (*Connection, error) {
			a, err := d.Store.Get(ctx, q.Organization, q.Name)
			if err != nil {
				return nil, err
			}
			return &Connection{a.Analyst, d.Address, d.Database}, nil
		}),
		control.On("analyst.add", usual, d.add),
		control.On("analyst.remove", usual, d.remove),
		control.On("analyst.queries", usual, d.queries),
		control.On("analyst.kill", usual, d.kill),
	)
}

func (d *Desk) add(ctx context.Context, q question) (*Added, error) {
	a, password, err := d.Store.Add(ctx, q.Organization, q.Name, q.By, q.Days)
	if err != nil {
		return nil, err
	}
	if d.Server != nil {
		if err := d.Server.create(ctx, a); err != nil {
			return nil, errors.Join(err, d.Store.Remove(ctx, a))
		}
	}
	d.tell(ctx, "analyst.created", "create", a, q.By)
	return &Added{Connection{a.Analyst, d.Address, d.Database}, password}, nil
}

func (d *Desk) remove(ctx context.Context, q question) (nothing, error) {
	a, err := d.Store.Get(ctx, q.Organization, q.Name)
	if err != nil {
		return nothing{}, err
	}
	if d.Server != nil { // first: an account that is forgotten could not be removed again
		if err := d.Server.drop(ctx, a); err != nil {
			return nothing{}, err
		}
	}
	if err := d.Store.Remove(ctx, a); err != nil {
		return nothing{}, err
	}
	d.tell(ctx, "analyst.deleted", "delete", a, q.By)
	return nothing{}, nil
}

func (d *Desk) tell(ctx context.Context, event, action string, a *Account, by string) {
	d.Record(ctx, schema.Event{
		Organization: a.Organization, Trail: schema.Activity, Event: event, Action: action, Actor: schema.Actor{Type: "user", ID: by},
		Target: schema.Target{Type: "analyst", ID: a.ID, Name: a.FullName()}, Attributes: map[string]string{"expires": a.Expires.Format(time.RFC3339)},
	})
}

var errOnServer = errors.New("analysts' queries are listed and killed only in the embedded ClickHouse: on the server of clickhouse.url, use system.processes and KILL QUERY")

func (d *Desk) queries(ctx context.Context, q question) ([]Query, error) {
	if d.Queries == nil {
		return nil, errOnServer
	}
	running, err := d.Queries.Queries(ctx)
	if err != nil {
		return nil, err
	}
	accounts, err := d.Store.List(ctx, "")
	if err != nil {
		return nil, err
	}
	of := map[string]string{}
	for i := range accounts {
		of[accounts[i].ID] = accounts[i].Organization
	}
	list := []Query{}
	for _, r := range running {
		if organization := of[r.ReaderID]; q.Organization == "" || q.Organization == organization {
			list = append(list, Query{r, organization})
		}
	}
	return list, nil
}

func (d *Desk) kill(ctx context.Context, q question) (int, error) {
	running, err := d.queries(ctx, q)
	if err != nil {
		return 0, err
	}
	killed := 0
	for i := range running {
		if running[i].QueryID != q.QueryID {
			continue
		}
		n, err := d.Queries.KillQuery(ctx, q.QueryID, running[i].Username)
		if err != nil {
			return killed, err
		}
		if killed += n; n > 0 {
			d.Record(ctx, schema.Event{
				Organization: running[i].Organization, Trail: schema.Activity, Event: "analyst.query.killed", Action: "delete", Actor: schema.Actor{Type: "user", ID: q.By},
				Target: schema.Target{Type: "query", ID: q.QueryID}, Attributes: map[string]string{"analyst": running[i].Username},
			})
		}
	}
	if killed == 0 {
		return 0, fmt.Errorf("no running query has the id %q: kansa analyst queries lists those that run", q.QueryID)
	}
	return killed, nil
}

// Client asks a running system, in the name of By.
type Client struct {
	NC *nats.Conn
	By string
}

func ask[A any](ctx context.Context, c Client, verb string, q question) (A, error) {
	q.By = c.By
	return control.Ask[A](ctx, c.NC, Role, verb, usual, q)
}

// List returns the analysts of an organization, or all.
func (c Client) List(ctx context.Context, organization string) ([]Analyst, error) {
	return ask[[]Analyst](ctx, c, "analyst.list", question{Organization: organization})
}

// Show returns how an analyst connects.
func (c Client) Show(ctx context.Context, organization, name string) (*Connection, error) {
	return ask[*Connection](ctx, c, "analyst.show", question{Organization: organization, Name: name})
}

// Add makes an analyst. With the embedded engine, the account works within a second.
func (c Client) Add(ctx context.Context, organization, name string, days int) (*Added, error) {
	return ask[*Added](ctx, c, "analyst.add", question{Organization: organization, Name: name, Days: days})
}

// Remove forgets an analyst and ends what it runs.
func (c Client) Remove(ctx context.Context, organization, name string) error {
	_, err := ask[nothing](ctx, c, "analyst.remove", question{Organization: organization, Name: name})
	return err
}

// Queries lists the running queries of the analysts of an organization, or of all.
func (c Client) Queries(ctx context.Context, organization string) ([]Query, error) {
	return ask[[]Query](ctx, c, "analyst.queries", question{Organization: organization})
}

// Kill ends the running queries with an id and returns how many.
func (c Client) Kill(ctx context.Context, organization, id string) (int, error) {
	return ask[int](ctx, c, "analyst.kill", question{Organization: organization, QueryID: id})
}
