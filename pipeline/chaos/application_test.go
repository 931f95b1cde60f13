//go:build linux

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// appSettings is what an application is told in its environment.
type appSettings struct {
	Broker     string
	TokenFile  string // empty without
	Spool      string
	PerMessage int
	RetryFor   time.Duration
}

// exitSpooled is how an application ends that leaves something in its spool.
const exitSpooled = 3

// applicationMain publishes the events that come in with a spool, and prints the id of each that is acknowledged.
func applicationMain(settings string) error {
	var o appSettings
	if err := json.Unmarshal([]byte(settings), &o); err != nil {
		return err
	}
	login := nats.Option(func(*nats.Options) error { return nil })
	if o.TokenFile != "" {
		token, err := os.ReadFile(o.TokenFile)
		if err != nil {
			return err
		}
		login = nats.Token(strings.TrimSpace(string(token)))
	}
	nc, err := nats.Connect(o.Broker, login, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx := context.Background()
	p, err := producers.New(js, producers.Config{
		Spool: o.Spool, SpoolBytes: spoolBytes, MaxEvents: o.PerMessage, RetryFor: o.RetryFor, AckTimeout: 2 * time.Second, Logger: stderrLogger(),
	})
	if err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	var told sync.WaitGroup
	for {
		var e schema.Event
		if err := in.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			return err
		}
		ack, err := p.PublishAsync(ctx, e)
		if err != nil {
			fmt.Fprintln(os.Stderr, "not taken:", err)
			continue
		}
		told.Go(func() {
			if err := ack.Wait(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "not acknowledged:", err)
				return
			}
			fmt.Println(e.ID) // a line is one write
		})
	}
	err = p.Flush(ctx)
	told.Wait()
	if closed := p.Close(ctx); errors.Is(closed, producers.ErrSpooled) {
		fmt.Fprintln(os.Stderr, closed)
		os.Exit(exitSpooled)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "flush:", err) // each event's outcome was told
	}
	return nil
}

// spoolBytes is less than its disk has, so that both are full at times.
const spoolBytes = 1 << 20

// application publishes by a process that has a spool. When it is killed, the next event is given to another one,
// which goes on with the spool.
type application struct {
	settings string
	log      *os.File

	mu    sync.Mutex
	life  *life // nil before the first event
	acked map[uuid.UUID]bool
}

// life is one process of an application.
type life struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}
	err   error // once it has ended
}

func (s *stack) startApplication(p *plan) (*application, error) {
	settings, err := json.Marshal(appSettings{
		Broker: "nats://" + s.net.links["publisher-broker"].Listen, Spool: filepath.Join(s.dir, diskSpool, "messages"), PerMessage: p.perMessage, RetryFor: p.retryFor,
	})
	if err != nil {
		return nil, err
	}
	return newApplication(string(settings), s.dir)
}

// newApplication is one with settings, as JSON, which logs to a directory. It starts with the first event.
func newApplication(settings, dir string) (*application, error) {
	log, err := os.OpenFile(filepath.Join(dir, procApp+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &application{settings: settings, log: log, acked: map[uuid.UUID]bool{}}, nil
}

// start begins a life.
func (a *application) start() (*life, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := &life{cmd: exec.Command(self), ended: make(chan struct{})}
	l.cmd.Env = append(os.Environ(), envApp+"="+a.settings)
	l.cmd.Stderr = a.log
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	fmt.Fprintf(a.log, "== %s: process %d\n", stamp(), l.cmd.Process.Pid)
	go func() {
		defer close(l.ended)
		for ids := bufio.NewScanner(out); ids.Scan(); {
			if id, err := uuid.Parse(ids.Text()); err == nil { // a line may be cut short by a kill
				a.mu.Lock()
				a.acked[id] = true
				a.mu.Unlock()
			}
		}
		l.err = l.cmd.Wait()
		fmt.Fprintf(a.log, "== %s: ended: %v\n", stamp(), l.err)
	}()
	a.mu.Lock()
	a.life = l
	a.mu.Unlock()
	return l, nil
}

// running is the process that publishes, or nil.
func (a *application) running() *life {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.life == nil {
		return nil
	}
	select {
	case <-a.life.ended:
		return nil
	default:
		return a.life
	}
}

func (a *application) pid() int {
	if l := a.running(); l != nil {
		return l.cmd.Process.Pid
	}
	return 0
}

func (a *application) signal(sig syscall.Signal) {
	if l := a.running(); l != nil {
		_ = l.cmd.Process.Signal(sig) // it may have ended by itself
	}
}

// kill ends the process, if there is one, and waits for its end.
func (a *application) kill() {
	a.signal(syscall.SIGKILL)
	a.mu.Lock()
	l := a.life
	a.mu.Unlock()
	if l != nil {
		<-l.ended
	}
	_ = a.log.Close()
}

var errNotAcked = errors.New("the application was not told that the event is safe")

func (a *application) publish(_ context.Context, e schema.Event) (outcome, error) {
	l := a.running()
	if l == nil {
		var err error
		if l, err = a.start(); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	_, _ = l.in.Write(append(text, '\n')) // if the process is gone, so is the event, and was not acknowledged
	return func(context.Context) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.acked[e.ID] {
			return errNotAcked
		}
		return nil
	}, nil
}

// close ends the application, and starts it again until nothing is in the spool.
func (a *application) close(ctx context.Context) (err error) {
	defer a.log.Close()
	for {
		l := a.running()
		if l == nil {
			if l, err = a.start(); err != nil {
				return err
			}
		}
		_ = l.in.Close() // it may be gone
		select {
		case <-l.ended:
		case <-ctx.Done():
			_ = l.cmd.Process.Kill()
			<-l.ended
			return fmt.Errorf("the application's spool is not empty: %w", ctx.Err())
		}
		var exit *exec.ExitError
		switch {
		case l.err == nil:
			return nil
		case !errors.As(l.err, &exit) || exit.Exited() && exit.ExitCode() != exitSpooled:
			return fmt.Errorf("the application ended: %w", l.err)
		}
	}
}
