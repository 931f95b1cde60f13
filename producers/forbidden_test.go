package producers_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// A subject that a login may not publish on is refused at once, with the subject, the login and the remedy; the
// application's own error handler is called as before, and other subjects are served.
func TestForbiddenPublishFailsAtOnce(t *testing.T) {
	t.Parallel()
	broker, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		Users: []*server.User{{Username: "acme", Password: "sesame", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"audit.events.acme.>", "$JS.API.>"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	broker.Start()
	t.Cleanup(func() { broker.Shutdown(); broker.WaitForShutdown() })
	if !broker.ReadyForConnections(patience) {
		t.Fatal("the broker did not start")
	}
	reported := make(chan error, 16)
	nc, err := nats.Connect("nats://acme:sesame@"+broker.Addr().(*net.TCPAddr).String(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { reported <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"audit.events.>"}}); err != nil {
		t.Fatal(err)
	}
	const never = 10 * time.Minute // without the server's word, the attempt would last so long
	for range 2 {                  // the second publisher of the connection, too
		p, err := producers.New(js, producers.Config{AckTimeout: never, RetryFor: never})
		if err != nil {
			t.Fatal(err)
		}
		e := events(1, 1, true)[0]
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := p.Publish(ctx, e); err != nil {
			t.Errorf("a permitted subject: %v", err)
		}
		e.Organization, e.ID = "globex", [16]byte{}
		err = p.Publish(ctx, e)
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Fatalf("a forbidden subject: %v", err)
		}
		for _, want := range []string{"user acme", schema.EventSubject("globex", e.Trail), "log in as a publisher of that organization"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not name %q: %v", want, err)
			}
		}
		if strings.Contains(err.Error(), "sesame") {
			t.Errorf("the error shows the password: %v", err)
		}
		select {
		case err := <-reported:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("the application's handler got %v", err)
			}
		case <-ctx.Done():
			t.Error("the application's error handler was not called")
		}
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}
