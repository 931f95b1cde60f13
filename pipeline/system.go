package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	oteltrace "go.opentelemetry.io/otel/trace"
	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/claims"
	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/metrics"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/reconcile"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/pipeline/status"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/tracing"
	"github.com/kansa-audit/kansa/pipeline/watchdog"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/producers/relay"
	"github.com/kansa-audit/kansa/schema"
)

// Options of a system besides its configuration.
type Options struct {
	Config *config.Config
	Roles  []Role
	// EngineCommand runs the embedded engine's process: this program and its hidden subcommand.
	EngineCommand []string
	// Version of this program, for those who ask.
	Version string
	// Tracing takes the spans, in place of what tracing.endpoint and the environment name.
	Tracing oteltrace.TracerProvider
	Logger  *slog.Logger
}

// System is a running pipeline. Its parts are there to be looked at; they are closed by Close.
type System struct {
	Config   *config.Config
	Client   *broker.Client
	Store    *store.Store   // nil if no role needs it
	Engine   *engine.Engine // nil if ClickHouse is elsewhere
	Bucket   *blob.Bucket
	Writer   *writers // nil if the role is not here
	Rollup   *rollup.Rollup
	Keys     *keys.Keys // of the rollup
	Exporter *exporter.Exporter
	Intake   *exporter.Intake // of the exporter
	Settings *settings.Store  // of the exporter
	Access   access.Store

	retentions *settings.Retentions
	States     exporter.States
	Links      exporter.Links
	API        *api.Server
	// Health is at health.listen; nil without.
	Health *api.Server
	// Gateway is nil if the role is not here; it is served by API.
	Gateway *gateway.Gateway
	Relay   *relay.Relay // nil if the role gateway is not here

	// watchAccess ends what a credential opened with the credential.
	watchAccess *access.Watch
	refused     rate.Refused // by limits
	fair        *fair
	own         owntrail.Trail
	letters     *deadletter.Index
	settings    jetstream.KeyValue
	switches    jetstream.KeyValue // of the trails
	claims      *claims.Log        // of the writer and of repairs
	endClaims   func()
	// findings are the sealed hours from which the table differs.
	findings reconcile.Findings
	auditor  *reconcile.Auditor // of the rollup
	// verifications are what was verified last.
	verifications jetstream.KeyValue
	measured      atomic.Pointer[metrics.Sources] // set when all roles have started
	checks        health.List
	started       atomic.Bool // all roles have started
	registry      *metrics.Registry
	tracing       oteltrace.TracerProvider // nil if there is none
	endTracing    func(context.Context) error
	lately        lately
	certificates  *health.Certificates
	watched       map[Role][]*watchdog.Queue
	drift         *drift
	unaccounted   atomic.Pointer[rollup.Open] // what watchLedger found
	floor         *floor.Floor
	shards        []*health.Floor // of the writer; none if the role is not here
	shared        chan error      // that the stream is shared out anew
	log           *slog.Logger
	lock          *os.File // of data_dir; nil if it is shared
	server        *broker.Server
	logins        *logins // of server
	roles         *errgroup.Group
	stop          context.CancelFunc
	ended         context.Context // done when a role has failed
}

