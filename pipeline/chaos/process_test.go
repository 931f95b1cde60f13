//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

// The environment that makes the test binary one of the processes: a broker by directory and port, nats-server by its
// configuration file, the roles of a configuration file, as kansa run has them, an application that publishes, all
// roles of a configuration file with an embedded broker and engine, as kansa up has them, or a disk.
const (
	envBroker = "KANSA_CHAOS_BROKER"
	envServer = "KANSA_CHAOS_SERVER"
	envRoles  = "KANSA_CHAOS_ROLES"
	envApp    = "KANSA_CHAOS_APPLICATION"
	envPower  = "KANSA_CHAOS_POWER"
	envDisk   = "KANSA_CHAOS_DISK"
)

func TestMain(m *testing.M) {
	pipelinetest.Main() // the engine's child
	var err error
	switch {
	case os.Getenv(envBroker) != "":
		err = brokerMain(os.Getenv(envBroker))
	case os.Getenv(envServer) != "":
		err = serverMain(os.Getenv(envServer))
	case os.Getenv(envApp) != "":
		err = applicationMain(os.Getenv(envApp))
	case os.Getenv(envDisk) != "":
		err = diskMain(os.Getenv(envDisk))
	case os.Getenv(envPower) != "":
		err = powerMain(os.Getenv(envPower))
	case os.Getenv(envRoles) != "":
		err = rolesMain(os.Getenv(envRoles))
	default:
		m.Run()
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ended:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func stderrLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func untilTerm() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM)
}

func brokerMain(where string) error {
	ctx, stop := untilTerm()
	defer stop()
	var port int
	dir, number, _ := strings.Cut(where, "|")
	if _, err := fmt.Sscan(number, &port); err != nil {
		return err
	}
	s, err := broker.StartServer(ctx, broker.ServerOptions{Dir: dir, Port: port, LogIn: brokertest.Anyone, Logger: stderrLogger()})
	if err != nil {
		return err
	}
	<-ctx.Done()
	s.Close()
	return nil
}

// serverMain is nats-server -c.
func serverMain(path string) error {
	ctx, stop := untilTerm()
	defer stop()
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		return err
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// rolesMain is kansa run.
func rolesMain(what string) error {
	ctx, stop := untilTerm()
	defer stop()
	path, names, _ := strings.Cut(what, "|")
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	roles, err := pipeline.ParseRoles(strings.Split(names, ","))
	if err != nil {
		return err
	}
	self, err := engineSelf()
	if err != nil {
		return err
	}
	s, err := pipeline.Start(ctx, pipeline.Options{Config: c, Roles: roles, EngineCommand: self, Logger: stderrLogger()})
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "is up")
	select {
	case <-ctx.Done():
	case <-s.Failed():
	}
	return s.Close()
}

// engineSelf is the command of the engine's child.
func engineSelf() ([]string, error) {
	self, err := os.Executable()
	return []string{"/usr/bin/env", "KANSA_TEST_ENGINE=1", self}, err
}

// process is one that is started again whenever it ends, as a service manager does.
type process struct {
	name string
	env  string
	path string // of its log

	mu      sync.Mutex
	cmd     *exec.Cmd
	held    bool // it stays down
	closed  bool
	stopped bool // by SIGSTOP
	changed *sync.Cond
	starts  int
	done    chan struct{}
}

// startProcess keeps a process with an environment variable running until close.
func startProcess(dir, name, env string) *process {
	p := &process{name: name, env: env, path: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	p.changed = sync.NewCond(&p.mu)
	go p.keep()
	return p
}

// again is the pause before a process that ended is started again.
const again = 100 * time.Millisecond

func (p *process) keep() {
	// The kernel kills the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	log, err := os.OpenFile(p.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	for {
		p.mu.Lock()
		for p.held && !p.closed {
			p.changed.Wait()
		}
		if p.closed {
			p.mu.Unlock()
			return
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), p.env)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		if err == nil {
			p.cmd = cmd
			p.starts++
			p.changed.Broadcast()
			fmt.Fprintf(log, "== %s: process %d\n", stamp(), cmd.Process.Pid)
		}
		p.mu.Unlock()
		if err == nil {
			err = cmd.Wait()
		}
		fmt.Fprintf(log, "== %s: ended: %v\n", stamp(), err)
		p.mu.Lock()
		p.cmd, p.stopped = nil, false
		p.mu.Unlock()
		time.Sleep(again)
	}
}

func stamp() string { return time.Now().UTC().Format("15:04:05.000") }

// pid is 0 while there is no process.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it may have ended by itself
	}
}

func (p *process) kill() { p.signal(syscall.SIGKILL) }

// hold kills the process and keeps it down until release.
func (p *process) hold() {
	p.mu.Lock()
	p.held = true
	p.mu.Unlock()
	p.kill()
}

func (p *process) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = false
	p.changed.Broadcast()
}

func (p *process) close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	p.kill()
	<-p.done
}

// faultsIn finds in a process's log what no fault may make a process do.
func faultsIn(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, report := range strings.Split(string(data), "WARNING: DATA RACE\n")[1:] {
		// Within nats-server, which updates a stream while it makes a consumer of it: its own, and not ours to mend.
		if _, frame, _ := strings.Cut(report, "\n  "); !strings.HasPrefix(frame, "github.com/nats-io/") {
			errs = append(errs, fmt.Errorf("%s says: DATA RACE: %.500s", filepath.Base(path), report))
		}
	}
	for _, bad := range []string{
		"panic:", "fatal error:", "an hour cannot be sealed", "task given up", "stored in part", "a spooled message is lost",
	} {
		if i := strings.Index(string(data), bad); i >= 0 {
			errs = append(errs, fmt.Errorf("%s says: %.500s", filepath.Base(path), data[i:]))
		}
	}
	return errors.Join(errs...)
}

func TestFaultsInALog(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"all is well": false,
		"panic: oh":   true,
		"WARNING: DATA RACE\nRead at 0x1 by goroutine 23:\n  github.com/kansa-audit/kansa/x.F()\n":                                    true,
		"WARNING: DATA RACE\nRead at 0x1 by goroutine 23:\n  github.com/nats-io/nats-server/v2/server.(*fileStore).ConsumerStore()\n": false,
	} {
		path := filepath.Join(t.TempDir(), "x.log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := faultsIn(path); (err != nil) != want {
			t.Errorf("%q: got %v", text, err)
		}
	}
}
