package brokertest

import (
	"context"
	"net/url"
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

	port   int            // 0 before the first start: it is of the server's choice
	server *broker.Server // nil while it is stopped
}

// StartRestartable starts a broker that has nothing yet but what the settings, if there are any, say.
func StartRestartable(t testing.TB, s *broker.Settings) *Restartable {
	t.Helper()
	b := &Restartable{Dir: t.TempDir(), Settings: s}
	t.Cleanup(b.Stop)
	b.Start(t)
	return b
}

// Start starts it when it is stopped.
func (b *Restartable) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := broker.StartServer(ctx, broker.ServerOptions{Dir: b.Dir, Port: b.port})
	if err != nil {
		t.Fatal(err)
	}
	b.server = server
	at, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	if b.port, err = strconv.Atoi(at.Port()); err != nil {
		t.Fatal(err)
	}
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
