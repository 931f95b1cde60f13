// Package mail sends the mails of Kansa: that an archive is ready, and where; that deliveries fail, and that they work again.
//
// It owns the way to one mail server and the words of the mail, as text and as HTML. It never sends
// a link or a password over a connection that is not encrypted and checked (loopback aside), never
// sends to more than one recipient at once, never loads anything remote into a mail, never retries,
// which is its caller's office ([Permanent] says when that is of no use), and never puts a link or a
// secret into an error or a log.
package mail

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/mail"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// Message is one mail to one person. At least Text is needed; HTML makes it the better alternative.
type Message struct {
	To      string
	Subject string
	Text    string
	HTML    string
	// ID makes the Message-ID, so that a mail that is sent again, because nobody knows whether it
	// arrived, is seen to be the same. Empty: a random one. Letters, digits, dots and dashes.
	ID string
}

// Sender sends mails, each over a connection of its own. It may be used by several goroutines.
type Sender struct {
	cfg Config
	log *slog.Logger
}

// New checks the configuration. It connects to nothing.
func New(cfg Config, log *slog.Logger) (*Sender, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := cfg.tlsConfig(); err != nil {
		return nil, err
	}
	return &Sender{cfg: cfg, log: log}, nil
}

// Send returns nil when the server has taken the mail on. An error means that it has not, or, if the
// connection was lost at the very end, that nobody knows: sending again with the same Message.ID is
// then right.
func (s *Sender) Send(ctx context.Context, m Message) error {
	msg, err := s.compose(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.timeout(), errTimeout)
	defer cancel()
	start := time.Now()
	var p progress
	err = s.session(ctx, &p, func(client *gomail.Client, session *smtp.Client) error {
		if err := client.SendWithSMTPClient(session, msg); err != nil && !msg.IsDelivered() {
			return err // an error after the server took the mail on is of no consequence
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrConfig) {
			return err
		}
		return s.classify(ctx, m.To, p, err)
	}
	s.log.InfoContext(ctx, "mail sent", "address", s.cfg.Address(), "message_id", msg.GetMessageID(), "duration", time.Since(start))
	return nil
}

// Check finds out whether the server lets this sender in and takes mails for these people, and sends none.
func (s *Sender) Check(ctx context.Context, to []string) error {
	from, err := mail.ParseAddress(s.cfg.From)
	if err != nil {
		return fmt.Errorf("%w: from: %w", ErrConfig, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.timeout(), errTimeout)
	defer cancel()
	var p progress
	whom := strings.Join(to, ", ")
	err = s.session(ctx, &p, func(_ *gomail.Client, session *smtp.Client) error {
		if err := session.Mail(from.Address); err != nil {
			return err
		}
		for _, address := range to {
			a, err := mail.ParseAddress(address)
			if err != nil {
				return fmt.Errorf("%w: to: %q: give one address", ErrMessage, address)
			}
			whom, p.recipient = address, true
			if err := session.Rcpt(a.Address); err != nil {
				return err
			}
		}
		return session.Reset()
	})
	if err == nil || errors.Is(err, ErrConfig) || errors.Is(err, ErrMessage) {
		return err
	}
	return s.classify(ctx, whom, p, err)
}

var errTimeout = errors.New("timeout")

// session makes the connection itself, because go-mail neither looks at the context once connected
// nor closes a connection on which the first words fail.
func (s *Sender) session(ctx context.Context, p *progress, do func(*gomail.Client, *smtp.Client) error) error {
	secure, err := s.cfg.tlsConfig()
	if err != nil {
		return err
	}
	password, err := s.cfg.password()
	if err != nil {
		return err
	}
	token, err := s.cfg.token()
	if err != nil {
		return err
	}
	secure.VerifyConnection = func(tls.ConnectionState) error { p.secured = true; return nil }
	unhook := func() bool { return true }
	var conn net.Conn
	defer func() {
		unhook()
		if conn != nil {
			_ = conn.Close() // after QUIT, or after a failure that is told already
		}
	}()
	attempt := ctx // the whole of it; go-mail's own context ends with the greeting
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		var dialer interface {
			DialContext(context.Context, string, string) (net.Conn, error)
		} = &net.Dialer{}
		if s.cfg.mode() == ImplicitTLS {
			dialer = &tls.Dialer{Config: secure}
		}
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		p.connected = true
		conn = c
		unhook = context.AfterFunc(attempt, func() { _ = c.Close() })
		return c, nil
	}
	options := []gomail.Option{
		gomail.WithPort(s.cfg.port()), gomail.WithTimeout(s.cfg.timeout()), gomail.WithTLSConfig(secure),
		gomail.WithDialContextFunc(dial), gomail.WithoutNoop(), gomail.WithHELO(s.cfg.helo()),
	}
	switch s.cfg.mode() {
	case StartTLS:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case ImplicitTLS:
		options = append(options, gomail.WithSSL())
	case NoTLS:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	client, err := gomail.NewClient(s.cfg.Host, options...)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	session, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return err
	}
	p.greeted = true
	if err := s.login(session, password, token); err != nil {
		return err
	}
	p.ready = true
	if err := do(client, session); err != nil {
		return err
	}
	_ = client.CloseWithSMTPClient(session)
	return nil
}

func (s *Sender) compose(m Message) (*gomail.Msg, error) {
	fail := func(format string, args ...any) (*gomail.Msg, error) {
		return nil, fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, args...))
	}
	to, err := mail.ParseAddress(m.To)
	if err != nil || strings.ContainsFunc(m.To, unicode.IsControl) {
		return fail("to: %q: give one address", m.To)
	}
	switch {
	case m.Subject == "" || !utf8.ValidString(m.Subject) || strings.ContainsFunc(m.Subject, unicode.IsControl):
		return fail("subject: %q: give one line of text", m.Subject)
	case m.Text == "" || !utf8.ValidString(m.Text) || !utf8.ValidString(m.HTML):
		return fail("text: it must not be empty, and be UTF-8")
	case strings.ContainsFunc(m.ID, notID) || len(m.ID) > 200:
		return fail("id: %q: use letters, digits, dots and dashes", m.ID)
	}
	// Both were checked by Validate; the parsed forms are what goes into headers.
	from, err := mail.ParseAddress(s.cfg.From)
	if err != nil {
		return nil, fmt.Errorf("%w: from: %w", ErrConfig, err)
	}
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(from)
	msg.ToMailAddress(to)
	if s.cfg.ReplyTo != "" {
		if err := msg.ReplyTo(s.cfg.ReplyTo); err != nil {
			return nil, fmt.Errorf("%w: reply_to: %w", ErrConfig, err)
		}
	}
	if m.ID == "" {
		m.ID = rand.Text()
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	msg.SetMessageIDWithValue(m.ID + "@" + domain)
	msg.SetDate()
	msg.Subject(m.Subject)
	// RFC 3834: no holiday notes in return, please.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader("X-Auto-Response-Suppress", "All")
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	if m.HTML != "" {
		msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	return msg, nil
}

func notID(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
