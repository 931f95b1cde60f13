package broker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
)

// A full disk: publishing fails, nothing acknowledged is lost, and when there is room again the server takes
// messages, on the same address, without anybody's help. JetStream alone would refuse until it is started again.
func TestServerThatCouldNotWriteComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatalf("a full disk needs the right to mount: %v", err)
		}
		t.Skipf("a full disk needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := broker.StartServer(t.Context(), broker.ServerOptions{Dir: filepath.Join(dir, "nats")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c, err := broker.Connect(t.Context(), broker.Options{URL: s.URL(), Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Setup(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	var acked []uint64
	publish := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ack, err := c.JS.Publish(ctx, schema.EventSubject("acme", schema.Activity), make([]byte, 10<<10))
		if err == nil {
			acked = append(acked, ack.Sequence)
		}
		return err
	}
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if err := publish(); err == nil {
		t.Fatal("acknowledged on a full disk")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for publish() != nil {
		if time.Now().After(deadline) {
			t.Fatal("nothing can be published, though there is room")
		}
	}
	if s.Restarts() == 0 {
		t.Error("it was not started again: then what is all this for?")
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range acked {
		if _, err := stream.GetMsg(t.Context(), seq); err != nil {
			t.Errorf("message %d was acknowledged: %v", seq, err)
		}
	}
}
