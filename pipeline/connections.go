package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/pipeline/store"
)

// connect reaches the broker, starting it if it is the embedded one, and returns how.
func (s *System) connect(ctx context.Context) (o broker.Options, err error) {
	c := s.Config
	o = brokerOptions(c)
	o.Logger = s.log
	if o.URL == "" {
		if s.server, err = s.startServer(ctx); err != nil {
			return o, err
		}
		o = broker.Options{Embedded: s.server, Name: o.Name, AssumeSyncAlways: true, Timeout: o.Timeout, Logger: s.log} // we set it ourselves
	}
	s.Client, err = broker.Connect(ctx, o)
	return o, err
}

// ErrAway means that the broker went away during the start.
var ErrAway = errors.New("the connection to the broker was lost during the start")

// whileConnected returns a context that ends with the connection, and what ends it otherwise: a broker that was started
// again answers nothing of what the one before was asked, and a request waits for long. A cluster goes on.
func (s *System) whileConnected(ctx context.Context) (connected context.Context, end func()) {
	if s.Config.Streams.Replicas > 1 {
		return ctx, func() {}
	}
	connected, cancel := context.WithCancelCause(ctx)
	status := s.Client.NC.StatusChanged(nats.RECONNECTING)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-status:
			cancel(ErrAway)
		case <-connected.Done():
		}
	})
	return connected, func() {
		cancel(nil)
		watching.Wait()
		s.Client.NC.RemoveStatusListener(status)
	}
}

// prepare checks the broker that was reached so, sets it up, and finds what all roles need of it.
func (s *System) prepare(ctx context.Context, o broker.Options) error {
	if err := s.Client.CheckServer(ctx, o); err != nil {
		return err
	}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	if s.server != nil { // nobody else is let in before Start returns, so no other writer has a message of this server's
		if err := s.Client.TakeBack(ctx); err != nil {
			return err
		}
	}
	stream, err := s.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	s.floor = &floor.Floor{Broker: s.Client, Stream: stream, Grace: s.Config.Rollup.Grace}
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

// clusterTimeout is how long a request waits for a server that may be gone: less than an election takes.
const clusterTimeout = 4 * time.Second

// setUpFor is how long a cluster may take until it can be set up.
const setUpFor = time.Minute

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
	s.logins = newLogins(c.API.SignInsPerMinute, c.Gateway.Anonymous == "loopback", s.log.With(slog.String("part", "logins")))
	return broker.StartServer(ctx, broker.ServerOptions{
		Dir: filepath.Join(c.DataDir, "nats"), Listen: c.NATS.Listen, Port: c.NATS.Port, CertFile: c.NATS.TLSCertFile, KeyFile: c.NATS.TLSKeyFile,
		LogIn: s.logins.LogIn, Key: string(key), KeyBefore: string(before), Logger: s.log,
	})
}

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
			Dir: filepath.Join(s.Config.DataDir, "clickhouse"), Listen: c.Listen, Library: s.Config.Engine.Library, Command: command, Keys: keys, Logger: s.log,
		})
		if err != nil {
			return err
		}
		o.URL, o.Username, o.Password = s.Engine.URL(), s.Engine.Username(), s.Engine.Password()
	}
	if s.Store, err = store.Open(ctx, o); err != nil {
		return err
	}
	var version string
	if err := s.Store.Conn().QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		return fmt.Errorf("query the version of ClickHouse: %w", err)
	}
	old := store.CheckVersion(version)
	if old != nil {
		s.log.Warn(old.Error(), slog.String("remedy", store.VersionRemedy))
	}
	if err := s.Store.Migrate(ctx); err != nil {
		return errors.Join(err, old) // which may be why
	}
	return nil
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
	for name, to := range map[string]*jetstream.KeyValue{broker.BucketExports: &s.States.KV, broker.BucketLinks: &s.Links.KV, broker.BucketSettings: &s.settings, broker.BucketAccess: &s.Access.KV, broker.BucketRecording: &s.switches, broker.BucketVerifications: &s.verifications, broker.BucketReconcile: &s.findings.KV} {
		kv, err := s.Client.JS.KeyValue(ctx, name)
		if err != nil {
			return fmt.Errorf("open bucket %s: %w", name, err)
		}
		*to = kv
	}
	return nil
}
