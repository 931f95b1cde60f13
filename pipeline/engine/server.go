package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Defaults of ServeOptions and Options.
const (
	DefaultConnections = 16
	DefaultMaxBody     = 1 << 30
	stopTimeout        = 10 * time.Second
)

// ServeOptions say what Serve serves.
type ServeOptions struct {
	Library  string       // path of libchdb
	Path     string       // directory of the engine's data
	Listener net.Listener // closed at the end
	Username string
	Password string
	Readers  []Reader
	// Connections is how many requests the engine works on at once; more wait. Zero means DefaultConnections.
	Connections int
	// MaxBody bounds a request's body, decompressed. Zero means DefaultMaxBody.
	MaxBody int64
	// Memory bounds what the engine uses, in bytes. Zero leaves it to the engine: nine tenths of the machine's.
	Memory int64
	// Encrypted says that the working directory has a configuration with an encrypted disk.
	Encrypted bool
	Logger    *slog.Logger
}

// Serve opens the engine and answers requests until ctx ends, then lets those at work finish for a while.
// A process can do this once: libchdb cannot be unloaded, and knows one data directory.
func Serve(ctx context.Context, o ServeOptions) (err error) {
	defer func() { err = errors.Join(err, ignoreClosed(o.Listener.Close())) }()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Connections <= 0 {
		o.Connections = DefaultConnections
	}
	if o.MaxBody <= 0 {
		o.MaxBody = DefaultMaxBody
	}
	lib, err := openLibrary(o.Library)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.Path, 0o700); err != nil {
		return fmt.Errorf("make the engine's directory: %w", err)
	}
	h := &handler{
		lib: lib, slots: newSlots(o.Connections), underWay: newUnderWay(o.Logger), stopping: ctx, maxBody: o.MaxBody, log: o.Logger,
		args:    engineArgs(o),
		started: time.Now(),
		yields:  mayYield(),
		users:   &users{owner: o.Username, password: sha256.Sum256([]byte(o.Password))},
	}
	h.users.set(o.Readers)
	// One session stays open all the time: with the last one the engine stops.
	base, err := lib.open(h.args...)
	if err != nil {
		return err
	}
	defer base.close()
	if err := h.introduce(base); err != nil {
		return err
	}
	if err := makeMasks(base); err != nil {
		return err
	}
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(o.Listener) }()
	stopCare := h.takeCare(ctx, o)
	defer stopCare()
	looking := time.NewTicker(lookForSpoiled)
	defer looking.Stop()
	if !h.yields {
		o.Logger.Info("searches use half of the processors and compete with pages and inserts for them: with CAP_SYS_NICE, they use all and give way")
	}
	o.Logger.Info("engine serves", "version", h.version, "addr", o.Listener.Addr().String(), "connections", o.Connections)
	for serving := true; serving; {
		select {
		case err := <-served:
			return fmt.Errorf("serve: %w", err)
		case <-looking.C:
		case <-ctx.Done():
			serving = false
		}
		if part := o.emptyPart(); part != "" { // the last time before the end in order
			h.endSpoiled(part)
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		// A handler within the engine cannot be interrupted, and closing the engine under it would crash.
		return fmt.Errorf("stop: requests are still at work: %w", errors.Join(err, <-served))
	}
	<-served //nolint:errcheck // it says only that the server was closed
	return nil
}

// takeCare begins what goes on beside the requests, and returns what ends it.
func (h *handler) takeCare(ctx context.Context, o ServeOptions) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var care sync.WaitGroup
	care.Go(func() { yieldMerges(ctx, o.Logger) })
	if o.Encrypted {
		care.Go(func() {
			s, err := h.lib.open(h.args...)
			if err == nil {
				err = moveEncrypted(ctx, s, o.Logger)
				s.close()
			}
			if err != nil {
				o.Logger.Error("something is still in plain; the next start tries again", slog.Any("error", err))
			}
		})
	}
	return func() { cancel(); care.Wait() }
}

