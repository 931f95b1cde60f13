package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kansa-audit/kansa/schema"
)

// maxPayload fits the largest message of events and what a dead letter adds to it.
const maxPayload = schema.MaxMessageBytes + 64<<10

// ServerOptions are those of the embedded server.
type ServerOptions struct {
	Dir    string // of the streams
	Listen string // host; default 127.0.0.1
	Port   int    // 0 chooses a free one
	// Key encrypts what is stored, by XChaCha20-Poly1305 and a key of each stream's; in plain without. KeyBefore is the one
	// it takes the place of: the server re-encrypts as it starts.
	Key, KeyBefore string
	// CertFile and KeyFile are the server's certificate; without, it speaks in plain.
	CertFile, KeyFile string
	// LogIn decides who connects with a secret, sent as a token or a password; it is empty if the client sent none. It may return
	// ErrNotLetIn. Without LogIn, only this process can connect.
	LogIn func(ctx context.Context, secret, ip string) (*Login, error)
	// NoListen takes connections from this process only.
	NoListen bool
	Logger   *slog.Logger
}

// Server is a NATS server within this process. One that can't write any more, because its disk is full or
// fails, refuses to until it is started again, and tells nobody but its log; so it is started again here.
type Server struct {
	o    ServerOptions
	url  string
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}

	broken   chan string            // what the server said
	fault    atomic.Pointer[string] // the same, until it can write again
	restarts atomic.Int64
	cutOff   atomic.Int64
	ns       *server.Server // the supervisor's, until done
	token    string         // that we log in with
	door     atomic.Pointer[door]
}

// noLimit is more than any disk has; the streams have limits of their own.
const noLimit = 1 << 60

const (
	firstPause = 200 * time.Millisecond // before a server that broke is started again
	lastPause  = 10 * time.Second
	soundFor   = 30 * time.Second // after so long without a fault the pause is short again
	tlsTimeout = 10 * time.Second // of a handshake
	// authTimeout is how long a client may take to log in, which includes the lookup of its key. The server's default of 2 s is too
	// short on a machine that is busy starting.
	authTimeout = 10 * time.Second
)

// StartServer starts a server that syncs every write to disk before it acknowledges it, and returns
// when it takes connections. ctx bounds the start only.
func StartServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1"
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	s := &Server{o: o, log: o.Logger, done: make(chan struct{}), broken: make(chan string, 1), token: newToken()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With(slog.String("part", "nats-server"))
	var err error
	if s.ns, err = s.open(ctx); err != nil {
		return nil, err
	}
	s.url = s.ns.ClientURL()
	if a, ok := s.ns.Addr().(*net.TCPAddr); ok {
		s.o.Port = a.Port // clients come back to it
	}
	if s.o.CertFile == "" && !s.o.NoListen && !loopback(s.o.Listen) {
		s.log.Warn("the broker listens to other machines in plain: keys and events can be read on the way; set nats.tls_cert_file and nats.tls_key_file",
			slog.String("listen", s.o.Listen))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go s.supervise(running)
	return s, nil
}

func (s *Server) start(ctx context.Context) (*server.Server, error) {
	newest := newestBlock(s.o.Dir)
	certificate, err := s.o.serverTLS()
	if err != nil {
		return nil, err
	}
	if err := s.canListen(ctx); err != nil {
		return nil, err
	}
	door := newDoor(s)
	ns, err := server.NewServer(&server.Options{
		ServerName: "kansa", Host: s.o.Listen, Port: s.o.Port, DontListen: s.o.NoListen,
		JetStream: true, StoreDir: s.o.Dir, SyncAlways: true, SyncInterval: 2 * time.Minute,
		MaxPayload: maxPayload, NoSigs: true,
		// By itself it takes for its limit what is free at its start: after a start on a full disk, nothing, for good.
		JetStreamMaxStore: noLimit,
		JetStreamKey:      s.o.Key, JetStreamCipher: server.ChaCha,
		CustomClientAuthentication: door, TLS: certificate != nil, TLSConfig: certificate, TLSTimeout: tlsTimeout.Seconds(),
		AuthTimeout: authTimeout.Seconds(),
	})
	if err != nil {
		door.close()
		return nil, fmt.Errorf("start the embedded NATS server: %w", err)
	}
	door.ns = ns
	if before := s.door.Swap(door); before != nil {
		before.close()
	}
	fatal := make(chan string, 1)
	ns.SetLoggerV2(serverLog{s.log, s.broken, fatal}, false, false, false)
	ns.Start()
	for !ns.ReadyForConnections(100 * time.Millisecond) {
		if err := ctx.Err(); err != nil {
			door.shut()
			return nil, fmt.Errorf("wait for the embedded NATS server: %w", err)
		}
		select {
		case text := <-fatal:
			door.shut()
			return nil, fmt.Errorf("start the embedded NATS server: %s", text)
		default:
		}
		if !ns.Running() {
			return nil, errors.New("the embedded NATS server stopped as it started: see its log")
		}
	}
	if !ns.JetStreamEnabled() {
		door.shut()
		return nil, errors.New("the embedded NATS server started without its streams: see its log")
	}
	if err := allRecovered(ns, s.o.Dir); err != nil {
		door.shut()
		return nil, err
	}
	if n := newest.cutOff(); n > 0 {
		s.cutOff.Add(n)
		s.log.Error("the stream of events was cut off where its newest block is damaged: what came after is lost, unless nothing of it was acknowledged",
			slog.String("file", newest.path), slog.Int64("bytes", n))
	}
	return ns, nil
}

// canListen finds out beforehand what the server does not report: it would wait for ever.
func (s *Server) canListen(ctx context.Context) error {
	if s.o.NoListen || s.o.Port <= 0 {
		return nil
	}
	address := net.JoinHostPort(s.o.Listen, strconv.Itoa(s.o.Port))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("start the embedded NATS server: listen on %s: %w: stop what uses it, or set nats.port", address, err)
	}
	return l.Close()
}

