// Package brokertest gives tests a real broker each: an embedded one, on disk, that ends with the test. It can be one
// that is stopped and started again meanwhile, and what lies in its stream of events can be read.
//
// It is for tests alone.
package brokertest

import (
	"context"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
)

// Start starts a broker that has nothing yet.
func Start(t testing.TB) *broker.Server {
	t.Helper()
	s, err := broker.StartServer(t.Context(), broker.ServerOptions{Dir: t.TempDir(), LogIn: Anyone})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Anyone is a ServerOptions.LogIn that makes every client an operator, so that a test needs no key.
func Anyone(context.Context, string, string) (*broker.Login, error) {
	return &broker.Login{Name: "test", Operator: true}, nil
}

// Connect connects to a broker.
func Connect(t testing.TB, url string) *broker.Client {
	t.Helper()
	c, err := broker.Connect(t.Context(), broker.Options{URL: url, Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// SetUp starts a broker with Kansa's streams, and connects to it. An hour is one, and a message belongs to whom it was
// given for a minute.
func SetUp(t testing.TB) *broker.Client {
	t.Helper()
	c := Connect(t, Start(t).URL())
	if err := c.Setup(t.Context(), broker.Settings{DuplicateWindow: 2 * time.Minute, AckWait: time.Minute, Hour: time.Hour}); err != nil {
		t.Fatal(err)
	}
	return c
}