// engineArgs are the options of every connection. The engine is one of several tenants of a small machine,
// so its caches and pools are kept small.
func engineArgs(o ServeOptions) []string {
	args := []string{
		"--path=" + o.Path,
		"--timezone=UTC",
		"--async_insert=0", // on by default since 26, and it answers before anything is stored
		"--mark_cache_size=268435456",
		"--index_mark_cache_size=67108864",
		"--primary_index_cache_size=268435456",
		"--background_pool_size=2",
		// Many small parts cost each query more than a few large ones, so small merges do not wait for large ones.
		"--background_merges_mutations_scheduling_policy=shortest_task_first",
		"--background_schedule_pool_size=4",
		"--max_thread_pool_size=512",
		"--max_io_thread_pool_size=16",
		"--progress=off",
	}
	if o.Memory > 0 {
		args = append(args, fmt.Sprintf("--max_server_memory_usage=%d", o.Memory))
	}
	return args
}

// introduce asks the engine what it tells clients about itself.
func (h *handler) introduce(s *session) error {
	res, err := s.query("SELECT version(), displayName(), timezone()", "TabSeparated", nil)
	if err != nil {
		return fmt.Errorf("ask the engine for its version: %w", err)
	}
	defer res.close()
	fields := strings.Split(strings.TrimSpace(string(res.data())), "\t")
	if len(fields) != 3 {
		return fmt.Errorf("ask the engine for its version: got %q", fields)
	}
	h.version, h.host, h.timezone = fields[0], fields[1], fields[2]
	if h.tableFunctions, err = s.set("SELECT lower(name) FROM system.table_functions"); err != nil {
		return fmt.Errorf("ask the engine for its table functions: %w", err)
	}
	if h.functions, err = s.set("SELECT lower(name) FROM system.functions"); err != nil {
		return fmt.Errorf("ask the engine for its functions: %w", err)
	}
	if !h.tableFunctions["merge"] || !h.functions["file"] {
		return errors.New("ask the engine for its functions: merge or file is missing, so the answer is wrong")
	}
	return nil
}

// set returns the words of a query's answer.
func (s *session) set(query string) (map[string]bool, error) {
	res, err := s.query(query, "TabSeparated", nil)
	if err != nil {
		return nil, err
	}
	defer res.close()
	return setOf(strings.Fields(string(res.data()))...), nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// childSettings is what the parent writes to the child's standard input, as one line of JSON. The input
// then stays open for as long as the parent lives.
type childSettings struct {
	Library     string
	Dir         string
	Username    string
	Password    string
	Readers     []Reader
	Connections int
	MaxBody     int64
	Memory      int64
	LogLevel    slog.Level
	Encrypted   bool
}

// Descriptors that the child inherits besides the standard ones.
const (
	listenerFD = 3
	lockFD     = 4 // held, never used: the directory stays locked until the last process is gone
)

// Main is the child: it reads its settings from stdin, serves on the socket it has inherited, and ends when
// ctx or stdin does.
func Main(ctx context.Context, stdin io.Reader, stderr io.Writer) error {
	decoder := json.NewDecoder(stdin)
	var set childSettings
	if err := decoder.Decode(&set); err != nil {
		return fmt.Errorf("read the engine's settings from standard input: %w; this command is for kansa itself", err)
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: set.LogLevel}))
	socket := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	if err := socket.Close(); err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Ends with the process at the latest; a read cannot be interrupted.
		_, _ = io.Copy(io.Discard, io.MultiReader(decoder.Buffered(), stdin))
		cancel()
	}()
	return Serve(ctx, ServeOptions{
		Library: set.Library, Path: filepath.Join(set.Dir, "data"), Listener: listener,
		Username: set.Username, Password: set.Password, Readers: set.Readers,
		Connections: set.Connections, MaxBody: set.MaxBody, Memory: set.Memory, Encrypted: set.Encrypted, Logger: log,
	})
}
