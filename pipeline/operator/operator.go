// Package operator is what people who run Kansa may ask of a running system besides reading: to change settings, to
// make and revoke exports, to try a destination. The command line asks by [Client]; the role exporter answers by
// [Desk].
//
// It owns the list of verbs and their questions, and decides nothing itself.
package operator

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
)

// role answers.
const role = "exporter"

const (
	usual = 10 * time.Second
	// long is for what reads the manifests of years, or speaks with a server that is slow.
	long = 2 * time.Minute
)

// Desk answers.
type Desk struct {
	Settings *settings.Store
	States   exporter.States
	Intake   *exporter.Intake
	Exporter *exporter.Exporter
	Access   *access.Store
	// Record records what the verbs change that no other package records.
	Record func(ctx context.Context, e schema.Event)
	Logger *slog.Logger
}

// Client asks, in the name of By.
type Client struct {
	NC *nats.Conn
	By string
}

// DestinationStatus is a destination and how deliveries to it are doing.
type DestinationStatus struct {
	settings.Destination
	Health exporter.Health `json:"health"`
	// State is ok, failing, paused, waiting (nothing was delivered yet), manual (without a schedule) or unreadable.
	State string `json:"state"`
	// NextRun is when the next archive is due; in the past while that archive waits or fails.
	NextRun time.Time `json:"next_run,omitzero"`
}

type (
	ofOrganization struct {
		Organization string `json:"organization"`
	}
	named struct {
		Organization string          `json:"organization"`
		Name         string          `json:"name"`
		Change       settings.Change `json:"change"`
		Paused       bool            `json:"paused,omitempty"`
	}
	save struct {
		Destination exporter.Destination `json:"destination"`
		Change      settings.Change      `json:"change"`
		// Test it first, and keep it only if that succeeds.
		Test bool `json:"test,omitempty"`
	}
	saveOrganization struct {
		Organization settings.Organization `json:"organization"`
		By           string                `json:"by"`
	}
	switchTrails struct {
		Organization string                `json:"organization"`
		Switch       settings.SwitchTrails `json:"switch"`
		Change       settings.Change       `json:"change"`
	}
	revoke struct {
		ID string `json:"id"`
		By string `json:"by"`
	}
	nothing struct{}
)

// Requests that take long, or that reach servers of an organization's own, count against its share.
func (q ofOrganization) Share() string   { return q.Organization }
func (q named) Share() string            { return q.Organization }
func (q save) Share() string             { return q.Destination.Organization }
func (q saveOrganization) Share() string { return q.Organization.Name }
func (q switchTrails) Share() string     { return q.Organization }

// Saved is a destination that was kept, or was not because its test failed.
type Saved struct {
	Destination *settings.Destination `json:"destination,omitempty"`
	Test        *exporter.TestReport  `json:"test,omitempty"`
}

