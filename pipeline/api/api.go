// Package api is Kansa's HTTP server: downloads of archives, the health of the process, and what else the
// process has to serve at the same address.
//
// It owns routes and answers, and computes nothing itself.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema"
)

// Options of a server.
type Options struct {
	Listen string // host:port
	// Bucket, States and Links are of the downloads; there are none without a bucket.
	Bucket *blob.Bucket
	States exporter.States
	Links  exporter.Links
	// Record takes downloads, for the system's own trail. May be nil.
	Record func(ctx context.Context, e schema.Event)
	// Audit are the reading of events and the settings; nil serves neither.
	Audit *Audit
	// Limits of the API and the downloads; Routes have their own, or none.
	Limits Limits
	// Routes are served besides, by the pattern of a mux.
	Routes map[string]http.Handler
	// Drain is how long Close lets requests end. Default 3 s.
	Drain time.Duration
	// Ready answers whether the process works.
	Ready  http.Handler
	Logger *slog.Logger
}

// Server is a running HTTP server.
type Server struct {
	o      Options
	http   *http.Server
	listen net.Listener
	served chan error
}

// Start listens and serves until Close.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Drain == 0 {
		o.Drain = 3 * time.Second
	}
	if o.Record == nil {
		o.Record = func(context.Context, schema.Event) {}
	}
	o.Logger = request.Logs(o.Logger)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on api.listen %s: %w", o.Listen, err)
	}
	s := &Server{o: o, listen: l, served: make(chan error, 1)}
	mux := http.NewServeMux()
	bounds := newLimits(o.Limits, time.Now)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.Handle("GET /readyz", o.Ready)
	if o.Bucket != nil {
		(&downloads{o: o}).register(mux, bounds)
	}
	if o.Audit != nil {
		newAudit(mux, o.Audit, bounds)
	}
	for pattern, handler := range o.Routes {
		mux.Handle(pattern, handler)
	}
	s.http = &http.Server{
		Handler: request.Handler(mux), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	go func() { s.served <- s.http.Serve(l) }()
	return s, nil
}

// HasAudit tells that events are read and settings changed here.
func (s *Server) HasAudit() bool { return s.o.Audit != nil }

// URL is the server's address as seen from this machine.
func (s *Server) URL() string { return "http://" + s.listen.Addr().String() }

// Close takes no more requests, lets those at hand end for a few seconds, and then ends them.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.o.Drain)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve HTTP: %w", served))
	}
	return err
}
