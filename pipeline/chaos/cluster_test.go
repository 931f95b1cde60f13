//go:build linux

package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/uuid"
	"github.com/nats-io/nkeys"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema/sample"
)

var clusterRounds = flag.Int("cluster-rounds", 1, "how often TestCluster kills each part")

// cluster is a stack whose every part is there twice, and the broker three times. Servers want certificates, and each
// role has a login of its own.
type cluster struct {
	*stack
	certs    string
	urls     string            // of the servers
	logins   map[string]string // what the servers' configuration says of each user
	gateways []string
}

const (
	servers = 3
	shards  = 2
	own     = "observer" // the user that the test is
)

// login is how a role enters: some by password, some by NKey.
func (c *cluster) login(t *testing.T, role string) (n config.NATS) {
	t.Helper()
	n = config.NATS{
		URL: c.urls, CAFile: filepath.Join(c.certs, "ca.pem"), CertFile: filepath.Join(c.certs, "server.pem"), KeyFile: filepath.Join(c.certs, "server.key"),
	}
	path := filepath.Join(c.dir, role+".secret")
	secret := "password-of-" + role
	if role == "writer" || role == procGate {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, _ := pair.PublicKey()
		seed, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		n.NKeyFile, secret = path, string(seed)
		c.logins[role] = fmt.Sprintf("{ nkey: %s }", public)
	} else {
		n.Username, n.PasswordFile = role, path
		c.logins[role] = fmt.Sprintf("{ user: %s, password: %s }", role, secret)
	}
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

const serverConfig = `server_name: %[1]s
listen: "127.0.0.1:%[2]d"
http: "127.0.0.1:%[3]d"
max_payload: 4259840
jetstream { store_dir: "%[4]s", sync_interval: always, max_file_store: 4GB }
cluster {
  name: kansa
  listen: "127.0.0.1:%[5]d"
  routes: [%[6]s]
  tls { %[7]s }
}
tls { %[7]s }
accounts {
  KANSA { jetstream: enabled, users: [%[8]s] }
  SYS { users: [ { user: sys, password: sys } ] }
}
system_account: SYS
`

func startCluster(t *testing.T, r *rand.Rand, dir string) *cluster {
	t.Helper()
	c := &cluster{stack: &stack{dir: dir, procs: map[string]*process{}, disks: map[string]*disk{}, net: newNetwork()}, certs: filepath.Join(dir, "certs"), logins: map[string]string{}}
	s := c.stack
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	port := func() int {
		t.Helper()
		n, err := brokertest.FreePort(r.IntN)
		must(err)
		return n
	}
	for _, d := range []string{"engine", "partitions", "rollup", "exporter", "mail", "sftp"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	s.parts, s.data = filepath.Join(dir, "partitions", "store"), filepath.Join(dir, "rollup")
	if out, err := exec.Command("sh", filepath.Join("..", "..", "deploy", "nats", "certs.sh"), c.certs, "localhost").CombinedOutput(); err != nil {
		t.Fatalf("certs.sh: %v\n%s", err, out)
	}
	file, err := os.Create(filepath.Join(dir, "harness.log"))
	must(err)
	t.Cleanup(func() { _ = file.Close() })
	s.log = slog.New(slog.NewTextHandler(file, nil))
	t.Cleanup(s.net.close)

	// Who may enter, and the three servers.
	var urls, monitors, routes, users []string
	ports := make([][3]int, servers)
	for i := range ports {
		ports[i] = [3]int{port(), port(), port()}
		urls = append(urls, fmt.Sprintf("tls://127.0.0.1:%d", ports[i][0]))
		monitors = append(monitors, fmt.Sprintf("http://127.0.0.1:%d", ports[i][1]))
		routes = append(routes, fmt.Sprintf("\"nats://127.0.0.1:%d\"", ports[i][2]))
	}
	c.urls = strings.Join(urls, ",")
	logins := map[string]config.NATS{}
	for _, role := range []string{"writer", "rollup", "exporter", procAPI, procGate, own} {
		login := c.login(t, role)
		login.MonitorURL = strings.Join(monitors, ",")
		logins[role] = login
		users = append(users, c.logins[role])
	}
	secured := fmt.Sprintf(`cert_file: "%[1]s/server.pem", key_file: "%[1]s/server.key", ca_file: "%[1]s/ca.pem", verify: true`, c.certs)
	for i, p := range ports {
		name := fmt.Sprintf("nats-%d", i+1)
		path := filepath.Join(dir, name+".conf")
		text := fmt.Sprintf(serverConfig, name, p[0], p[1], filepath.Join(dir, name), p[2], strings.Join(routes, ", "), secured, strings.Join(users, ", "))
		must(os.WriteFile(path, []byte(text), 0o600))
		s.procs[name] = startProcess(dir, name, envServer+"="+path)
		t.Cleanup(s.procs[name].close)
	}

	// One engine behind two endpoints; the servers of archives.
	must(s.startEngine(t.Context()))
	t.Cleanup(func() { _ = s.engine.Close() })
	var endpoints []string
	for _, name := range []string{"endpoint-1", "endpoint-2"} {
		addr, err := s.net.add(name, s.engine.Addr())
		must(err)
		endpoints = append(endpoints, "http://"+addr)
	}
	target := s.startSFTP(t)
	target.Host, target.Port = split(s.sshd)
	s.mails, err = smtpd.Start(context.Background(), smtpd.Options{Dir: filepath.Join(dir, "mail"), NoTLS: true, Log: s.log})
	must(err)
	t.Cleanup(func() { _ = s.mails.Close() })

	password := filepath.Join(dir, "password")
	must(os.WriteFile(password, []byte(s.engine.Password()), 0o600))
	s.since = time.Now().UTC().Truncate(period)
	apiAt := fmt.Sprintf("127.0.0.1:%d", port())
	for _, name := range []string{"writer-1", "writer-2", "rollup-1", "rollup-2", "exporter-1", "exporter-2", procAPI, procGate + "-1", procGate + "-2"} {
		role := base(name)
		k := config.Default()
		k.DataDir, k.NATS = filepath.Join(dir, role), logins[role]
		k.Streams.Replicas, k.Streams.Shards = servers, shards
		k.ClickHouse.URL, k.ClickHouse.Username, k.ClickHouse.PasswordFile = strings.Join(endpoints, ","), s.engine.Username(), password
		k.Writer.AckWait, k.Writer.InsertTimeout = ackWait, insertTimeout
		k.Rollup.Hour, k.Partitions.URL = hour, "file://"+s.parts
		k.Limits = config.Limits{PromptBytesPerSecond: 16 << 10} // no other limits, and both lanes are used
		k.API.Listen = apiAt
		k.Exports.PublicURL, k.Exports.AckWait = "http://"+apiAt, exportAckWait
		if role == procGate {
			k.API.Listen = fmt.Sprintf("127.0.0.1:%d", port())
			c.gateways = append(c.gateways, "http://"+k.API.Listen+gateway.Path)
		}
		mailHost, mailPort := split(s.mails.Addr())
		k.Mail = &mail.Config{Host: mailHost, Port: mailPort, TLS: mail.NoTLS, From: "Kansa <audit@kansa.example>", Timeout: 3 * time.Second}
		schedule := &exporter.Schedule{Every: hour, Period: period, Since: s.since}
		for name, org := range sftpDestinations {
			k.Destinations = append(k.Destinations, exporter.Destination{Name: name, Organization: org, SFTP: target, Schedule: schedule})
		}
		for name, org := range mailDestinations {
			k.Destinations = append(k.Destinations, exporter.Destination{Name: name, Organization: org, Mail: []string{"auditor@acme.example"}, Schedule: schedule})
		}
		text, err := yaml.Marshal(k)
		must(err)
		path := filepath.Join(dir, name+".yaml")
		must(os.WriteFile(path, text, 0o600))
		_, err = config.Load(path)
		must(err)
		s.procs[name] = startProcess(dir, name, fmt.Sprintf("%s=%s|%s", envRoles, path, role))
		t.Cleanup(s.procs[name].close)
	}
	s.client = c.connect(t, logins[own])
	must(s.openTable(t.Context()))
	t.Cleanup(func() { _ = s.table.Close() })
	s.untilSetUp(t)
	return c
}

func (c *cluster) connect(t *testing.T, n config.NATS) (client *broker.Client) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (done bool, saw any) {
		var err error
		client, err = broker.Connect(t.Context(), broker.Options{
			URL: n.URL, Name: own, Username: n.Username, PasswordFile: n.PasswordFile, CAFile: n.CAFile, CertFile: n.CertFile, KeyFile: n.KeyFile, Timeout: 4 * time.Second, Logger: c.log,
		})
		return err == nil, err
	})
	t.Cleanup(client.Close)
	return client
}

