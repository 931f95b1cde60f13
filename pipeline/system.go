package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	oteltrace "go.opentelemetry.io/otel/trace"
	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/console"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/metrics"
	"github.com/kansa-audit/kansa/pipeline/operator"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/pipeline/retention"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/pipeline/status"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/tracing"
	"github.com/kansa-audit/kansa/pipeline/watchdog"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
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
	Writer   *writer.Writer // nil if the role is not here
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
	// Gateway is nil if the role is not here; it is served by API.
	Gateway *gateway.Gateway

	own      owntrail.Trail
	settings jetstream.KeyValue
	switches jetstream.KeyValue // of the trails
	// verifications are what was verified last.
	verifications jetstream.KeyValue
	measured      atomic.Pointer[metrics.Sources] // set when all roles have started
	checks        atomic.Pointer[[]health.Check]  // set when all roles have started
	registry      *metrics.Registry
	tracing       oteltrace.TracerProvider // nil if there is none
	endTracing    func(context.Context) error
	lately        lately
	certificates  *health.Certificates
	watched       map[Role][]*watchdog.Queue
	floor         *floor.Floor
	shards        []*health.Floor // of the writer; none if the role is not here
	shared        chan error      // that the stream is shared out anew
	log           *slog.Logger
	server        *broker.Server
	logins        *logins // of server
	roles         *errgroup.Group
	stop          context.CancelFunc
	ended         context.Context // done when a role has failed
}

