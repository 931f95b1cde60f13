//go:build linux

package chaos

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/producers/gateway"
)

const (
	hour   = time.Second
	period = 2 * hour // of an archive
	// Short, so that leases end all the time; and long enough for an insert with its lookups on a machine that runs other tests.
	insertTimeout = 2 * time.Second
	ackWait       = 5 * time.Second
	exportAckWait = 3 * time.Second
)

// Names of processes, links and disks, as faults and logs have them.
const (
	procBroker = "broker"
	procEngine = "engine"
	procAPI    = "api"
	procGate   = "gateway"
	procApp    = "application"
	diskSpool  = "spool"
)

var (
	roleProcs = []string{"writer-1", "writer-2", "rollup-1", "rollup-2", "exporter-1", "exporter-2", procAPI, procGate}
	linkNames = []string{
		"publisher-broker", "publisher-gateway", "gateway-broker", "writer-broker", "rollup-broker", "exporter-broker",
		"writer-engine", "rollup-engine", "exporter-sftp", "exporter-smtp",
	}
	diskNames = []string{"broker", "engine", "partitions", "sftp"}
)

// stack is one pipeline: processes, servers, and what is between them.
type stack struct {
	publisherKey string // for the gateway
	dir          string
	since        time.Time // the first scheduled archive begins then
	procs        map[string]*process
	engine       *engine.Engine
	sshd         string // its address
	mails        *smtpd.Server
	net          *network
	app          *application     // the last that published, or nil
	disks        map[string]*disk // empty where nothing can be mounted
	log          *slog.Logger

	gateway  string // where events are posted
	archives string // where the SSH server keeps what arrives
	parts    string // the partition store
	data     string // the rollups' data_dir, with the key

	// Past all proxies.
	client   *broker.Client
	table    *store.Store
	progress rollup.Progress
	states   exporter.States
}

// destinations by name; those of mail are apart.
var (
	sftpDestinations = map[string]string{"sftp-acme": "acme", "sftp-globex": "globex"}
	mailDestinations = map[string]string{"mail-acme": "acme"}
)