// Start starts everything that the roles need and then the roles. When it returns, events can be
// published. ctx bounds the start only. It answers to ErrAway if the broker goes away meanwhile.
func Start(ctx context.Context, o Options) (_ *System, err error) {
	s := &System{Config: o.Config, log: o.Logger, watched: map[Role][]*watchdog.Queue{}, shared: make(chan error, 1)}
	s.registry = metrics.New(s.measured.Load, s.log.With(slog.String("part", "metrics")))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.claim(ctx, o.Roles); err != nil {
		return nil, err
	}
	if s.tracing = o.Tracing; s.tracing == nil {
		provider, err := tracing.Start(ctx, o.Config.Tracing.Endpoint, o.Version)
		if err != nil {
			return nil, err
		}
		if provider != nil {
			s.tracing, s.endTracing = provider, provider.Shutdown
		}
	}
	reached, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	ctx, connected := s.whileConnected(ctx)
	defer connected()
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), ErrAway) {
			err = fmt.Errorf("%w: %w", ErrAway, err)
		}
	}()
	if err := s.prepare(ctx, reached); err != nil {
		return nil, err
	}
	has := func(r Role) bool { return slices.Contains(o.Roles, r) }
	if has(RoleWriter) || has(RoleRollup) || has(RoleAPI) {
		if err := s.openStore(ctx, o.EngineCommand); err != nil {
			return nil, err
		}
	}
	if s.Bucket, err = OpenPartitions(ctx, o.Config); err != nil {
		return nil, err
	}
	if err := s.buckets(ctx); err != nil {
		return nil, err
	}
	if s.server != nil {
		if err := s.keepOperatorKey(ctx); err != nil {
			return nil, err
		}
	}
	publisher, err := producers.New(s.Client.JS, producers.Config{RecordedBy: schema.RecordedBySystem, Tracing: s.tracing, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	s.own = owntrail.Trail{Publisher: publisher, Logger: o.Logger}
	s.letters = &deadletter.Index{JS: s.Client.JS}
	s.reportDamage(ctx)
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.roles, s.ended = errgroup.WithContext(run)
	s.watchAccess = access.NewWatch(&s.Access, s.log.With(slog.String("part", "access")))
	s.roles.Go(func() error { return s.watchAccess.Run(s.ended) })
	if s.server != nil {
		s.logins.begin(s.ended, &s.Access, s.own.Record)
		s.roles.Go(func() error { return s.logins.follow(s.ended, s.server) })
	}
	if has(RoleWriter) || has(RoleRollup) {
		s.followClaims()
	}
	if s.retentions, err = s.openSettings().Retentions(ctx); err != nil {
		return nil, err
	}
	s.roles.Go(func() error { return s.retentions.Follow(s.ended) })
	s.drift = &drift{client: s.Client, record: s.own.Record, log: s.log.With(slog.String("part", "drift"))}
	s.roles.Go(func() error { s.drift.run(s.ended); return nil })
	s.certificates = s.certificatesOf()
	names := make([]string, len(o.Roles))
	for i, r := range o.Roles {
		names[i] = string(r)
	}
	me := status.This(o.Version, names)
	s.roles.Go(func() error { return status.Serve(s.ended, s.Client.NC, me, s.status) })
	if e := s.Engine; e != nil {
		// Its supervisor has tried and given up; what runs on without it would only look alive.
		s.roles.Go(func() error {
			select {
			case <-s.ended.Done():
				return nil
			case <-e.Done():
				return fmt.Errorf("the embedded engine is gone: %w", e.Err())
			}
		})
	}
	if has(RoleAPI) {
		s.analysts()
	}
	starts := map[Role]func(context.Context) error{
		RoleWriter: s.startWriter, RoleRollup: s.startRollup, RoleExporter: s.startExporter,
	}
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return nil, err
	}
	s.fair = newFair(&o.Config.Limits, progress.Organizations, s.log.With(slog.String("part", "limits")))
	s.fair.refused = &s.refused
	if s.server != nil {
		s.logins.fair.Store(s.fair)
		s.roles.Go(func() error {
			s.fair.follow(s.ended, s.server)
			return nil
		})
	}
	if has(RoleGateway) {
		s.roles.Go(func() error {
			s.fair.pressure.follow(s.ended)
			return nil
		})
		if err := s.startRelay(ctx); err != nil {
			return nil, err
		}
	}
	// The API first: links name its address.
	if has(RoleAPI) || has(RoleGateway) {
		if err := s.startAPI(ctx, has(RoleAPI), has(RoleGateway)); err != nil {
			return nil, fmt.Errorf("start the API: %w", err)
		}
	}
	if listen := o.Config.Health.Listen; listen != "" && (s.API == nil || listen != o.Config.API.Listen || strings.HasSuffix(listen, ":0")) {
		if err := s.serveHealth(ctx); err != nil {
			return nil, fmt.Errorf("serve health.listen: %w", err)
		}
	}
	for _, r := range []Role{RoleWriter, RoleRollup, RoleExporter} {
		if has(r) {
			if err := starts[r](ctx); err != nil {
				return nil, fmt.Errorf("start the %s: %w", r, err)
			}
		}
	}
	measured := &metrics.Sources{
		JS: s.Client.JS, Floor: s.floor, Rollup: s.Rollup, Exporter: s.Exporter, Progress: progress, Hour: o.Config.Rollup.Hour,
		Gateway: s.Gateway, Recording: recording.New(s.Client.JS), Shards: s.shards, Disks: s.disks(), Restarts: s.restarts(),
		Refused: s.refusals, Panics: s.panics, DeadLetters: s.letters,
		Certificates: s.certificates, Report: func(ctx context.Context) health.Report { return s.lately.run(ctx, s.currentChecks()) },
	}
	if s.Engine != nil {
		measured.Engine = s.Engine
	}
	if s.auditor != nil {
		measured.Compared = s.auditor.Compared
	}
	if s.Writer != nil {
		measured.Writer = s.Writer
	}
	if s.Settings != nil {
		measured.Destinations = s.Settings
	}
	if has(RoleAPI) {
		measured.Keys = &s.Access
	}
	s.measured.Store(measured)
	s.addChecks(o.Roles, progress)
	s.started.Store(true)
	return s, nil
}