// Start starts everything that the roles need and then the roles. When it returns, events can be
// published. ctx bounds the start only.
func Start(ctx context.Context, o Options) (_ *System, err error) {
	s := &System{Config: o.Config, log: o.Logger, watched: map[Role][]*watchdog.Queue{}, shared: make(chan error, 1)}
	s.registry = metrics.New(s.measured.Load, s.log.With(slog.String("part", "metrics")))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.MkdirAll(o.Config.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("create data_dir: %w", err)
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
	if err := s.connect(ctx); err != nil {
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
	publisher, err := producers.New(s.Client.JS, producers.Config{Tracing: s.tracing, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	s.own = owntrail.Trail{Publisher: publisher, Logger: o.Logger}
	s.reportDamage(ctx)
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.roles, s.ended = errgroup.WithContext(run)
	if s.server != nil {
		s.logins.begin(s.ended, &s.Access, s.own.Record)
		s.roles.Go(func() error { return s.logins.follow(s.ended, s.server) })
	}
	if s.retentions, err = s.openSettings().Retentions(ctx); err != nil {
		return nil, err
	}
	s.roles.Go(func() error { return s.retentions.Follow(s.ended) })
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
	starts := map[Role]func(context.Context) error{
		RoleWriter: s.startWriter, RoleRollup: s.startRollup, RoleExporter: s.startExporter,
	}
	// The API first: links name its address.
	if has(RoleAPI) || has(RoleGateway) {
		if err := s.startAPI(ctx, has(RoleAPI), has(RoleGateway)); err != nil {
			return nil, fmt.Errorf("start the API: %w", err)
		}
	} else if o.Config.Health.Listen != "" {
		if err := s.serve(ctx, api.Options{Listen: o.Config.Health.Listen}, nil); err != nil {
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
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return nil, err
	}
	measured := &metrics.Sources{
		JS: s.Client.JS, Floor: s.floor, Writer: s.Writer, Rollup: s.Rollup, Exporter: s.Exporter, Progress: progress, Hour: o.Config.Rollup.Hour,
		Gateway: s.Gateway, Recording: recording.New(s.Client.JS), Shards: s.shards, Disks: s.disks(), Restarts: s.restarts(),
		Certificates: s.certificates, Report: func(ctx context.Context) health.Report { return s.lately.run(ctx, s.currentChecks()) },
	}
	if s.Engine != nil {
		measured.Engine = s.Engine
	}
	if s.Settings != nil {
		measured.Destinations = s.Settings
	}
	if has(RoleAPI) {
		measured.Keys = &s.Access
	}
	s.measured.Store(measured)
	checks := s.allChecks(o.Roles, progress)
	s.checks.Store(&checks)
	return s, nil
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
	if s.endTracing != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		if err := s.endTracing(ctx); err != nil { // a collector that is away fails nothing
			s.log.Warn("the last spans were not sent", slog.Any("error", err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// connect reaches the broker, starting it if it is the embedded one, and sets it up.
func (s *System) connect(ctx context.Context) (err error) {
	c := s.Config
	o := brokerOptions(c)
	o.Logger = s.log
	if o.URL == "" {
		if s.server, err = s.startServer(ctx); err != nil {
			return err
		}
		o = broker.Options{Embedded: s.server, Name: o.Name, AssumeSyncAlways: true, Timeout: o.Timeout, Logger: s.log} // we set it ourselves
	}
	if s.Client, err = broker.Connect(ctx, o); err != nil {
		return err
	}
	if err := s.Client.CheckServer(ctx, o); err != nil {
		return err
	}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	s.floor = &floor.Floor{Broker: s.Client, Stream: stream, Grace: c.Rollup.Grace}
	return nil
}

// brokerOptions say how a configuration reaches the broker; without a URL if it is the embedded one.
func brokerOptions(c *config.Config) broker.Options {
	o := broker.Options{
		URL: c.NATS.URL, Name: "pipeline", CredentialsFile: c.NATS.CredentialsFile, NKeyFile: c.NATS.NKeyFile, Username: c.NATS.Username,
		PasswordFile: c.NATS.PasswordFile, TokenFile: c.NATS.TokenFile, CAFile: c.NATS.CAFile, CertFile: c.NATS.CertFile, KeyFile: c.NATS.KeyFile,
		MonitorURL: c.NATS.MonitorURL, AssumeSyncAlways: c.NATS.AssumeSyncAlways,
	}
	if c.Streams.Replicas > 1 {
		o.Timeout = clusterTimeout
	}
	return o
}

// ConnectTool connects a tool to the external broker of a configuration, as a process with it does.
func ConnectTool(ctx context.Context, c *config.Config, name string) (*broker.Client, error) {
	o := brokerOptions(c)
	o.Name = name
	return broker.Connect(ctx, o)
}

// startServer starts the embedded broker.
func (s *System) startServer(ctx context.Context) (*broker.Server, error) {
	c := s.Config
	key, err := c.Encryption.Streams.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("encryption.streams: %w", err)
	}
	before, err := c.Encryption.StreamsBefore.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("encryption.streams_before: %w", err)
	}
	s.logins = newLogins(c.API.SignInsPerMinute, s.log.With(slog.String("part", "logins")))
	return broker.StartServer(ctx, broker.ServerOptions{
		Dir: filepath.Join(c.DataDir, "nats"), Listen: c.NATS.Listen, Port: c.NATS.Port, CertFile: c.NATS.TLSCertFile, KeyFile: c.NATS.TLSKeyFile,
		LogIn: s.logins.LogIn, RequireLogin: c.NATS.RequireLogin, Key: string(key), KeyBefore: string(before), Logger: s.log,
	})
}

// clusterTimeout is how long a request waits for a server that may be gone: less than an election takes.
const clusterTimeout = 4 * time.Second

// setUpFor is how long a cluster may take until it can be set up.
const setUpFor = time.Minute

// setUp sets the broker up. In a cluster that is starting, or electing a leader, some of it fails for a while.
func (s *System) setUp(ctx context.Context) error {
	c := s.Config
	settings := broker.Settings{
		Replicas: c.Streams.Replicas, Shards: c.Streams.Shards, AuditMaxAge: c.Streams.AuditMaxAge, AuditMaxBytes: c.Streams.AuditMaxBytes,
		DuplicateWindow: c.Streams.DuplicateWindow, AckWait: c.Writer.AckWait,
		ExportAckWait: c.Exports.AckWait, Hour: c.Rollup.Hour,
	}
	for wait := time.Now().Add(setUpFor); ; {
		err := s.Client.Setup(ctx, settings)
		if err == nil {
			break
		}
		if s.server != nil || errors.Is(err, broker.ErrUnsafe) || time.Now().After(wait) {
			return err
		}
		s.log.Warn("the broker can not be set up, trying again", slog.Any("error", err))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
	shards, err := s.Client.Shards(ctx)
	if err == nil && shards != c.Streams.Shards {
		s.log.Warn("the stream of events has another number of shards than streams.shards, which holds for a new one: kansa shards changes it",
			slog.Int("shards", shards), slog.Int("configured", c.Streams.Shards))
	}
	return err
}

func (s *System) openStore(ctx context.Context, command []string) (err error) {
	c := s.Config.ClickHouse
	o := store.Options{
		URL: c.URL, Username: c.Username, PasswordFile: c.PasswordFile, Database: c.Database, CAFile: c.CAFile, Cluster: c.Cluster, Logger: s.log,
	}
	if o.URL == "" {
		var keys []engine.Key
		if keys, err = engineKeys(ctx, s.Config.Encryption.ClickHouse); err != nil {
			return fmt.Errorf("encryption.clickhouse: %w", err)
		}
		s.Engine, err = engine.Start(ctx, engine.Options{
			Dir: filepath.Join(s.Config.DataDir, "clickhouse"), Library: s.Config.Engine.Library, Command: command, Keys: keys, Logger: s.log,
		})
		if err != nil {
			return err
		}
		o.URL, o.Username, o.Password = s.Engine.URL(), s.Engine.Username(), s.Engine.Password()
	}
	if s.Store, err = store.Open(ctx, o); err != nil {
		return err
	}
	return s.Store.Migrate(ctx)
}

func engineKeys(ctx context.Context, from config.Secret) ([]engine.Key, error) {
	text, err := from.Read(ctx)
	if err != nil || text == nil {
		return nil, err
	}
	return engine.ParseKeys(text)
}

// OpenPartitions opens the partition store of a configuration.
func OpenPartitions(ctx context.Context, c *config.Config) (*blob.Bucket, error) {
	target, err := c.PartitionsURL()
	if err != nil {
		return nil, err
	}
	bucket, err := partitions.Open(ctx, target)
	if err != nil || !c.Encryption.Partitions.Set() {
		return bucket, err
	}
	encrypted, err := encrypt(ctx, bucket, c.Encryption.Partitions)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("encryption.partitions: %w", err), bucket.Close())
	}
	return encrypted, nil
}

func encrypt(ctx context.Context, bucket *blob.Bucket, from config.Secret) (*blob.Bucket, error) {
	text, err := from.Read(ctx)
	if err != nil {
		return nil, err
	}
	identities, err := partitions.Identities(text)
	if err != nil {
		return nil, err
	}
	return partitions.Encrypt(bucket, identities)
}

func (s *System) buckets(ctx context.Context) error {
	for name, to := range map[string]*jetstream.KeyValue{broker.BucketExports: &s.States.KV, broker.BucketLinks: &s.Links.KV, broker.BucketSettings: &s.settings, broker.BucketAccess: &s.Access.KV, broker.BucketRecording: &s.switches, broker.BucketVerifications: &s.verifications} {
		kv, err := s.Client.JS.KeyValue(ctx, name)
		if err != nil {
			return fmt.Errorf("open bucket %s: %w", name, err)
		}
		*to = kv
	}
	return nil
}

func (s *System) startWriter(ctx context.Context) error {
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	_, shards, err := s.Client.Writers(ctx)
	if err != nil {
		return err
	}
	c := s.Config.Writer
	queues := make([]writer.Stream, len(shards))
	for i, shard := range shards {
		consumer, err := stream.Consumer(ctx, shard.Name)
		if err != nil {
			return fmt.Errorf("look up consumer %s: %w", shard.Name, err)
		}
		progress := &health.Floor{Name: shard.Name, Consumer: consumer, StuckAfter: c.AckWait}
		s.shards = append(s.shards, progress)
		queues[i] = s.watch(RoleWriter, consumer, c.AckWait, s.restoreWriter(stream, shard.Name, progress))
	}
	settled := func(ctx context.Context) (time.Time, error) {
		until, _, err := s.floor.Closed(ctx)
		return until, err
	}
	w, err := writer.New(queues, s.Client.NC, s.Store, tally.Ledger{JS: s.Client.JS}, consumers.DeadLetters{JS: s.Client.JS}, writer.Config{
		MaxRows: c.MaxRows, MaxBytes: c.MaxBytes, Linger: c.Linger, MaxLinger: c.MaxLinger, Inserts: c.Inserts, Memory: c.Memory,
		AckWait: c.AckWait, InsertTimeout: c.InsertTimeout, Retention: s.retentions.Expires, Server: s.serverOf(stream),
		Recording: recording.New(s.Client.JS), Window: stream.CachedInfo().Config.Duplicates, Settled: settled, Tracing: s.tracing,
		Logger: s.log.With(slog.String("part", "writer")),
	})
	if err != nil {
		return err
	}
	s.Writer = w
	// After a start and after each reconnect, what the stream holds by then may have been stored before.
	known := func(ctx context.Context) { suspect(ctx, stream, w) }
	known(ctx)
	status := s.Client.NC.StatusChanged(nats.CONNECTED, nats.RECONNECTING)
	s.roles.Go(func() error {
		defer s.Client.NC.RemoveStatusListener(status)
		for {
			select {
			case <-s.ended.Done():
				return nil
			case st, ok := <-status:
				if !ok {
					return nil
				}
				w.Suspect(^uint64(0))
				if st == nats.CONNECTED {
					known(s.ended)
				}
			}
		}
	})
	for _, progress := range s.shards {
		s.roles.Go(func() error { progress.Run(s.ended); return nil })
	}
	s.roles.Go(func() error {
		select {
		case <-s.ended.Done():
			return nil
		case err := <-s.shared:
			return fmt.Errorf("the writer ends, to be started again: %w", err)
		}
	})
	s.roles.Go(func() error { return w.Run(s.ended) })
	return nil
}

// suspect has the writer look up what the stream holds by now.
func suspect(ctx context.Context, stream jetstream.Stream, w *writer.Writer) {
	w.Suspect(^uint64(0))
	if info, err := stream.Info(ctx); err == nil {
		w.Suspect(info.State.LastSeq)
	}
}

func (s *System) rolledUp(ctx context.Context) (*rollup.Progress, error) {
	kv, err := s.Client.JS.KeyValue(ctx, broker.BucketRollup)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", broker.BucketRollup, err)
	}
	return &rollup.Progress{JS: s.Client.JS, KV: kv}, nil
}

func (s *System) startRollup(ctx context.Context) error {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return err
	}
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	if s.Keys, err = keys.Open(ctx, s.Config.DataDir, s.Bucket); err != nil {
		return err
	}
	log := s.log.With(slog.String("part", "rollup"))
	s.Rollup, err = rollup.New(s.Store, tally.Ledger{JS: s.Client.JS}, s.floor, *progress, s.Bucket, s.Keys, s.Client.JS, rollup.Config{
		Hour: s.Config.Rollup.Hour, Parallel: s.Config.Rollup.Parallel, Recording: recording.New(s.Client.JS), Logger: log, Alarm: s.alarm, Tracing: s.tracing,
	})
	if err != nil {
		return err
	}
	mender := repair.Repairer{
		Store: s.Store, Client: s.Client, Progress: *progress, Hour: s.Config.Rollup.Hour, Retention: s.retentions.Expires,
	}
	s.roles.Go(func() error { return mender.Serve(s.ended, s.Client.NC) })
	keeper := retention.Keeper{
		Bucket: s.Bucket, Settings: s.openSettings(), Rows: s.Store, Sealer: s.Keys, Stream: stream, Hour: s.Config.Rollup.Hour, Record: s.own.Record,
		Logger: s.log.With(slog.String("part", "retention")),
	}
	s.roles.Go(func() error { return keeper.Run(s.ended, s.Config.Retention.Every) })
	// Hours may have closed while nobody was here; the next tick may be an hour away.
	if err := s.Client.Tick(ctx); err != nil {
		return err
	}
	return s.work(ctx, RoleRollup, broker.StreamHours, broker.ConsumerRollup, consumers.Work{Handle: s.Rollup.Tick, Logger: log})
}

// alarm makes an hour that can't be sealed an event of the operator's trail: it is the operator who mends it, and the
// organization's own is what is not sealed.
func (s *System) alarm(ctx context.Context, p schema.Partition, err error) {
	code := "hour.disagreed"
	if errors.Is(err, rollup.ErrLost) {
		code = "messages.lost"
	}
	data, jsonErr := json.Marshal(map[string]any{"organization": p.Organization, "trail": p.Trail, "hour": p.Hour})
	if jsonErr != nil {
		s.log.Error("alarm has no data", slog.Any("error", jsonErr))
	}
	s.own.Record(ctx, schema.Event{
		Event: code, Action: "seal", Outcome: schema.Failure, Target: schema.Target{Type: "partition", ID: p.Path()}, Description: err.Error(),
		Data: data, DataType: "kansa." + code + ".v1", Attributes: map[string]string{"organization": p.Organization},
	})
}

// reportDamage makes an event of what the embedded broker had to drop.
func (s *System) reportDamage(ctx context.Context) {
	if s.server == nil || s.server.CutOff() == 0 {
		return
	}
	s.own.Record(ctx, schema.Event{
		Event: "messages.lost", Action: "recover", Outcome: schema.Failure, Target: schema.Target{Type: "stream", ID: broker.StreamAudit},
		Description: fmt.Sprintf("the newest block of the stream is damaged, and %d bytes were cut off there", s.server.CutOff()),
	})
}

func (s *System) startExporter(ctx context.Context) error {
	progress, err := s.rolledUp(ctx)
	if err != nil {
		return err
	}
	c := s.Config
	log := s.log.With(slog.String("part", "exporter"))
	var mailer exporter.Mailer
	if c.Mail != nil {
		if mailer, err = mail.New(*c.Mail, log); err != nil {
			return err
		}
	}
	kept, err := s.openSecrets()
	if err != nil {
		return err
	}
	if err := kept.Provision(ctx, c.Destinations); err != nil {
		return err
	}
	s.Settings = kept
	s.Exporter = exporter.New(s.Bucket, s.States, s.Links, mailer, s.Client.JS, exporter.Config{
		Settings: kept, PublicURL: s.publicURL(), LinkTTL: c.LinkTTL(), AlertAfter: c.Exports.AlertAfter, Closed: progress.Sealed, Record: s.own.Record, Logger: log,
		Receipts: &keys.Receipts{Dir: c.DataDir, Bucket: s.Bucket}, Tracing: s.tracing,
	})
	s.Intake = &exporter.Intake{
		JS: s.Client.JS, Bucket: s.Bucket, States: s.States, Settings: kept, Closed: progress.Sealed, Began: progress.Began, Linger: c.LinkTTL(), Record: s.own.Record,
	}
	if err := s.schedules(ctx); err != nil {
		return err
	}
	s.roles.Go(func() error { return s.followSettings(s.ended) })
	s.roles.Go(func() error { return s.Exporter.Housekeep(s.ended) })
	desk := &operator.Desk{Settings: kept, States: s.States, Intake: s.Intake, Exporter: s.Exporter, Logger: log}
	s.roles.Go(func() error { return desk.Serve(s.ended, s.Client.NC) })
	return s.work(ctx, RoleExporter, broker.StreamExports, broker.ConsumerExporter, consumers.Work{Handle: s.Exporter.Handle, Parallel: c.Exports.Parallel, Logger: log})
}

// publicURL is where links lead; on one machine, to the API itself.
func (s *System) publicURL() string {
	if s.Config.Exports.PublicURL == "" && s.API != nil {
		return s.API.URL()
	}
	return s.Config.Exports.PublicURL
}

// startAPI starts the HTTP server, with the downloads and the gateway or one of them.
func (s *System) startAPI(ctx context.Context, downloads, intake bool) (err error) {
	c := s.Config.API
	o := api.Options{Listen: c.Listen, Routes: map[string]http.Handler{}, Limits: api.Limits{
		PerSecond: c.RequestsPerSecond, AddressPerSecond: c.AddressRequestsPerSecond, SignInsPerMinute: c.SignInsPerMinute,
	}}
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
		o.Routes[gateway.Path] = s.Gateway
		o.Drain = drainRequests
	}
	return s.serve(ctx, o, publisher)
}

// serve starts the HTTP server with what every process says of itself, and stops it, and then the publisher if
// there is one, with the system.
func (s *System) serve(ctx context.Context, o api.Options, publisher *producers.Publisher) (err error) {
	if o.Routes == nil {
		o.Routes = map[string]http.Handler{}
	}
	o.Routes["GET /metrics"] = s.registry.Handler()
	o.Ready, o.Logger = health.Handler(s.currentChecks), s.log.With(slog.String("part", "api"))
	if s.API, err = api.Start(ctx, o); err != nil {
		return err
	}
	s.roles.Go(func() error {
		<-s.ended.Done()
		errs := []error{s.API.Close()}
		if publisher != nil { // no request is left that could publish
			ctx, cancel := context.WithTimeout(context.Background(), drainRequests)
			defer cancel()
			errs = append(errs, publisher.Close(ctx))
		}
		return errors.Join(errs...)
	})
	return nil
}

// drainRequests is how long requests may take to end when the system does.
const drainRequests = 10 * time.Second

func (s *System) newGateway() (*producers.Publisher, error) {
	c, log := s.Config.Gateway, s.log.With(slog.String("part", "gateway"))
	publisher, err := producers.New(s.Client.JS, producers.Config{Spread: true, Tracing: s.tracing, RetryFor: c.RetryFor, AckTimeout: min(5*time.Second, c.RetryFor), Logger: log})
	if err != nil {
		return nil, err
	}
	s.Gateway, err = gateway.New(publisher, gateway.Config{
		Access:  &publishers{store: &s.Access},
		MaxBody: c.MaxBody, MaxEvents: c.MaxEvents, Memory: c.Memory, ClientMemory: c.ClientMemory, MaxRequests: c.MaxRequests,
		Timeout: c.Timeout, Window: s.Config.Streams.DuplicateWindow, Logger: log,
	})
	return publisher, err
}

func (s *System) work(ctx context.Context, role Role, stream, consumer string, w consumers.Work) error {
	c, err := s.Client.JS.Consumer(ctx, stream, consumer)
	if err != nil {
		return fmt.Errorf("look up consumer %s: %w", consumer, err)
	}
	w.AckWait = c.CachedInfo().Config.AckWait
	w.Queue = s.watch(role, c, w.AckWait, func(ctx context.Context) error {
		return s.Client.RestoreConsumer(ctx, stream, consumer, broker.Floor{})
	})
	s.roles.Go(func() error { return w.Run(s.ended) })
	return nil
}