// Serve answers until ctx ends.
func (d *Desk) Serve(ctx context.Context, nc *nats.Conn) error {
	kinds := control.Kinds{settings.ErrChanged, settings.ErrKeptOn, access.ErrTaken, access.ErrNone, exporter.ErrNoDestination, exporter.ErrNoExport, exporter.ErrQuota}
	return control.Serve(ctx, nc, kinds, d.Logger, append(d.keyVerbs(),
		control.On("destination.list", usual, func(ctx context.Context, q ofOrganization) ([]DestinationStatus, error) {
			return d.destinations(ctx, q.Organization)
		}),
		control.On("destination.save", long, d.save),
		control.On("destination.remove", usual, func(ctx context.Context, q named) (nothing, error) {
			return nothing{}, d.Settings.RemoveDestination(ctx, q.Organization, q.Name, q.Change)
		}),
		control.On("destination.pause", usual, func(ctx context.Context, q named) (*settings.Destination, error) {
			return d.Settings.PauseDestination(ctx, q.Organization, q.Name, q.Change.By, q.Paused)
		}),
		control.On("destination.test", long, func(ctx context.Context, q named) (*exporter.TestReport, error) {
			dest, err := d.Settings.Destination(ctx, q.Organization, q.Name)
			if err != nil {
				return nil, err
			}
			return d.Exporter.Test(ctx, dest)
		}),
		control.On("organization.list", usual, func(ctx context.Context, _ nothing) ([]settings.Organization, error) {
			return d.Settings.Organizations(ctx)
		}),
		control.On("organization.show", usual, func(ctx context.Context, q ofOrganization) (*settings.Organization, error) {
			return d.Settings.ShowOrganization(ctx, q.Organization)
		}),
		control.On("organization.save", usual, func(ctx context.Context, q saveOrganization) (*settings.Organization, error) {
			return d.Settings.SaveOrganization(ctx, q.Organization, q.By)
		}),
		control.On("trails.list", usual, func(ctx context.Context, _ nothing) ([]settings.Trails, error) { return d.Settings.ListTrails(ctx) }),
		control.On("trails.show", usual, func(ctx context.Context, q ofOrganization) (*settings.Trails, error) {
			return d.Settings.ShowTrails(ctx, q.Organization)
		}),
		control.On("trails.switch", usual, func(ctx context.Context, q switchTrails) (*settings.Trails, error) {
			return d.Settings.SwitchTrails(ctx, q.Organization, q.Switch, q.Change)
		}),
		control.On("export.ask", long, func(ctx context.Context, q exporter.Request) (*exporter.Asked, error) { return d.Intake.Ask(ctx, q) }),
		control.On("export.estimate", long, func(ctx context.Context, q exporter.Request) (*exporter.Estimate, error) {
			return d.Intake.Estimate(ctx, q)
		}),
		control.On("export.revoke", usual, func(ctx context.Context, q revoke) (*exporter.Export, error) { return d.Intake.Revoke(ctx, q.ID, q.By) }),
	)...)
}

func (d *Desk) save(ctx context.Context, q save) (*Saved, error) {
	var saved Saved
	var err error
	if q.Test {
		tried := q.Destination
		if tried.SFTP != nil {
			server := *tried.SFTP
			tried.SFTP = &server
		}
		if err := d.Settings.Complete(ctx, &tried); err != nil {
			return nil, err
		}
		if err := tried.Normalize(); err != nil {
			return nil, err
		}
		if err := d.Settings.CheckDestination(&tried); err != nil {
			return nil, err
		}
		if saved.Test, err = d.Exporter.Test(ctx, tried); err != nil || !saved.Test.OK {
			return &saved, err
		}
	}
	saved.Destination, err = d.Settings.SaveDestination(ctx, q.Destination, q.Change)
	return &saved, err
}

func (d *Desk) destinations(ctx context.Context, organization string) ([]DestinationStatus, error) {
	kept, err := d.Settings.Destinations(ctx, organization)
	if err != nil {
		return nil, err
	}
	all := make([]DestinationStatus, len(kept))
	for i := range kept {
		s := DestinationStatus{Destination: kept[i]}
		if s.Health, err = d.States.Health(ctx, kept[i].Organization, kept[i].Name); err != nil {
			return nil, err
		}
		if s.Schedule != nil && !s.Paused {
			next, err := s.Schedule.NextRun(s.Health.Next, time.Now())
			if s.NextRun = next; err != nil {
				s.Problem = err.Error()
			}
		}
		switch {
		case s.Problem != "":
			s.State = "unreadable"
		case s.Paused:
			s.State = "paused"
		case !s.Health.FailingSince.IsZero():
			s.State = "failing"
		case !s.Health.LastSuccess.IsZero():
			s.State = "ok"
		case s.Schedule == nil:
			s.State = "manual"
		default:
			s.State = "waiting"
		}
		all[i] = s
	}
	return all, nil
}