// refusals counts what limits refused in this process, by limit.
func (s *System) refusals() map[string]uint64 {
	counts := s.refused.Counts()
	if n := control.Busy(); n > 0 {
		if counts == nil {
			counts = map[string]uint64{}
		}
		counts["requests_at_once"] = n
	}
	return counts
}

// followClaims begins to follow what other inserts have in hand. It goes on until the writer has stored what it fetched.
func (s *System) followClaims() {
	s.claims = claims.New(s.Client.JS, s.Config.Writer.InsertTimeout+time.Second, s.log.With(slog.String("part", "claims")))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.claims.Run(ctx) }()
	s.endClaims = func() { stop(); <-ended }
}

// panics counts those that were caught anywhere in this process.
func (s *System) panics() uint64 {
	n := request.Panics()
	if s.Gateway != nil {
		n += s.Gateway.Stats().Panics
	}
	if s.Relay != nil {
		n += s.Relay.Stats().Panics
	}
	return n
}

// Failed is done when a role has ended by itself; see Close for the reason.
func (s *System) Failed() <-chan struct{} { return s.ended.Done() }

// NATSURL is where the broker is reached.
func (s *System) NATSURL() string { return s.Client.NC.ConnectedUrlRedacted() }

// Close stops in the order in which events flow, so that what was fetched is stored and acknowledged:
// roles, connections, engine, broker. Nothing acknowledged to a producer is lost by it.
func (s *System) Close() error {
	var errs []error
	if s.stop != nil {
		s.stop()
		errs = append(errs, s.roles.Wait())
	}
	if s.endClaims != nil {
		s.endClaims()
	}
	if p := s.own.Publisher; p != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		errs = append(errs, p.Close(ctx))
		cancel()
	}
	if s.Bucket != nil {
		errs = append(errs, s.Bucket.Close())
	}
	if s.Store != nil {
		errs = append(errs, s.Store.Close())
	}
	if s.Engine != nil {
		errs = append(errs, s.Engine.Close())
	}
	if s.Client != nil {
		s.Client.Close()
	}
	if s.server != nil {
		s.server.Close()
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if s.endTracing != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		if err := s.endTracing(ctx); err != nil { // a collector that is away fails nothing
			s.log.Warn("the last spans were not sent", slog.Any("error", err))
		}
		cancel()
	}
	return errors.Join(errs...)
}
