package operator

import (
	"context"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/schema"
)

// NewKey is a key that was made. Its secret is shown this once.
type NewKey struct {
	access.Key
	Secret string `json:"secret"`
}

type (
	addKey struct {
		Key  access.Key `json:"key"`
		Days int        `json:"days"`
		By   string     `json:"by"`
	}
	revokeKey struct {
		Name string `json:"name"`
		By   string `json:"by"`
	}
)

// keyVerbs are the requests about API keys.
func (d *Desk) keyVerbs() []control.Verb {
	return []control.Verb{
		control.On("apikey.list", usual, func(ctx context.Context, q ofOrganization) ([]access.Key, error) {
			return d.Access.Keys(ctx, q.Organization)
		}),
		control.On("apikey.add", usual, func(ctx context.Context, q addKey) (*NewKey, error) {
			k := q.Key
			k.By, k.Expires = q.By, time.Now().UTC().AddDate(0, 0, q.Days).Truncate(time.Second)
			secret, err := d.Access.CreateKey(ctx, &k)
			if err != nil {
				return nil, err
			}
			d.recordKey(ctx, "key.created", "create", q.By, &k)
			return &NewKey{k, secret}, nil
		}),
		control.On("apikey.revoke", usual, func(ctx context.Context, q revokeKey) (*access.Key, error) {
			k, err := d.Access.RevokeKey(ctx, q.Name)
			if err != nil {
				return nil, err
			}
			d.recordKey(ctx, "key.revoked", "delete", q.By, k)
			return k, nil
		}),
	}
}

func (d *Desk) recordKey(ctx context.Context, event, action, by string, k *access.Key) {
	d.Record(ctx, schema.Event{
		Organization: k.Organization, Event: event, Action: action, Outcome: schema.Success, Actor: schema.Actor{Type: "operator", ID: by},
		Target: schema.Target{Type: "key", ID: k.Name}, Attributes: map[string]string{"name": k.Name, "role": string(k.Role)},
	})
}

// Keys lists the API keys of an organization, or all.
func (c Client) Keys(ctx context.Context, organization string) ([]access.Key, error) {
	return ask[[]access.Key](ctx, c, "apikey.list", usual, ofOrganization{organization})
}

// AddKey makes an API key that works for some days.
func (c Client) AddKey(ctx context.Context, k access.Key, days int) (*NewKey, error) {
	return ask[*NewKey](ctx, c, "apikey.add", usual, addKey{k, days, c.By})
}

// RevokeKey ends an API key, and what it has opened.
func (c Client) RevokeKey(ctx context.Context, name string) (*access.Key, error) {
	return ask[*access.Key](ctx, c, "apikey.revoke", usual, revokeKey{name, c.By})
}