func startStack(t *testing.T, r *rand.Rand, dir string) *stack {
	t.Helper()
	s := &stack{dir: dir, procs: map[string]*process{}, disks: map[string]*disk{}, net: newNetwork()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"broker", "engine", "partitions", "rollup", "exporter", "api", "gateway", "writer", "mail", "sftp", diskSpool} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	s.parts, s.data = filepath.Join(dir, "partitions", "store"), filepath.Join(dir, "rollup")
	if mountable() {
		for name, size := range map[string]int64{"broker": 96 << 20, "engine": 256 << 20, "partitions": 32 << 20, diskSpool: 4 << 20} {
			d, err := mount(filepath.Join(dir, name), size)
			must(err)
			t.Cleanup(func() {
				if t.Failed() {
					_ = exec.Command("cp", "-a", d.dir, d.dir+".kept").Run() // it goes with the mount
				}
				if err := d.unmount(); err != nil {
					t.Errorf("unmount %s: %v", d.dir, err)
				}
			})
			s.disks[name] = d
		}
	}
	file, err := os.Create(filepath.Join(dir, "harness.log"))
	must(err)
	t.Cleanup(func() { _ = file.Close() })
	s.log = slog.New(slog.NewTextHandler(file, nil))
	t.Cleanup(s.net.close)

	// The servers.
	port, err := brokertest.FreePort(r.IntN)
	must(err)
	s.procs[procBroker] = startProcess(dir, procBroker, fmt.Sprintf("%s=%s|%d", envBroker, filepath.Join(dir, "broker", "data"), port))
	t.Cleanup(s.procs[procBroker].close)
	must(s.startEngine(t.Context()))
	t.Cleanup(func() { _ = s.engine.Close() })
	target := s.startSFTP(t)
	s.mails, err = smtpd.Start(context.Background(), smtpd.Options{Dir: filepath.Join(dir, "mail"), NoTLS: true, Log: s.log})
	must(err)
	t.Cleanup(func() { _ = s.mails.Close() })

	// The links.
	brokerAddr := fmt.Sprintf("127.0.0.1:%d", port)
	apiPort, err := brokertest.FreePort(r.IntN)
	must(err)
	gatewayPort, err := brokertest.FreePort(r.IntN)
	must(err)
	upstream := map[string]string{
		"broker": brokerAddr, "engine": s.engine.Addr(), "sftp": s.sshd, "smtp": s.mails.Addr(), "gateway": fmt.Sprintf("127.0.0.1:%d", gatewayPort),
	}
	addrs := map[string]string{}
	for _, name := range linkNames {
		_, to, _ := strings.Cut(name, "-")
		addrs[name], err = s.net.add(name, upstream[to])
		must(err)
	}
	s.gateway = "http://" + addrs["publisher-gateway"] + gateway.Path
	password := filepath.Join(dir, "password")
	must(os.WriteFile(password, []byte(s.engine.Password()), 0o600))
	s.since = time.Now().UTC().Truncate(period)
	write := func(role string) string {
		c := config.Default()
		c.DataDir = filepath.Join(dir, role)
		c.NATS.URL, c.NATS.AssumeSyncAlways = "nats://"+addrs[role+"-broker"], true
		c.ClickHouse.URL, c.ClickHouse.Username, c.ClickHouse.PasswordFile = "http://"+addrs[role+"-engine"], s.engine.Username(), password
		c.Writer.AckWait, c.Writer.InsertTimeout = ackWait, insertTimeout
		c.Rollup.Hour, c.Partitions.URL = hour, "file://"+s.parts
		c.Limits = config.Limits{PromptBytesPerSecond: 16 << 10} // no other limits, and both lanes are used
		c.API.Listen = fmt.Sprintf("127.0.0.1:%d", apiPort)
		c.Exports.PublicURL, c.Exports.AckWait = "http://"+c.API.Listen, exportAckWait
		if role == procGate {
			c.API.Listen = upstream["gateway"]
		}
		mailHost, mailPort := split(addrs["exporter-smtp"])
		c.Mail = &mail.Config{Host: mailHost, Port: mailPort, TLS: mail.NoTLS, From: "Kansa <audit@kansa.example>", Timeout: 3 * time.Second}
		target.Host, target.Port = split(addrs["exporter-sftp"])
		schedule := &exporter.Schedule{Every: hour, Period: period, Since: s.since}
		for name, org := range sftpDestinations {
			c.Destinations = append(c.Destinations, exporter.Destination{Name: name, Organization: org, SFTP: target, Schedule: schedule})
		}
		for name, org := range mailDestinations {
			c.Destinations = append(c.Destinations, exporter.Destination{Name: name, Organization: org, Mail: []string{"auditor@acme.example"}, Schedule: schedule})
		}
		text, err := yaml.Marshal(c)
		must(err)
		path := filepath.Join(dir, role+".yaml")
		must(os.WriteFile(path, text, 0o600))
		_, err = config.Load(path)
		must(err)
		return path
	}
	addrs["api-broker"], addrs["api-engine"] = brokerAddr, s.engine.Addr()

	// Past the proxies.
	s.client, err = connect(t, "nats://"+brokerAddr, "")
	must(err)
	t.Cleanup(s.client.Close)

	configs := map[string]string{}
	for _, name := range roleProcs {
		role, _, _ := strings.Cut(name, "-")
		if configs[role] == "" {
			configs[role] = write(role)
		}
		s.procs[name] = startProcess(dir, name, fmt.Sprintf("%s=%s|%s", envRoles, configs[role], role))
		t.Cleanup(s.procs[name].close)
	}
	must(s.openTable(t.Context()))
	t.Cleanup(func() { _ = s.table.Close() })
	s.untilSetUp(t)
	return s
}

