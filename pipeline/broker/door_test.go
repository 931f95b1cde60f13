package broker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// The broker refuses connections without a login, on loopback too. A login that cannot be looked up at the moment is not refused,
// since clients give up then.
func TestBrokerRequiresLogin(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	logIn := func(_ context.Context, secret, ip string) (*broker.Login, error) {
		switch {
		case secret != "right" || ip != "127.0.0.1":
			return nil, broker.ErrNotLetIn
		case asked.Add(1) < 3:
			return nil, errors.New("not now")
		}
		return &broker.Login{Name: "key:right", Organization: "acme"}, nil
	}
	for name, o := range map[string]broker.ServerOptions{"every address": {Listen: "0.0.0.0", LogIn: logIn}, "loopback": {LogIn: logIn}} {
		asked.Store(0)
		o.Dir = t.TempDir()
		s, err := broker.StartServer(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		for _, options := range [][]nats.Option{nil, {nats.Token("wrong")}, {nats.UserInfo("right", "")}, {nats.UserInfo("kansa", "wrong")}} {
			if nc, err := nats.Connect(s.URL(), options...); !errors.Is(err, nats.ErrAuthorization) {
				t.Errorf("%s: let in, or %v", name, err)
				nc.Close()
			}
		}
		nc, err := nats.Connect(s.URL(), nats.UserInfo("anybody", "right"), nats.RetryOnFailedConnect(true), nats.ReconnectWait(time.Millisecond), nats.MaxReconnects(-1))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := nc.FlushTimeout(time.Minute); err != nil || asked.Load() != 3 {
			t.Errorf("%s: %v after %d questions", name, err, asked.Load())
		}
		closed := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
		if err := s.LogOut(func(name string) bool { return name == "key:right" }); err != nil {
			t.Error(err)
		}
		await.Receive(t, await.Limit, "the connection of a key that was logged out to be closed", closed)
		nc.Close()
		ours, err := broker.Connect(t.Context(), broker.Options{Embedded: s})
		if err != nil {
			t.Fatal(err)
		}
		if err := ours.Setup(t.Context(), broker.Settings{DuplicateWindow: time.Minute, AckWait: time.Minute, Hour: time.Hour}); err != nil {
			t.Error(err)
		}
		ours.Close()
	}
}

// A server with a certificate speaks with nobody in plain, and knows itself though its certificate is nobody's.
// Whoever is logging in when others are logged out comes in: the server lists such a connection under another name.
func TestLogOutSparesConnectionsThatLogIn(t *testing.T) {
	t.Parallel()
	know := make(chan struct{})
	s, err := broker.StartServer(t.Context(), broker.ServerOptions{Dir: t.TempDir(), LogIn: func(ctx context.Context, _, _ string) (*broker.Login, error) {
		select {
		case <-know:
		case <-ctx.Done():
		}
		return &broker.Login{Name: "key:right", Organization: "acme"}, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	connected := make(chan error, 1)
	go func() {
		nc, err := nats.Connect(s.URL(), nats.Token("right"), nats.Timeout(time.Minute))
		if err == nil {
			nc.Close()
		}
		connected <- err
	}()
	await.State(t, await.Limit, "the server to list the connection", func() (bool, any) {
		all, err := s.Traffic()
		return len(all) == 1, err
	})
	if err := s.LogOut(func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	close(know)
	if err := await.Receive(t, await.Limit, "the connection", connected); err != nil {
		t.Error(err)
	}
}

func TestServerCertificate(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t, "kansa")
	o := broker.ServerOptions{Dir: t.TempDir(), CertFile: write(t, "cert.pem", cert), KeyFile: write(t, "key.pem", key), LogIn: brokertest.Anyone}
	s, err := broker.StartServer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, c := range []struct {
		o  broker.Options
		ok bool
	}{{broker.Options{Embedded: s}, true}, {broker.Options{URL: s.URL(), CAFile: o.CertFile}, true}, {broker.Options{URL: s.URL()}, false}} {
		client, err := broker.Connect(t.Context(), c.o)
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.o, err)
		}
		if err == nil {
			client.Close()
		}
	}
	o.KeyFile = write(t, "key.pem", "none")
	if s, err := broker.StartServer(t.Context(), o); err == nil {
		s.Close()
		t.Error("a key that is none is taken")
	}
}