// leader is the server that leads the stream of events.
func (c *cluster) leader(ctx context.Context) (string, error) {
	st, err := c.client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return "", err
	}
	if info := st.CachedInfo(); info.Cluster != nil && c.procs[info.Cluster.Leader] != nil {
		return info.Cluster.Leader, nil
	}
	return "", errors.New("the stream has no leader")
}

// load publishes by the library and by both gateways until it is told to stop, and returns what was acknowledged.
func (c *cluster) load(ctx context.Context, publisher *producers.Publisher, seed uint64, a *account, stop <-chan struct{}) error {
	ways := []intake{&library{c.client, publisher}}
	for _, url := range c.gateways {
		ways = append(ways, &poster{url: url, key: c.publisherKey, each: 40, patience: 15 * time.Second, retryFor: time.Minute, client: &http.Client{Transport: &http.Transport{}}})
	}
	outcomes := map[uuid.UUID]outcome{}
	events := sample.New(seed, nil)
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	var failed error
publishing:
	for i := 0; ; i++ {
		if i%20 == 0 {
			select {
			case <-pace.C:
			case <-stop:
				break publishing
			}
		}
		e := events.Next()
		if e.Organization == "initech" {
			e.Organization = "globex"
		}
		a.acked[e.ID] = false
		o, err := ways[i/20%len(ways)].publish(ctx, e)
		if err != nil {
			failed = err
			break
		}
		outcomes[e.ID] = o
	}
	for _, way := range ways[1:] {
		failed = errors.Join(failed, way.close(ctx))
	}
	if err := publisher.Close(ctx); err != nil {
		failed = errors.Join(failed, err)
	}
	for id, outcome := range outcomes {
		if outcome(ctx) == nil {
			a.acked[id] = true
			a.n++
		}
	}
	return failed
}

