package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"slices"

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
	ready     bool // greeted, secured and logged in
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
	case !p.ready && p.secured && s.cfg.Username != "" && !errors.As(err, &netErr) && !isEOF(err):
		e.Class, e.Remedy = ErrAuth, "check the username and the password"
	case (p.recipient || send != nil && send.Reason == gomail.ErrSMTPRcptTo) && e.Code >= 500:
		e.Class, e.Remedy = ErrRecipient, "check the address"
	case e.Code >= 500:
		e.Class, e.Remedy = ErrRefused, "see what the server says"
	default:
		e.Class, e.Remedy = ErrConnection, "try again"
	}
	return e
}

func isTLS(err error) bool {
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	return errors.As(err, &verification) || errors.As(err, &alert) || errors.As(err, &header)
}
