package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/oidc"
	"github.com/kansa-audit/kansa/pipeline/operator"
)

// audit are the parts behind the API.
func (s *System) audit(ctx context.Context) (*api.Audit, error) {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return nil, err
	}
	openID, err := s.openID(ctx)
	if err != nil {
		return nil, err
	}
	desk := integrity.New(s.Bucket, *progress, s.verifications, s.Config.Rollup.Hour, s.log.With(slog.String("part", "integrity")))
	desk.Table = &s.findings
	s.roles.Go(func() error { return s.findings.Follow(s.ended) })
	s.roles.Go(func() error { return desk.Run(s.ended) })
	return &api.Audit{
		Integrity: desk, Differs: s.findings.Event,
		OpenID: openID,
		Access: &s.Access, Watch: s.watchAccess, Store: s.Store, Bucket: s.Bucket, States: s.States, Floor: s.newFloor(), Hour: s.Config.Rollup.Hour, JS: s.Client.JS,
		Ask:      func(by string) operator.Client { return operator.Client{NC: s.Client.NC, By: by} },
		Analysts: func(by string) analyst.Client { return analyst.Client{NC: s.Client.NC, By: by} },
		Secure:   strings.HasPrefix(s.Config.Exports.PublicURL, "https://"),
		Record:   s.own.Record, RecordNow: s.own.RecordNow, Writers: s.Client, Logger: s.log.With(slog.String("part", "api")),
	}, nil
}

// openID is the sign-in by an OpenID provider, if there is one.
func (s *System) openID(ctx context.Context) (*api.OpenID, error) {
	c := s.Config.API.OIDC
	if c.Issuer == "" {
		return nil, nil
	}
	secret, err := c.ClientSecret.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("api.oidc.client_secret: %w", err)
	}
	o := &api.OpenID{
		Issuer: c.Issuer, Title: c.Title, Create: c.Create,
		Provider: oidc.New(oidc.Config{
			Issuer: c.Issuer, ClientID: c.ClientID, ClientSecret: string(secret), Scopes: c.Scopes, NameClaim: c.NameClaim, GroupsClaim: c.GroupsClaim,
			Redirect: func() string { return strings.TrimSuffix(s.publicURL(), "/") + api.OpenIDCallback },
		}),
	}
	for _, r := range c.Roles {
		o.Roles = append(o.Roles, api.GroupRole{Group: r.Group, Role: access.Role(r.Role), Organization: r.Organization})
	}
	return o, nil
}

// floorFor is how long the writer's ack floor is believed: a page is as fresh as that.
const floorFor = 100 * time.Millisecond

// newFloor returns a function that tells up to which place in the stream every event of an organization is in the table. However
// many ask, the broker is asked once in a while how far the lanes are.
func (s *System) newFloor() func(context.Context, string) (uint64, error) {
	var mu sync.Mutex
	var places floor.Places
	var at time.Time
	look := func(ctx context.Context) (floor.Places, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) < floorFor {
			return places, nil
		}
		now, err := s.floor.Places(ctx)
		if err == nil {
			places, at = now, time.Now()
		}
		return now, err
	}
	return func(ctx context.Context, organization string) (uint64, error) {
		p, err := look(ctx)
		if err != nil {
			return 0, err
		}
		return s.floor.Of(ctx, p, organization)
	}
}
