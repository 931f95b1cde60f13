package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"slices"
	"strings"

	gomail "github.com/wneessen/go-mail"
)

// The classes of failure. Every error of this package is one of them, by errors.Is.
var (
	ErrConfig     = errors.New("mail: invalid configuration")
	ErrMessage    = errors.New("mail: invalid message")
	ErrRecipient  = errors.New("mail: recipient refused")
	ErrRefused    = errors.New("mail: refused by the server")
	ErrTemporary  = errors.New("mail: refused for now")
	ErrConnection = errors.New("mail: connection failed")
	ErrTimeout    = errors.New("mail: server does not answer")
	ErrTLS        = errors.New("mail: no secure connection")
	ErrAuth       = errors.New("mail: login refused")
	ErrCancelled  = errors.New("mail: cancelled")
)

var permanent = []error{ErrConfig, ErrMessage, ErrRecipient, ErrRefused, ErrTLS, ErrAuth}

// Permanent reports whether a quick retry is of no use: a person has to change something first.
func Permanent(err error) bool {
	return slices.ContainsFunc(permanent, func(class error) bool { return errors.Is(err, class) })
}

// Error is a failure with its place. Its text is one sentence for the person who has to act; it never
// holds a secret, a link included.
type Error struct {
	// Class is one of the Err… of this package.
	Class error
	// Address is the server's host:port, To the recipient.
	Address, To string
	// Code is the server's reply, 550 for instance, or 0.
	Code int
	// Remedy is what to do about it.
	Remedy string
	Err    error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%v: send to %s by %s", e.Class, e.To, e.Address)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Err}
}

// progress is how far an attempt came; go-mail's errors alone do not tell.
type progress struct {
	connected bool // TCP
	secured   bool // TLS, with a certificate that is trusted
	greeted   bool // and the server took the name by which Kansa introduced itself
	ready     bool // and logged in
	recipient bool // in a check: the server was told of one
}

func (s *Sender) classify(ctx context.Context, to string, p progress, err error) error {
	e := &Error{Address: s.cfg.Address(), To: to, Err: err}
	var reply *textproto.Error
	var send *gomail.SendError
	if errors.As(err, &reply) {
		e.Code = reply.Code
	}
	if errors.As(err, &send) {
		e.Code = send.ErrorCode()
	}
	var netErr net.Error
	var mechanism *mechanismError
	switch {
	case errors.Is(context.Cause(ctx), errTimeout):
		e.Class, e.Remedy = ErrTimeout, "check the host, the port, the firewall and the server"
		e.Err = fmt.Errorf("not done within %v", s.cfg.timeout())
	case ctx.Err() != nil:
		e.Class, e.Err = ErrCancelled, context.Cause(ctx)
	case errors.As(err, &netErr) && netErr.Timeout():
		e.Class, e.Remedy = ErrTimeout, "check the host, the port, the firewall and the server"
	case !p.connected:
		e.Class, e.Remedy = ErrConnection, "check the host and the port"
		if isTLS(err) { // with implicit TLS, the handshake is part of connecting
			e.Class, e.Remedy = ErrTLS, "check the port and the server's certificate, or give its authority in ca_file"
		}
	case isTLS(err):
		e.Class, e.Remedy = ErrTLS, "check the server's certificate, or give its authority in ca_file"
	case e.Code >= 400 && e.Code < 500:
		e.Class, e.Remedy = ErrTemporary, "try again later"
	case !p.ready && s.cfg.mode() != NoTLS && !p.secured && e.Code == 0 && !errors.As(err, &netErr) && !isEOF(err):
		e.Class, e.Remedy = ErrTLS, `the server does not offer STARTTLS: choose its TLS port with tls "tls", or another server`
	case errors.As(err, &mechanism):
		e.Class, e.Remedy = ErrAuth, mechanism.remedy
	case p.greeted && !p.ready && !errors.As(err, &netErr) && !isEOF(err):
		e.Class, e.Remedy = ErrAuth, s.loginRemedy(err)
	case e.Code >= 500:
		recipient := p.recipient || send != nil && send.Reason == gomail.ErrSMTPRcptTo
		e.Remedy, e.Class = s.refusal(recipient, err)
	default:
		e.Class, e.Remedy = ErrConnection, "try again"
	}
	return e
}

// says reports whether an answer of the server has one of some words.
func says(err error, words ...string) bool {
	text := strings.ToLower(err.Error())
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// loginRemedy is what to do about a login that the server refused, by its answer.
func (s *Sender) loginRemedy(err error) string {
	switch {
	case s.cfg.Token != "" || s.cfg.TokenFile != "":
		return "check the username, and that the token is for it and has not expired"
	case says(err, "application-specific", "app password"):
		return "give a password that the provider makes for applications, or a token in token_file"
	case says(err, "5.7.139", "basic authentication", "oauth"):
		return "this server does not take passwords: give an OAuth access token in token_file"
	default:
		return "check the username and the password"
	}
}

// refusal is what a final refusal concerns, and what to do about it, by the server's answer: servers give most of their
// reasons at the recipient, even those that concern the sender or the host.
func (s *Sender) refusal(recipient bool, err error) (remedy string, class error) {
	switch {
	case says(err, "helo", "ehlo", "fully-qualified hostname", "fully qualified hostname"):
		return fmt.Sprintf("set mail.helo to a name of this machine that the server accepts (it was %s)", s.cfg.helo()), ErrRefused
	case says(err, "authentication required", "authenticate first", "must issue a starttls", "not logged in"):
		return "give a username and a password, or see which tls the server wants", ErrRefused
	case says(err, "relay"):
		return "have the server relay mails of this machine, or give a username and a password", ErrRefused
	case says(err, "sender address", "sender rejected", "from address", "5.1.7", "5.1.8"):
		return fmt.Sprintf("set mail.from to an address that the server accepts (it was %s)", s.cfg.From), ErrRefused
	case says(err, "block", "spam", "reputation", "blacklist", "denylist"):
		return "ask the administrator of that server to accept mails of this machine", ErrRefused
	case says(err, "5.2.2", "quota", "mailbox full", "mailbox is full"):
		return "the mailbox is full: its owner has to make room", ErrRecipient
	case recipient:
		return "check the address", ErrRecipient
	default:
		return "see what the server says", ErrRefused
	}
}

func isTLS(err error) bool {
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	return errors.As(err, &verification) || errors.As(err, &alert) || errors.As(err, &header)
}
