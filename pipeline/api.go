package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"time"

	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/console"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/producers/mapping"
)

// drainRequests is how long requests may take to end when the system does.
const drainRequests = 10 * time.Second

// gatewayInFlight is how many messages the gateway has on their way to the broker at once, of all organizations and of each. The broker
// stores one after another, so those of one organization delay the next message of another.
const (
	gatewayInFlight     = 64
	gatewayInFlightEach = 4
)

// startAPI starts the HTTP server, with the downloads and the gateway or one of them.
func (s *System) startAPI(ctx context.Context, downloads, intake bool) (err error) {
	c := s.Config.API
	slots := func(s config.Slots) api.Slots { return api.Slots(s) }
	o := api.Options{
		Listen: c.Listen, CertFile: c.TLSCertFile, KeyFile: c.TLSKeyFile, WriteTimeout: c.WriteTimeout, PublicURL: s.Config.Exports.PublicURL, OwnRules: []string{gateway.Path},
		Routes: map[string]http.Handler{}, Limits: api.Limits{
			PerSecond: c.RequestsPerSecond, AddressPerSecond: c.AddressRequestsPerSecond, SignInsPerMinute: c.SignInsPerMinute,
			Tails: slots(c.Tails), Logs: slots(c.Logs), Downloads: slots(c.Downloads), Queries: api.Queries(c.Queries), Refused: &s.refused,
		},
		Watch: s.watchAccess,
	}
	if o.Proxies, err = request.ParseProxies(c.TrustedProxies); err != nil {
		return fmt.Errorf("api.trusted_proxies: %w", err)
	}
	if downloads {
		o.Bucket, o.States, o.Links, o.Record = s.Bucket, s.States, s.Links, s.own.Record
		if o.Audit, err = s.audit(ctx); err != nil {
			return err
		}
		pages, err := console.Routes()
		if err != nil {
			return err
		}
		maps.Copy(o.Routes, pages)
	}
	var publisher *producers.Publisher
	if intake {
		if publisher, err = s.newGateway(); err != nil {
			return err
		}
		o.Routes[gateway.Path] = publishing(s.Gateway)
		o.Drain = drainRequests
	}
	s.API, err = s.serve(ctx, o, publisher)
	return err
}

// serve starts an HTTP server with what every process says of itself, and stops it, and then the publisher if
// there is one, with the system.
func (s *System) serve(ctx context.Context, o api.Options, publisher *producers.Publisher) (*api.Server, error) {
	o.Ready, o.Details = health.Ready(s.reportLately), health.Handler(s.reportLately)
	o.Metrics, o.Logger = s.registry.Handler(), s.log.With(slog.String("part", "api"))
	server, err := api.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	s.roles.Go(func() error {
		<-s.ended.Done()
		errs := []error{server.Close()}
		if publisher != nil { // no request is left that could publish
			ctx, cancel := context.WithTimeout(context.Background(), drainRequests)
			defer cancel()
			errs = append(errs, publisher.Close(ctx))
		}
		return errors.Join(errs...)
	})
	return server, nil
}

// serveHealth serves what the process says of itself at an address of its own.
func (s *System) serveHealth(ctx context.Context) (err error) {
	s.Health, err = s.serve(ctx, api.Options{Listen: s.Config.Health.Listen, Public: true}, nil)
	return err
}

func (s *System) newGateway() (*producers.Publisher, error) {
	c, log := s.Config.Gateway, s.log.With(slog.String("part", "gateway"))
	publisher, err := producers.New(s.Client.JS, producers.Config{
		Spread: true, MaxInFlight: gatewayInFlight, MaxInFlightEach: gatewayInFlightEach, Bulk: s.fair.bulk,
		FailWhenFull: true, Tracing: s.tracing, RetryFor: c.RetryFor, AckTimeout: min(5*time.Second, c.RetryFor), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	mappings, err := mapping.LoadAll(c.Mappings)
	if err != nil {
		return nil, fmt.Errorf("start the gateway: gateway.mappings: %w", err)
	}
	s.Gateway, err = gateway.New(publisher, gateway.Config{
		Mappings: mappings,
		Access:   &publishers{watch: s.watchAccess, anonymous: s.Config.Gateway.Anonymous == "loopback"},
		Limits:   s.fair,
		MaxBody:  c.MaxBody, MaxEvents: c.MaxEvents, Memory: c.Memory, ClientMemory: c.ClientMemory, MaxRequests: c.MaxRequests,
		Timeout: c.Timeout, Window: s.Config.Streams.DuplicateWindow, Logger: log,
	})
	return publisher, err
}
