package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// kansa up ends with its writers when all is given out again: the command waits for it, or says that the next start does the rest, and
// does not fail.
func TestReplayOfKansaUpSucceeds(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"started again by a service manager": true, "left alone": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			data, config := t.TempDir(), filepath.Join(t.TempDir(), "kansa.yaml")
			text := fmt.Sprintf("data_dir: %s\nnats: {port: %d}\napi: {listen: '127.0.0.1:0'}\nhealth: {listen: '127.0.0.1:0'}\nrollup: {hour: 1s}\nwriter: {ack_wait: 4s, insert_timeout: 1s}\n", data, port)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			up, out := start(t, "up", "-c", config)
			isUp := func(out *lockedBuffer) {
				pipelinetest.Until(t, time.Minute, func() (bool, any) { return strings.Contains(out.String(), " is up: "), out })
			}
			isUp(out)
			at := []string{fmt.Sprintf("--nats=nats://127.0.0.1:%d", port), "--data-dir=" + data}
			ended := make(chan struct{})
			defer func() { await.Receive(t, await.Limit, "kansa up to be started again", ended) }()
			go func() { // it ends before the command has made the new consumers
				defer close(ended)
				pipelinetest.Until(t, time.Minute, func() (bool, any) { return strings.Contains(out.String(), "the consumer was deleted"), out })
				_ = up.Process.Signal(syscall.SIGTERM)
				_ = up.Wait()
				if again {
					start(t, "up", "-c", config)
				}
			}()
			code, stdout, stderr := kansa(t, "", append([]string{"replay", "--yes"}, at...)...)
			// Either is possible: it may end before the new consumers are made, or a moment after that.
			if code != 0 || !strings.Contains(stdout, "start it again") && !strings.Contains(stdout, "shards\n") {
				t.Errorf("%d %s%s", code, stdout, stderr)
			}
			if !again {
				await.Receive(t, await.Limit, "kansa up to end", ended)
				_, out = start(t, "up", "-c", config)
				isUp(out)
				if code, stdout, stderr := kansa(t, "", append([]string{"shards"}, at...)...); code != 0 || !strings.Contains(stdout, "-r1") {
					t.Errorf("%d %s%s", code, stdout, stderr)
				}
			}
		})
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
