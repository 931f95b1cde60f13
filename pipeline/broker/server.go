package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// NoListen takes connections from this process only.
	NoListen bool
	Logger   *slog.Logger
}

// Server is a NATS server within this process.
type Server struct{ ns *server.Server }

// StartServer starts a server that syncs every write to disk before it acknowledges it, and returns
// when it takes connections.
func StartServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1"
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "kansa", Host: o.Listen, Port: o.Port, DontListen: o.NoListen,
		JetStream: true, StoreDir: o.Dir, SyncAlways: true, SyncInterval: 2 * time.Minute,
		MaxPayload: maxPayload, NoSigs: true, NoLog: o.Logger == nil,
	})
	if err != nil {
		return nil, fmt.Errorf("start the embedded NATS server: %w", err)
	}
	if o.Logger != nil {
		ns.SetLoggerV2(serverLog{o.Logger.With(slog.String("part", "nats-server"))}, false, false, false)
	}
	ns.Start()
	for !ns.ReadyForConnections(100 * time.Millisecond) {
		if err := ctx.Err(); err != nil {
			ns.Shutdown()
			return nil, fmt.Errorf("wait for the embedded NATS server: %w", err)
		}
		if !ns.Running() {
			return nil, errors.New("the embedded NATS server stopped as it started: see its log")
		}
	}
	return &Server{ns}, nil
}

// URL is where clients connect.
func (s *Server) URL() string { return s.ns.ClientURL() }

// Close stops the server and waits until it has.
func (s *Server) Close() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// serverLog hands the server's log on; its information is debugging to us.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l serverLog) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Fatalf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
