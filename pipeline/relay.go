package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers/relay"
	"github.com/kansa-audit/kansa/schema"
)

// startRelay starts the NATS entry point, on a connection of its own: what publishers send does not hold up anything else.
func (s *System) startRelay(ctx context.Context) error {
	o := brokerOptions(s.Config)
	o.Name, o.Logger = "relay", s.log
	if s.server != nil {
		o = broker.Options{Embedded: s.server, Name: o.Name, Logger: s.log}
	}
	client, err := broker.Connect(ctx, o)
	if err != nil {
		return fmt.Errorf("connect the relay: %w", err)
	}
	r, err := relay.Start(client.NC, relay.Config{
		Credential: s.credential, Limit: s.fair.message, Bulk: s.fair.bulk, Logger: s.log.With(slog.String("part", "relay")),
	})
	if err != nil {
		client.Close()
		return err
	}
	s.Relay = r
	s.roles.Go(func() error {
		<-s.ended.Done()
		err := r.Close()
		client.Close()
		return err
	})
	return nil
}

// credential is how a login of the broker is recorded. The logins of the embedded broker are API keys; those of external servers are
// marked, so that none of them can be taken for a key.
func (s *System) credential(account, user string) string {
	switch {
	case s.server != nil && user != "":
		return user
	case user != "":
		return "nats:" + user
	case account != "":
		return "nats-account:" + account
	}
	return "unknown"
}

// errAnonymous is what a connection to the broker without a key is refused with.
var errAnonymous = errors.New("there is no key: connect with the key of a publisher as the token")

// anonymous is the login of programs on this machine without a key, where gateway.anonymous allows them to publish.
var anonymous = broker.Login{Name: schema.RecordedByAnonymous, Organization: broker.Everybody}
