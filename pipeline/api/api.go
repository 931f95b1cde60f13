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
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema"
)

// Options of a server.
type Options struct {
	Listen string // host:port
	// CertFile and KeyFile are the server's certificate (PEM), read again when they change; it speaks plain HTTP without.
	CertFile, KeyFile string
	// Proxies are those whose word on the client's address is believed.
	Proxies request.Proxies
	// WriteTimeout is how long a client may take to read 64 KiB of an answer. Default 30 s.
	WriteTimeout time.Duration
	// PublicURL is the address that browsers use, if it is another one.
	PublicURL string
	// OwnRules are paths of Routes that decide by themselves which bodies and pages they take.
	OwnRules []string
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
	// Ready answers whether the process works, and Details why not; Metrics are Prometheus'. Public serves them to everybody: without it,
	// only an auditor or admin of all organizations sees more than whether the process is ready.
	Ready, Details, Metrics http.Handler
	Public                  bool
	// Watch knows who may see that.
	Watch  *access.Watch
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
	if o.WriteTimeout == 0 {
		o.WriteTimeout = 30 * time.Second
	}
	o.Logger = request.Logs(o.Logger)
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		// One connection a request: that is what closes a response that is not read.
		Protocols: new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	serve := server.Serve
	if o.CertFile != "" {
		c, err := newCertificate(o.CertFile, o.KeyFile, o.Logger)
		if err != nil {
			return nil, err
		}
		server.TLSConfig = c.config()
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.Listen, err)
	}
	s := &Server{o: o, listen: l, served: make(chan error, 1), http: server}
	server.Handler = s.handler()
	go func() { s.served <- serve(l) }()
	return s, nil
}

// handler is everything that is served, behind what holds for all of it.
func (s *Server) handler() http.Handler {
	o := s.o
	mux := http.NewServeMux()
	bounds := newLimits(o.Limits, time.Now)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	if o.Bucket != nil {
		(&downloads{o: o, slots: bounds.downloads}).register(mux, bounds)
	}
	if o.Audit != nil {
		newAudit(mux, o.Audit, bounds)
	}
	s.insights(mux)
	for pattern, handler := range o.Routes {
		mux.Handle(pattern, handler)
	}
	return request.Handler(guarded(ownPages(mux, o.PublicURL, o.OwnRules...), o.WriteTimeout, newRefusals(time.Now), o.Logger), o.Proxies)
}

// HasAudit tells that events are read and settings changed here.
func (s *Server) HasAudit() bool { return s.o.Audit != nil }

// URL is the server's address as seen from this machine.
func (s *Server) URL() string {
	if s.o.CertFile != "" {
		return "https://" + s.listen.Addr().String()
	}
	return "http://" + s.listen.Addr().String()
}

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