// Roles apart, and every part more than once: three servers, two writers, rollups, exporters, gateways and endpoints of
// the engine. Each is killed under load, the leader of the stream for so long that another is elected. What was
// acknowledged is stored once, hours are sealed once, and archives are delivered once.
func TestCluster(t *testing.T) {
	dir := generationDir(t, 1000)
	c := startCluster(t, rand.New(rand.NewPCG(*seed, 1000)), dir)
	a, was := &account{acked: map[uuid.UUID]bool{}}, newSeen()
	began := time.Now()
	say := func(format string, v ...any) {
		t.Logf("%6.1f s  "+format, append([]any{time.Since(began).Seconds()}, v...)...)
	}
	for round := range *clusterRounds {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+*healWithin)
		publisher, err := producers.New(c.client.JS, producers.Config{MaxEvents: 50, RetryFor: time.Minute, AckTimeout: 2 * time.Second, Spread: true, Logger: c.log})
		if err != nil {
			t.Fatal(err)
		}
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- c.load(ctx, publisher, *seed+uint64(round), a, stop) }()
		err = c.killEach(ctx, say)
		close(stop)
		err = errors.Join(err, <-ended, c.heal(ctx))
		say("%d events published, %d acknowledged", len(a.acked), a.n)
		var end time.Time
		if err == nil {
			end, err = c.settled(ctx, *healWithin+time.Minute, was)
		}
		say("settled")
		if err == nil {
			err = c.check(ctx, a, end, was)
		}
		cancel()
		if err != nil {
			t.Fatalf("round %d: %v\nEverything is in %s", round, err, dir)
		}
		if a.n == 0 || a.n < len(a.acked)*9/10 {
			t.Errorf("round %d: of %d events %d were acknowledged: whoever tries for a minute should succeed", round, len(a.acked), a.n)
		}
	}
	info, all, err := c.client.Writers(t.Context())
	if err != nil || len(all) != shards*int(floor.Lanes) || len(info.Cluster.Replicas) != servers-1 {
		t.Errorf("the stream has %d shards and %+v, %v", len(all), info.Cluster, err)
	}
	for _, w := range all {
		if w.Lane == floor.Prompt && w.Delivered.Consumer < 10 {
			t.Errorf("shard %s was given %d messages: they are not spread", w.Name, w.Delivered.Consumer)
		}
	}
	say("%d events stored, %d archives by SFTP", a.n, len(was.files))
}

// killEach kills one part after another.
func (c *cluster) killEach(ctx context.Context, say func(string, ...any)) error {
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	pause(time.Second)
	for _, half := range []string{"-1", "-2"} {
		for _, role := range []string{"writer", "rollup", "exporter", procGate} {
			say("kill -9 %s", role+half)
			c.procs[role+half].kill()
			pause(500 * time.Millisecond)
		}
		say("endpoint%s is away", half)
		c.net.cut("endpoint" + half)
		pause(1500 * time.Millisecond)
		if err := c.net.mend("endpoint" + half); err != nil {
			return err
		}
		if half == "-1" {
			if err := c.killLeader(ctx, say); err != nil {
				return err
			}
		}
	}
	say("kill -9 %s", procAPI)
	c.procs[procAPI].kill()
	return nil
}

// killLeader kills the leader of the stream, and keeps it away until there is another.
func (c *cluster) killLeader(ctx context.Context, say func(string, ...any)) error {
	old, err := c.leader(ctx)
	if err != nil {
		return err
	}
	say("kill -9 %s, which leads the stream", old)
	c.procs[old].hold()
	defer c.procs[old].release()
	return until(ctx, time.Minute, func() error {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		now, err := c.leader(asking)
		if err == nil && now == old {
			err = errors.New("it still leads")
		}
		if err == nil {
			say("%s leads the stream", now)
		}
		return err
	})
}
