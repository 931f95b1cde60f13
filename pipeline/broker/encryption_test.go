package broker_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/schema"
)

// Z11: what the embedded broker keeps is encrypted; a new key takes the place of an old one without a loss, and a wrong
// one is refused instead of beginning anew with empty streams.
func TestStreamsAreEncrypted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	const secret = "who-did-what-and-when"
	start := func(key, before string) (*broker.Server, error) {
		return broker.StartServer(t.Context(), broker.ServerOptions{Dir: dir, LogIn: brokertest.Anyone, Key: key, KeyBefore: before, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}
	total, acked := 0, 0
	// what the consumer had is where it was
	take := func(c *broker.Client, what string) {
		t.Helper()
		consumer, err := c.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := consumer.Fetch(50)
		if err != nil {
			t.Fatal(err)
		}
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err == nil {
				err = msg.DoubleAck(t.Context())
			}
			acked++
			if err != nil || meta.Sequence.Stream != uint64(acked) {
				t.Fatalf("%s: the consumer gives message %d, want %d, %v", what, meta.Sequence.Stream, acked, err)
			}
		}
	}
	// use publishes 100 messages and reads all there are.
	use := func(what, key, before string) {
		t.Helper()
		s, err := start(key, before)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer s.Close()
		c, err := broker.Connect(t.Context(), broker.Options{URL: s.URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Setup(t.Context(), broker.Settings{DuplicateWindow: time.Minute, AckWait: time.Minute, Hour: time.Hour}); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := c.JS.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte(strings.Repeat(secret, 100))); err != nil {
				t.Fatal(err)
			}
			total++
		}
		stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			t.Fatal(err)
		}
		for seq := range uint64(total) {
			msg, err := stream.GetMsg(t.Context(), seq+1)
			if err != nil || !bytes.HasPrefix(msg.Data, []byte(secret)) {
				t.Fatalf("%s: message %d: %v", what, seq+1, err)
			}
		}
		take(c, what)
	}
	inPlain := func() (found bool) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			found = found || bytes.Contains(text, []byte(secret))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	refused := func(what, key, before string) {
		t.Helper()
		if s, err := start(key, before); !errors.Is(err, broker.ErrNotRecovered) {
			if err == nil {
				s.Close()
			}
			t.Errorf("%s: %v", what, err)
		}
	}
	first, second := strings.Repeat("a", 32), strings.Repeat("b", 32)
	use("in plain", "", "")
	if !inPlain() {
		t.Fatal("what is stored in plain is not found, so this test shows nothing")
	}
	use("encrypted from now on", first, "")
	if inPlain() {
		t.Error("it is still there in plain")
	}
	refused("without its key", "", "")
	refused("with another key", second, "")
	use("with its key", first, "")
	use("with a new key", second, first)
	use("with the new one alone", second, "")
	refused("with the old one", first, "")
	cut(t, dir)
	use("after a copy that was cut off", second, first)
	if err := os.Rename(dir, dir+".copy"); err != nil { // the last step but two
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir+".copy", "whole"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	use("with a copy that is whole and not yet in its place", second, first)
	for _, left := range []string{dir + ".copy", dir + ".old", filepath.Join(dir, "whole")} {
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
	use("after it was refused", second, "")
	if inPlain() {
		t.Error("it is there in plain at the end")
	}
}

// cut leaves a copy that is not whole.
func cut(t *testing.T, dir string) {
	t.Helper()
	half := filepath.Join(dir+".copy", "jetstream", "$G", "streams", broker.StreamAudit)
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "meta.inf"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
}
