package engine

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

const (
	readyTimeout = 60 * time.Second // loading many parts takes a while
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
	// giveUpAfter is how many times in a row a child may die before it has answered.
	giveUpAfter = 8
	errorLines  = 8
)

// Options of Start.
type Options struct {
	Dir         string   // the engine's directory, made with mode 0700
	Listen      string   // host:port; a free port of loopback if empty
	Library     string   // path of libchdb; empty means to search, see FindLibrary
	Command     []string // the command that calls Main
	Readers     []Reader // further users
	Connections int      // see ServeOptions
	MaxBody     int64    // see ServeOptions
	Memory      int64    // see ServeOptions
	Keys        []Key    // what tables hold is encrypted with the first; in plain without
	Logger      *slog.Logger
}

// Engine is a running child under supervision. It is safe for use by many goroutines.
type Engine struct {
	options  Options
	creds    credentials
	setting  sync.Mutex // held while readers are set
	mu       sync.Mutex
	settings childSettings // its readers change, under mu
	client   *http.Client
	listener *net.TCPListener
	socket   *os.File // the listener's, for the children
	lock     *os.File
	keys     []string // for the environment of the children
	log      *slog.Logger
	pid      atomic.Int64
	restarts atomic.Int64
	stop     context.CancelFunc
	done     chan struct{}
	err      error // of the supervisor, once done
	once     sync.Once
	closeErr error
}

// Start runs the engine in its directory and returns when it answers. ctx bounds the start only; Close ends
// the engine.
func Start(ctx context.Context, o Options) (_ *Engine, err error) {
	if len(o.Command) == 0 {
		return nil, errors.New("start the engine: no command")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	library, err := FindLibrary(o.Library)
	if err != nil {
		return nil, err
	}
	if library, err = filepath.Abs(library); err != nil {
		return nil, fmt.Errorf("find libchdb: %w", err)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the engine's directory: %w", err)
	}
	e := &Engine{options: o, log: o.Logger, client: &http.Client{Transport: &http.Transport{}}, done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.release())
		}
	}()
	if e.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	if e.keys, err = prepareKeys(o.Dir, o.Keys); err != nil {
		return nil, err
	}
	if e.creds, err = loadCredentials(o.Dir); err != nil {
		return nil, err
	}
	listener, err := listen(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	e.listener = listener
	if e.socket, err = listener.File(); err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	e.settings = childSettings{
		Library: library, Dir: o.Dir, Username: e.creds.Username, Password: e.creds.Password, Readers: o.Readers,
		Connections: o.Connections, MaxBody: o.MaxBody, Memory: o.Memory, LogLevel: slog.LevelInfo, Encrypted: len(o.Keys) > 0,
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.stop = cancel
	ready := make(chan error, 1)
	go e.supervise(running, ready)
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = fmt.Errorf("start the engine: %w", ctx.Err())
	}
	if err != nil {
		cancel()
		<-e.done
		return nil, err
	}
	return e, nil
}

// listen opens the endpoint's socket.
func listen(ctx context.Context, addr string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cmp.Or(addr, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("listen for ClickHouse clients: %w: free the address or choose another", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen for ClickHouse clients on %s: not TCP", addr), l.Close())
	}
	return tcp, nil
}

// Addr is the engine's address for this machine, host and port. It never changes.
func (e *Engine) Addr() string {
	addr, ok := e.listener.Addr().(*net.TCPAddr)
	if ok && addr.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port))
	}
	return e.listener.Addr().String()
}

// URL is the engine's address for an HTTP client, without credentials.
func (e *Engine) URL() string { return "http://" + e.Addr() }

// Username is the name of the engine's owner.
func (e *Engine) Username() string { return e.creds.Username }

// Password is the owner's.
func (e *Engine) Password() string { return e.creds.Password }

// PID is the child's process id, for tests that kill it; 0 while there is none.
func (e *Engine) PID() int { return int(e.pid.Load()) }

// Restarts counts how often the child had to be started again.
func (e *Engine) Restarts() int64 { return e.restarts.Load() }

// Options are what clickhouse.Open needs; the caller may change them.
func (e *Engine) Options() *clickhouse.Options {
	return &clickhouse.Options{
		Protocol: clickhouse.HTTP,
		Addr:     []string{e.Addr()},
		Auth:     clickhouse.Auth{Database: "default", Username: e.creds.Username, Password: e.creds.Password},
	}
}

// Done is closed when the engine has ended, by Close or because it could not be started again.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Err says, after Done, why the engine could not be started again; nil after a Close.
func (e *Engine) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

// Close ends the engine: requests at work may finish within a deadline. It may be called many times.
func (e *Engine) Close() error {
	e.once.Do(func() {
		e.stop()
		<-e.done
		e.closeErr = errors.Join(e.err, e.release())
	})
	return e.closeErr
}

func (e *Engine) release() error {
	e.client.CloseIdleConnections()
	var errs []error
	if e.socket != nil {
		errs = append(errs, e.socket.Close())
	}
	if e.listener != nil {
		errs = append(errs, e.listener.Close())
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the engine: %w", err)
	}
	return nil
}

