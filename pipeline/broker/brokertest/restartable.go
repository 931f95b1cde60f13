package brokertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
)

// patience is how long a test waits for what has to come.
const patience = time.Minute

// Restartable is a broker that can be stopped, and started again: on its port, with what it has on disk.
type Restartable struct {
	Dir string // of the streams
	// Settings are those of Kansa's streams, which are set up at every start; nil, and they are left as they are.
	Settings *broker.Settings

	port   int
	server *broker.Server // nil while it is stopped
}

// StartRestartable starts a broker that has nothing yet but what the settings, if there are any, say.
func StartRestartable(t testing.TB, s *broker.Settings) *Restartable {
	t.Helper()
	port, err := FreePort(rand.IntN)
	if err != nil {
		t.Fatal(err)
	}
	b := &Restartable{Dir: t.TempDir(), Settings: s, port: port}
	t.Cleanup(b.Stop)
	b.Start(t)
	return b
}

// Start starts it when it is stopped.
func (b *Restartable) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := broker.StartServer(ctx, broker.ServerOptions{Dir: b.Dir, Port: b.port, LogIn: Anyone})
	if err != nil {
		t.Fatal(err)
	}
	b.server = server
	if b.Settings != nil {
		b.SetUp(t)
	}
}

// SetUp sets Kansa's streams up, and so makes changed settings true.
func (b *Restartable) SetUp(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := b.Connect(t)
	defer c.NC.Close()
	if err := c.Setup(ctx, *b.Settings); err != nil {
		t.Fatal(err)
	}
}

// Stop stops it, if it runs.
func (b *Restartable) Stop() {
	if b.server != nil {
		b.server.Close()
		b.server = nil
	}
}

// URL is where clients connect. It never changes.
func (b *Restartable) URL() string { return "nats://127.0.0.1:" + strconv.Itoa(b.port) }

// Connect connects to it. The connection outlives restarts.
func (b *Restartable) Connect(t testing.TB) *broker.Client {
	t.Helper()
	c, err := broker.Connect(t.Context(), broker.Options{URL: b.URL(), Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.NC.Close) // and not Close, which waits for a server that may be gone
	return c
}

// FreePort finds a port of this machine that can be taken again and again, as no outgoing connection is given it.
func FreePort(intN func(int) int) (int, error) {
	const first, ports = 15_000, 15_000
	var tried error
	for range 1000 {
		port := first + intN(ports)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		tried = err
	}
	return 0, errors.Join(errors.New("no port is free"), tried)
}
