// Package smtpd is a small mail server for the demo and for tests: a real one, in this process, on
// loopback, that keeps what it gets.
//
// It owns its listener, its connections and a certificate that is made anew and kept in memory. Each
// mail becomes an .eml file. It never listens beyond loopback, never relays, and is no server for
// production.
package smtpd

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

const (
	maxMessage  = 32 << 20
	idleTimeout = time.Minute
)

// Options say where mails go and how the server behaves.
type Options struct {
	// Dir gets a file for each mail. It must exist.
	Dir string
	// Username and Password must be given to send, if Username is set.
	Username, Password string
	// Token is an OAuth access token that must be given, with Username, in place of a password.
	Token string
	// RefuseName, if not nil, may refuse the name by which a client introduced itself. Like other servers, this one says
	// so when it hears of a recipient.
	RefuseName func(name string) error
	// Port is on 127.0.0.1; 0 takes any.
	Port int
	// NoTLS leaves STARTTLS out; ImplicitTLS encrypts from the first byte.
	NoTLS, ImplicitTLS bool
	// Refuse, if not nil, may refuse a recipient, with a *smtp.SMTPError for instance.
	Refuse func(recipient string) error
	// Log is for connections that go wrong; nil discards.
	Log *slog.Logger
}

// Server is running until Close, or until the context of Start ends.
type Server struct {
	o        Options
	log      *slog.Logger
	smtp     *smtp.Server
	listener *trackedListener
	pem      []byte
	stop     func() bool
	owned    sync.WaitGroup

	once sync.Once
	err  error

	mu    sync.Mutex
	mails []*Mail
	news  chan struct{} // closed and replaced when a mail comes
}

// Start listens and serves. When it returns, clients can connect.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.NoTLS && o.ImplicitTLS {
		return nil, errors.New("smtpd: choose NoTLS or ImplicitTLS")
	}
	info, err := os.Stat(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("smtpd: look at the directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("smtpd: %s is not a directory", o.Dir)
	}
	certificate, pem, err := selfSigned()
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, log: o.Log, pem: pem, news: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.smtp = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &session{server: s, conn: c, trusted: o.Username == ""}, nil
	}))
	s.smtp.Domain = "localhost"
	s.smtp.MaxMessageBytes = maxMessage
	s.smtp.MaxRecipients = 50
	s.smtp.ReadTimeout, s.smtp.WriteTimeout = idleTimeout, idleTimeout
	s.smtp.EnableSMTPUTF8 = true
	s.smtp.ErrorLog = logger{s.log}
	secure := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	if !o.NoTLS {
		s.smtp.TLSConfig = secure
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", o.Port))
	if err != nil {
		return nil, fmt.Errorf("smtpd: listen: %w", err)
	}
	s.listener = &trackedListener{Listener: l, conns: map[net.Conn]struct{}{}}
	var serve net.Listener = s.listener
	if o.ImplicitTLS {
		serve = tls.NewListener(s.listener, secure)
	}
	s.owned.Go(func() {
		if err := s.smtp.Serve(serve); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Error("smtpd stopped accepting", "error", err)
		}
	})
	s.stop = context.AfterFunc(ctx, s.shut)
	return s, nil
}

// Addr is host:port. Port alone is what a configuration wants.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Port is the one of Addr.
func (s *Server) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// CertificatePEM is for a client's ca_file. It is valid for localhost, 127.0.0.1 and ::1.
func (s *Server) CertificatePEM() []byte { return append([]byte(nil), s.pem...) }

// Close ends every connection and waits until nothing of the server runs.
func (s *Server) Close() error {
	s.stop()
	s.shut()
	s.owned.Wait()
	// Of go-smtp's two ways to stop, only this one waits for its goroutines. It has no connection left
	// to wait for, and nothing is accepted any more.
	return errors.Join(s.err, ignoreClosed(s.smtp.Shutdown(context.Background())))
}

func (s *Server) shut() {
	s.once.Do(func() {
		s.err = s.listener.Close()
		s.listener.closeAll()
	})
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, smtp.ErrServerClosed) {
		return nil
	}
	return err
}

// Mails are all that came so far, in order.
func (s *Server) Mails() []*Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Mail(nil), s.mails...)
}

// Wait returns when n mails have come since the start, or ctx ends.
func (s *Server) Wait(ctx context.Context, n int) ([]*Mail, error) {
	for {
		s.mu.Lock()
		mails, news := s.mails, s.news
		s.mu.Unlock()
		if len(mails) >= n {
			return append([]*Mail(nil), mails...), nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, fmt.Errorf("smtpd: wait for %d mails, %d came: %w", n, len(mails), context.Cause(ctx))
		}
	}
}

func (s *Server) keep(from string, to []string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := Parse(data)
	if err != nil {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: err.Error()}
	}
	m.EnvelopeFrom, m.EnvelopeTo = from, to
	m.Path = filepath.Join(s.o.Dir, fmt.Sprintf("%04d.eml", len(s.mails)+1))
	if err := os.WriteFile(m.Path, data, 0o600); err != nil {
		s.log.Error("smtpd could not keep a mail", "error", err)
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "not stored"}
	}
	s.mails = append(s.mails, m)
	close(s.news)
	s.news = make(chan struct{})
	return nil
}

type session struct {
	server  *Server
	conn    *smtp.Conn
	trusted bool
	from    string
	to      []string
}

func (s *session) AuthMechanisms() []string {
	if s.server.o.Username == "" {
		return nil
	}
	if s.server.o.Token != "" {
		return []string{"XOAUTH2"}
	}
	return []string{sasl.Plain}
}

func (s *session) Auth(string) (sasl.Server, error) {
	if s.server.o.Token != "" {
		return bearer{s}, nil
	}
	return sasl.NewPlainServer(func(_, username, password string) error {
		ok := subtle.ConstantTimeCompare([]byte(username), []byte(s.server.o.Username)) &
			subtle.ConstantTimeCompare([]byte(password), []byte(s.server.o.Password))
		if s.server.o.Username == "" || ok != 1 {
			return smtp.ErrAuthFailed
		}
		s.trusted = true
		return nil
	}), nil
}

// bearer checks what a client sends by XOAUTH2.
type bearer struct{ session *session }

func (b bearer) Next(response []byte) (challenge []byte, done bool, err error) {
	o := &b.session.server.o
	want := fmt.Sprintf("user=%s\x01auth=Bearer %s\x01\x01", o.Username, o.Token)
	if subtle.ConstantTimeCompare(response, []byte(want)) != 1 {
		return nil, false, smtp.ErrAuthFailed
	}
	b.session.trusted = true
	return nil, true, nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if !s.trusted {
		return smtp.ErrAuthRequired
	}
	s.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if s.server.o.RefuseName != nil {
		if err := s.server.o.RefuseName(s.conn.Hostname()); err != nil {
			return err
		}
	}
	if s.server.o.Refuse != nil {
		if err := s.server.o.Refuse(to); err != nil {
			return err
		}
	}
	s.to = append(s.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return s.server.keep(s.from, s.to, data)
}

func (s *session) Reset()        { s.from, s.to = "", nil }
func (s *session) Logout() error { return nil }

// logger takes what go-smtp has to say about connections.
type logger struct{ log *slog.Logger }

func (l logger) Printf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l logger) Println(v ...any)               { l.log.Debug(fmt.Sprint(v...)) }