// supervise starts the child, again and again, until ctx ends. The first child's fate goes to ready.
func (e *Engine) supervise(ctx context.Context, ready chan<- error) {
	defer close(e.done)
	// The kernel kills the child when the thread that started it ends, so this thread must last as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	backoff, failures, first := firstBackoff, 0, true
	for {
		answered, err := e.runChild(ctx, func() {
			if first {
				ready <- nil
			}
		})
		if ctx.Err() != nil {
			if first && !answered {
				ready <- ctx.Err()
			}
			if err != nil {
				e.log.Warn("engine did not stop cleanly", "err", err)
			}
			return
		}
		if first && !answered {
			ready <- err
			return
		}
		first = false
		if answered {
			backoff, failures = firstBackoff, 0
		} else {
			backoff, failures = min(2*backoff, lastBackoff), failures+1
		}
		if failures >= giveUpAfter {
			e.err = fmt.Errorf("the engine died %d times before it answered: %w", failures, err)
			e.log.Error("engine given up", "err", e.err)
			return
		}
		e.log.Error("engine died, starting it again", "err", err, "after", backoff)
		e.restarts.Add(1)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
	}
}

// runChild runs one child to its end and reports whether it has ever answered.
func (e *Engine) runChild(ctx context.Context, onReady func()) (answered bool, err error) {
	// Not tied to a context: the child is asked to end, and ended by its own id if it does not.
	cmd := exec.Command(e.options.Command[0], e.options.Command[1:]...) //nolint:noctx // see above
	cmd.Env = append(append(os.Environ(), "TZ=UTC"), e.keys...)
	cmd.Dir = e.options.Dir // libchdb reads a config.xml of the working directory
	cmd.ExtraFiles = []*os.File{e.socket, e.lock}
	cmd.SysProcAttr = childAttributes()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return false, fmt.Errorf("start the engine: %w", err)
	}
	output, errOutput, err := os.Pipe()
	if err != nil {
		return false, errors.Join(fmt.Errorf("start the engine: %w", err), stdin.Close())
	}
	cmd.Stdout, cmd.Stderr = errOutput, errOutput
	err = cmd.Start()
	closeErr := errOutput.Close()
	if err != nil {
		return false, errors.Join(fmt.Errorf("start the engine: %w", err), closeErr, stdin.Close(), output.Close())
	}
	e.pid.Store(int64(cmd.Process.Pid))
	defer e.pid.Store(0)
	last := make(chan []string, 1)
	go func() { last <- e.forward(output) }()
	exited := make(chan struct{})
	finished := make(chan struct{})
	var isReady atomic.Bool
	go func() { // writes the settings, waits for the answer, and stops the child when it is time
		defer close(finished)
		if err := json.NewEncoder(stdin).Encode(e.childSettings()); err == nil && e.await(ctx, exited) {
			isReady.Store(true)
			onReady()
		} else if ctx.Err() == nil {
			_ = cmd.Process.Kill() // it has died already, or hangs
		}
		select {
		case <-exited:
		case <-ctx.Done():
		}
		_ = stdin.Close() // tells the child to finish
		select {
		case <-exited:
		case <-time.After(stopTimeout + 2*time.Second):
			e.log.Warn("engine hangs, killing it")
			_ = cmd.Process.Kill()
		}
	}()
	err = cmd.Wait()
	close(exited)
	<-finished
	lines := <-last
	if err != nil || ctx.Err() == nil {
		err = fmt.Errorf("engine process %d ended: %w", cmd.Process.Pid, errors.Join(exitError(err), lastWords(lines)))
	}
	return isReady.Load(), errors.Join(err, closeErr, output.Close())
}

// childSettings are those of the next child.
func (e *Engine) childSettings() childSettings {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.settings
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0, unasked")
	}
	return err
}

func lastWords(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "; "))
}

// await reports whether the child answers. The socket is open all the time, so one request suffices: it
// waits until the child takes it.
func (e *Engine) await(ctx context.Context, exited <-chan struct{}) bool {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	go func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL()+"/ping", nil)
	if err != nil {
		return false
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// relog writes a line of the child's own log as one of ours, if it is that and no warning.
func (e *Engine) relog(line string) bool {
	var record map[string]any
	if json.Unmarshal([]byte(line), &record) != nil {
		return false
	}
	msg, _ := record[slog.MessageKey].(string)
	text, _ := record[slog.LevelKey].(string)
	var level slog.Level
	if msg == "" || level.UnmarshalText([]byte(text)) != nil || level >= slog.LevelWarn {
		return false
	}
	var attrs []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(record)) {
		if k != slog.MessageKey && k != slog.LevelKey && k != slog.TimeKey {
			attrs = append(attrs, slog.Any(k, record[k]))
		}
	}
	e.log.LogAttrs(context.Background(), level, "engine: "+msg, attrs...)
	return true
}

// forward passes the child's output on to the log, and keeps the last lines for the error that its end may
// become.
func (e *Engine) forward(output io.Reader) []string {
	var last []string
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		if e.relog(line) {
			continue
		}
		e.log.Warn("engine output", "line", line)
		if last = append(last, line); len(last) > errorLines {
			last = last[1:]
		}
	}
	// A line that is too long must not block the child.
	_, _ = io.Copy(io.Discard, output)
	return last
}