func ask[A, Q any](ctx context.Context, c Client, verb string, limit time.Duration, q Q) (A, error) {
	return control.Ask[A](ctx, c.NC, role, verb, limit, q)
}

// Destinations lists those of an organization, or all.
func (c Client) Destinations(ctx context.Context, organization string) ([]DestinationStatus, error) {
	return ask[[]DestinationStatus](ctx, c, "destination.list", usual, ofOrganization{organization})
}

// SaveDestination keeps d in place of a revision, zero for a new one. With test, it is tried first, and not kept if
// that fails: the answer then has a report and no destination.
func (c Client) SaveDestination(ctx context.Context, d exporter.Destination, revision uint64, test bool) (*Saved, error) {
	return ask[*Saved](ctx, c, "destination.save", long, save{Destination: d, Change: settings.Change{By: c.By, Revision: revision}, Test: test})
}

// RemoveDestination forgets one.
func (c Client) RemoveDestination(ctx context.Context, organization, name string) error {
	_, err := ask[nothing](ctx, c, "destination.remove", usual, named{Organization: organization, Name: name, Change: settings.Change{By: c.By}})
	return err
}

// PauseDestination holds one back, or lets it go on.
func (c Client) PauseDestination(ctx context.Context, organization, name string, paused bool) (*settings.Destination, error) {
	return ask[*settings.Destination](ctx, c, "destination.pause", usual,
		named{Organization: organization, Name: name, Change: settings.Change{By: c.By}, Paused: paused})
}

// TestDestination tries one that is kept, from where the exporter runs.
func (c Client) TestDestination(ctx context.Context, organization, name string) (*exporter.TestReport, error) {
	return ask[*exporter.TestReport](ctx, c, "destination.test", long, named{Organization: organization, Name: name})
}

// Organizations lists those that decided something.
func (c Client) Organizations(ctx context.Context) ([]settings.Organization, error) {
	return ask[[]settings.Organization](ctx, c, "organization.list", usual, nothing{})
}

// Organization returns the settings of one.
func (c Client) Organization(ctx context.Context, name string) (*settings.Organization, error) {
	return ask[*settings.Organization](ctx, c, "organization.show", usual, ofOrganization{name})
}

// SaveOrganization keeps o.
func (c Client) SaveOrganization(ctx context.Context, o settings.Organization) (*settings.Organization, error) {
	return ask[*settings.Organization](ctx, c, "organization.save", usual, saveOrganization{o, c.By})
}

// AllTrails lists what the organizations record that ever switched something.
func (c Client) AllTrails(ctx context.Context) ([]settings.Trails, error) {
	return ask[[]settings.Trails](ctx, c, "trails.list", usual, nothing{})
}

// Trails returns what an organization records.
func (c Client) Trails(ctx context.Context, organization string) (*settings.Trails, error) {
	return ask[*settings.Trails](ctx, c, "trails.show", usual, ofOrganization{organization})
}

// SwitchTrails turns switches, in place of a revision.
func (c Client) SwitchTrails(ctx context.Context, organization string, want settings.SwitchTrails, revision uint64) (*settings.Trails, error) {
	return ask[*settings.Trails](ctx, c, "trails.switch", usual, switchTrails{organization, want, settings.Change{By: c.By, Revision: revision}})
}

// AskExport asks for an archive.
func (c Client) AskExport(ctx context.Context, r exporter.Request) (*exporter.Asked, error) {
	r.RequestedBy = c.By
	return ask[*exporter.Asked](ctx, c, "export.ask", long, r)
}

// Estimate says what an export would hold.
func (c Client) Estimate(ctx context.Context, r exporter.Request) (*exporter.Estimate, error) {
	return ask[*exporter.Estimate](ctx, c, "export.estimate", long, r)
}

// Revoke takes back the links of an export.
func (c Client) Revoke(ctx context.Context, id string) (*exporter.Export, error) {
	return ask[*exporter.Export](ctx, c, "export.revoke", usual, revoke{id, c.By})
}