// untilSetUp waits until the roles have made what they keep, and the key.
func (s *stack) untilSetUp(t *testing.T) {
	t.Helper()
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		kv, err := s.client.JS.KeyValue(ctx, broker.BucketRollup)
		if err == nil {
			s.progress = rollup.Progress{JS: s.client.JS, KV: kv}
			kv, err = s.client.JS.KeyValue(ctx, broker.BucketExports)
			s.states = exporter.States{KV: kv}
		}
		if err == nil {
			_, err = s.key()
		}
		if err == nil && s.publisherKey == "" {
			if kv, err = s.client.JS.KeyValue(ctx, broker.BucketAccess); err == nil {
				keys := access.Store{KV: kv}
				s.publisherKey, err = keys.CreateKey(ctx, &access.Key{Name: "chaos", Role: access.Publisher, Expires: time.Now().AddDate(1, 0, 0)})
			}
		}
		return err == nil, err
	})
}

// key is the verifier key that an auditor would be given.
func (s *stack) key() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.data, "seal.pub"))
	return strings.TrimSpace(string(text)), err
}

// connect connects to a broker, with the key in a file if there is one.
func connect(t *testing.T, url, key string) (c *broker.Client, err error) {
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		c, err = broker.Connect(t.Context(), broker.Options{URL: url, Name: "chaos", TokenFile: key})
		return err == nil, err
	})
	return c, err
}

// startEngine starts the engine's supervisor, which lives here; its child is a process.
func (s *stack) startEngine(ctx context.Context) (err error) {
	command, err := engineSelf()
	if err != nil {
		return err
	}
	s.engine, err = engine.Start(ctx, engine.Options{
		Dir: filepath.Join(s.dir, "engine", "data"), Command: command,
		Memory: 1 << 30, Logger: s.log,
	})
	return err
}

func (s *stack) openTable(ctx context.Context) (err error) {
	s.table, err = store.Open(ctx, store.Options{URL: s.engine.URL(), Username: s.engine.Username(), Password: s.engine.Password()})
	return err
}

// startSFTP starts OpenSSH where that is possible, and our own server elsewhere.
func (s *stack) startSFTP(t *testing.T) *sftp.Config {
	c := &sftp.Config{
		ConnectTimeout: sftp.Duration(3 * time.Second), Keepalive: sftp.Duration(time.Second), IdleTimeout: sftp.Duration(3 * time.Second),
	}
	if os.Getuid() != 0 {
		s.archives = filepath.Join(s.dir, "sftp")
		d, err := sshd.Start(context.Background(), sshd.Options{Dir: s.archives, User: "archive", Password: "secret", Log: s.log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		s.sshd = d.Addr()
		c.User, c.Password, c.Path, c.HostKeys = "archive", "secret", "/", []string{d.HostKeyFingerprint()}
		return c
	}
	var options []sftptest.Option
	if version, _ := exec.Command("sshd", "-V").CombinedOutput(); penalizes(string(version)) {
		options = append(options, sftptest.WithConfig("PerSourcePenalties no"))
	}
	o := sftptest.StartOpenSSH(t, options...)
	s.sshd, s.archives = o.Addr(), o.Dir
	if mountable() {
		s.archives = o.SmallDisk(t, 16<<20)
		s.disks["sftp"] = &disk{s.archives, filepath.Join(s.archives, ".ballast")}
	}
	c.User, c.Password, c.Path, c.HostKeys = o.User, o.Password, s.archives, []string{o.Fingerprint}
	return c
}

// penalizes tells whether this OpenSSH keeps addresses out from which connections break off, as all of ours do.
func penalizes(version string) bool {
	var major, minor int
	if i := strings.Index(version, "OpenSSH_"); i >= 0 {
		_, _ = fmt.Sscanf(version[i:], "OpenSSH_%d.%d", &major, &minor)
	}
	return major > 9 || major == 9 && minor >= 8
}

func split(addr string) (string, int) {
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return host, n
}

func mountable() bool { return os.Getuid() == 0 && canMount() }
