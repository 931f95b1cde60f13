package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// The environment of an application that publishes, in a process of its own.
const (
	envBroker = "KANSA_TEST_APPLICATION_BROKER"
	envSpool  = "KANSA_TEST_APPLICATION_SPOOL"
	envSeed   = "KANSA_TEST_APPLICATION_SEED"
	envEvents = "KANSA_TEST_APPLICATION_EVENTS"
)

// application is the application, in its process: it publishes events and prints the id of each that it was told
// is safe; and ends when all are with the broker.
func application() {
	if os.Getenv(envBroker) == "" {
		return
	}
	if err := publishAndPrint(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func publishAndPrint() error {
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Getenv(envEvents))
	if err != nil {
		return err
	}
	nc, err := nats.Connect(os.Getenv(envBroker), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx := context.Background()
	p, err := producers.New(js, producers.Config{Spool: os.Getenv(envSpool), AckTimeout: 200 * time.Millisecond, MaxEvents: 5})
	if err != nil {
		return err
	}
	source := sample.New(seed, nil)
	for range n / 20 {
		var text []byte
		for range 20 {
			e := source.Next()
			if _, err := p.PublishAsync(ctx, e); err != nil {
				return err
			}
			text = fmt.Appendln(text, e.ID)
		}
		if err := p.Flush(ctx); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(text); err != nil {
			return err
		}
	}
	return p.Close(ctx)
}

// app is a running application.
type app struct {
	cmd *exec.Cmd
	ids *bufio.Scanner
}

func startApp(t *testing.T, broker, spool string, seed, events int) *app {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), envBroker+"="+broker, envSpool+"="+spool, fmt.Sprint(envSeed, "=", seed), fmt.Sprint(envEvents, "=", events))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // if the test has failed before
	return &app{cmd, bufio.NewScanner(out)}
}

// accepted reads the ids of n more events that were accepted, or of all that come.
func (a *app) accepted(n int) (ids []string) {
	for len(ids) < n && a.ids.Scan() {
		ids = append(ids, a.ids.Text())
	}
	return ids
}

// kill ends the application as a power cut would, and returns what it had printed still.
func (a *app) kill(t *testing.T) []string {
	t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	rest := a.accepted(1 << 30)
	_ = a.cmd.Wait() // it was killed, and says so
	return rest
}

// oneWay is a way to the broker that passes on what the application says, and can be made to keep back what the
// broker answers.
type oneWay struct {
	url  string
	mute atomic.Bool
}

func newOneWay(t *testing.T, target string) *oneWay {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &oneWay{url: "nats://" + l.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return // it is closed
			}
			all.Go(func() { w.carry(from, target) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); await.Return(t, await.Limit, "the connections to be closed", all.Wait) })
	return w
}

func (w *oneWay) carry(from net.Conn, target string) {
	defer from.Close()
	var d net.Dialer
	to, err := d.DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		defer from.Close()
		_, _ = io.Copy(answers{from, w}, to)
	})
	_, _ = io.Copy(to, from)
	_ = to.Close()
	back.Wait()
}

// answers drops what is written while the way is mute.
type answers struct {
	io.Writer
	way *oneWay
}

func (a answers) Write(p []byte) (int, error) {
	if a.way.mute.Load() {
		return len(p), nil
	}
	return a.Writer.Write(p)
}