// allRecovered holds what the server serves against what is on disk.
func allRecovered(ns *server.Server, dir string) error {
	onDisk, err := os.ReadDir(streamsDir(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the streams on disk: %w", err)
	}
	all, err := ns.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return fmt.Errorf("look at the streams that are served: %w", err)
	}
	served := map[string]bool{}
	for _, a := range all.AccountDetails {
		for i := range a.Streams {
			served[a.Streams[i].Name] = true
		}
	}
	for _, d := range onDisk {
		if _, err := os.Stat(filepath.Join(streamsDir(dir), d.Name(), server.JetStreamMetaFile)); err != nil {
			continue // it was never made whole, or is being removed
		}
		if !served[d.Name()] {
			return fmt.Errorf("%w: %s in %s: is encryption.streams the key it was encrypted with, or streams_before? Else bring it back from a backup", ErrNotRecovered, d.Name(), dir)
		}
	}
	return nil
}

// supervise starts the server again when it has said that it can't write. What it acknowledged before is on
// disk; what it did not is nobody's loss.
func (s *Server) supervise(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	pause, last := firstPause, time.Now()
	for {
		why := ""
		select {
		case <-ctx.Done():
			return
		case why = <-s.broken:
		case <-tick.C:
			if s.ns.JetStreamEnabled() {
				s.recovered()
				continue
			}
			why = "its streams are disabled"
		}
		s.fault.Store(&why)
		if time.Since(last) > soundFor {
			pause = firstPause
		}
		s.log.Error("the embedded NATS server can not write, starting it again", slog.String("reason", why), slog.Duration("after", pause))
		s.door.Load().shut()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, lastPause)
			select { // of the one that was shut down
			case <-s.broken:
			default:
			}
			ns, err := s.start(ctx)
			if err == nil {
				s.ns = ns
				break
			}
			s.log.Error("the embedded NATS server does not start", slog.Any("error", err), slog.Duration("again_after", pause))
		}
		last = time.Now()
		s.restarts.Add(1)
	}
}

// recovered takes a fault back when files can be written again: that the server has started does not say so.
func (s *Server) recovered() {
	if s.fault.Load() == nil || canWrite(s.o.Dir) != nil {
		return
	}
	s.fault.Store(nil)
	s.log.Info("the embedded NATS server can write again")
}

// canWrite tries what the server does: to write a piece of a file, and to sync it.
func canWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".can-write-")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// Err is not nil while the server can not write, and takes no events.
func (s *Server) Err() error {
	if why := s.fault.Load(); why != nil {
		return fmt.Errorf("the embedded NATS server can not write: %s", *why)
	}
	return nil
}

// URL is where clients connect. It never changes.
func (s *Server) URL() string { return s.url }

// Restarts counts how often the server had to be started again.
func (s *Server) Restarts() int64 { return s.restarts.Load() }

// Close stops the server and waits until it has.
func (s *Server) Close() {
	s.stop()
	<-s.done
	s.door.Load().shut()
}

// serverLog hands the server's log on; its information is debugging to us. A fault that ends all writing is
// told in no other way.
type serverLog struct {
	log    *slog.Logger
	broken chan<- string
	fatal  chan<- string // that the server cannot start
}

func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }

func (l serverLog) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(text)
	select {
	case l.fatal <- text:
	default: // there is one already
	}
}

func (l serverLog) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	switch {
	case strings.Contains(text, server.ErrAuthentication.Error()):
		l.log.Debug(text) // LogIn has seen it, and tells what is worth telling
		return
	case strings.Contains(text, " Violation - "): // what one who logged in may not do
		l.log.Warn("a client exceeded its permissions on the broker", slog.String("text", text)) // one message, so that repetitions are recognized
		return
	}
	l.log.Error(text)
	if strings.Contains(strings.ToLower(text), "critical write error") {
		select {
		case l.broken <- text:
		default: // it is told already
		}
	}
}
