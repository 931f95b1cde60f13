package deploy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/relay"
	"github.com/kansa-audit/kansa/schema"
)

// The configuration of NATS is that of three real servers; only addresses and paths are this machine's.
func TestNATSCluster(t *testing.T) {
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	if out, err := exec.Command(filepath.Join("nats", "certs.sh"), certs, "nats-1", "nats-2", "nats-3").CombinedOutput(); err != nil {
		t.Fatalf("certs.sh: %v\n%s", err, out)
	}
	for _, name := range []string{"nats.conf", "tls.conf", "tls-routes.conf", "accounts.conf"} {
		text, err := os.ReadFile(filepath.Join("nats", name))
		if err != nil {
			t.Fatal(err)
		}
		here := strings.ReplaceAll(string(text), "/etc/nats/certs", certs)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(here), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"KANSA", "ACME", "GLOBEX", "SYS"} {
		// Of digits, as a generator may make it; quoted, as nats.conf wants it.
		t.Setenv(user+"_NATS_PASSWORD", `"`+digits(user)+`"`)
	}
	var routes []*url.URL
	var ports []int
	for range 3 {
		_, port, _ := net.SplitHostPort(freeAddress(t))
		routes = append(routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + port})
		var n int
		_, _ = fmt.Sscan(port, &n)
		ports = append(ports, n)
	}
	var servers []*server.Server
	for i := range 3 {
		t.Setenv("NATS_NAME", fmt.Sprintf("nats-%d", i+1))
		o, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
		if err != nil {
			t.Fatal(err)
		}
		if !o.SyncAlways || o.Cluster.TLSConfig == nil || o.Cluster.TLSConfig.ClientAuth != tls.RequireAndVerifyClientCert || len(o.Routes) != 3 {
			t.Fatalf("sync always %t, routes %v", o.SyncAlways, o.Routes)
		}
		o.Host, o.Port, o.HTTPHost, o.HTTPPort = "127.0.0.1", server.RANDOM_PORT, "127.0.0.1", server.RANDOM_PORT
		o.Cluster.Host, o.Cluster.Port, o.Routes = "127.0.0.1", ports[i], routes
		o.StoreDir, o.JetStreamMaxStore = filepath.Join(dir, o.ServerName), 1<<30
		o.NoSigs, o.NoLog = true, true
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers = append(servers, s)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		for _, s := range servers {
			if !s.ReadyForConnections(time.Second) || !s.JetStreamIsCurrent() {
				return false, s.Name()
			}
		}
		return servers[0].JetStreamClusterPeers() != nil || servers[1].JetStreamClusterPeers() != nil || servers[2].JetStreamClusterPeers() != nil, "no leader"
	})
	as := func(user string) string {
		return fmt.Sprintf("nats://%s:%s@%s", user, digits(strings.ToUpper(user)), servers[0].Addr())
	}
	ca := filepath.Join(certs, "ca.pem")

	own, err := broker.Connect(t.Context(), broker.Options{URL: as("kansa"), Name: "test", CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	check := broker.Options{MonitorURL: "http://" + servers[0].MonitorAddr().String()}
	if err := own.CheckServer(t.Context(), check); err != nil {
		t.Fatal(err)
	}
	settings := broker.Settings{Replicas: 3, AuditMaxAge: time.Hour, DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { err := own.Setup(t.Context(), settings); return err == nil, err })
	stream, err := own.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	if c := stream.CachedInfo().Cluster; c == nil || len(c.Replicas) != 2 {
		t.Errorf("AUDIT has %+v", c)
	}

	relayed, err := relay.Start(own.NC, relay.Config{Credential: func(account, user string) string { return "nats:" + user + " in " + account }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := relayed.Close(); err != nil {
			t.Error(err)
		}
	})

	// An organization publishes its own events, and neither those of another nor anything else.
	refused := make(chan error, 10)
	acme, err := nats.Connect(as("acme"), nats.RootCAs(ca), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(acme.Close)
	js, err := jetstream.New(acme)
	if err != nil {
		t.Fatal(err)
	}
	p, err := producers.New(js, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	event := schema.Event{OccurredAt: time.Now(), Organization: "acme", Trail: schema.Activity, Source: "test", Event: "thing.done", Action: "do"}
	if err := p.Publish(t.Context(), event); err != nil {
		t.Errorf("acme's own event: %v", err)
	}
	// It is told when its trail is switched off.
	recordingtest.Turn(t, own.JS, "acme", schema.Activity, false)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		ack, err := p.PublishAsync(t.Context(), event)
		if err == nil {
			err = ack.Wait(t.Context())
		}
		return err == nil && ack.Unrecorded(), err
	})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	everything, err := acme.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"audit.events.globex.activity", "audit.relay.acme.activity", "audit.deadletter.acme", "audit.exports.acme", "$JS.API.STREAM.NAMES", "$JS.API.DIRECT.GET.KV_kansa_recording.$KV.kansa_recording.globex", "$KV.kansa_recording.acme", "$JS.API.STREAM.DELETE.AUDIT"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if msg, err := acme.RequestWithContext(ctx, subject, nil); err == nil {
			t.Errorf("acme was answered on %s: %s", subject, msg.Data)
		}
		cancel()
		select {
		case err := <-refused:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", subject, err)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: not refused", subject)
		}
	}
	// It sees nothing of what the writer is sent.
	consumer, err := own.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := consumer.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil || !strings.HasPrefix(msg.Subject(), "audit.events.acme.activity.") {
		t.Fatalf("the writer gets %v, %v", msg, err)
	}
	if by, id := msg.Headers().Get(schema.HeaderRecordedBy), msg.Headers().Get(nats.MsgIdHdr); by != "nats:acme in ACME" || !strings.HasPrefix(id, "acme/") {
		t.Errorf("recorded by %q under the message id %q", by, id)
	}
	if err := acme.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		seen, err := everything.NextMsg(100 * time.Millisecond)
		if err != nil {
			break
		}
		if seen.Header.Get("Status") == "" { // other than "no responders"
			t.Errorf("acme sees %q on %s", seen.Data, seen.Subject)
		}
	}
	if nc, err := nats.Connect("nats://"+servers[0].Addr().String(), nats.RootCAs(ca)); err == nil {
		nc.Close()
		t.Error("somebody without a password was let in")
	}
}

// digits are a user's password.
func digits(user string) string { return fmt.Sprintf("12345678%03d", user[0]) }
