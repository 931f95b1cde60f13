package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// The classes of failure. Every error of this package is one of them, by errors.Is.
var (
	ErrConfig         = errors.New("sftp: invalid configuration")
	ErrHostKeyUnknown = errors.New("sftp: unknown host key")
	ErrHostKeyChanged = errors.New("sftp: HOST KEY CHANGED")
	ErrAlgorithms     = errors.New("sftp: no algorithm in common")
	ErrAuth           = errors.New("sftp: login refused")
	ErrNotSSH         = errors.New("sftp: no SSH server")
	ErrNoSFTP         = errors.New("sftp: server offers no SFTP")
	ErrPathMissing    = errors.New("sftp: path missing")
	ErrPermission     = errors.New("sftp: permission denied")
	ErrNoSpace        = errors.New("sftp: disk full")
	ErrExists         = errors.New("sftp: target exists")
	ErrNaming         = errors.New("sftp: file cannot get its name")
	ErrSource         = errors.New("sftp: source failed")
	ErrConnection     = errors.New("sftp: connection failed")
	ErrTimeout        = errors.New("sftp: server does not answer")
	ErrServer         = errors.New("sftp: server reported a failure")
	ErrCancelled      = errors.New("sftp: cancelled")
)

var permanent = []error{
	ErrConfig, ErrHostKeyUnknown, ErrHostKeyChanged, ErrAlgorithms, ErrAuth, ErrNotSSH, ErrNoSFTP,
	ErrPathMissing, ErrPermission, ErrExists, ErrNaming,
}

// Permanent reports whether a quick retry is of no use: a person has to change something first, here
// or on the server. A full disk is not permanent, since servers are emptied by their own schedule.
func Permanent(err error) bool {
	return slices.ContainsFunc(permanent, func(class error) bool { return errors.Is(err, class) })
}

// Error is a failure with its place. Its text is one sentence for the person who has to act; it never
// holds a secret.
type Error struct {
	// Class is one of the Err… of this package.
	Class error
	// Address, User and Path say where; Path may be empty.
	Address, User, Path string
	// Action is what was tried, Remedy what to do about it.
	Action, Remedy string
	// Err is the cause, if there is one beneath.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%v: %s at %s@%s", e.Class, e.Action, e.User, e.Address)
	if e.Path != "" {
		s += fmt.Sprintf(" in %q", e.Path)
	}
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

// where makes errors for one server.
type where struct{ address, user string }

func (w where) fail(class error, action, path, remedy string, cause error) error {
	return &Error{Class: class, Address: w.address, User: w.user, Path: path, Action: action, Remedy: remedy, Err: cause}
}

// classify turns what pkg/sftp, x/crypto and the network say into a class. A cause that the
// connection noted goes first: the libraries above it report only that it is lost.
func (w where) classify(ctx context.Context, conn *guardedConn, action, path string, err error) error {
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	if ctx.Err() != nil {
		return w.fail(ErrCancelled, action, path, "", context.Cause(ctx))
	}
	if cause := conn.failure(); cause != nil {
		return w.network(action, path, cause)
	}
	var status *sftp.StatusError
	var request *refusedRequest
	switch {
	case errors.As(err, &request) && request.request == requestRename && !errors.Is(err, fs.ErrNotExist):
		class := ErrNaming
		if errors.As(err, &status) && !unsupported(err) {
			class = ErrServer // a plain failure, which may pass
		}
		return w.fail(class, action, path, "set sftp.naming=none, or have the server rename files", err)
	case errors.As(err, &request) && errors.Is(err, fs.ErrPermission):
		return w.fail(ErrPermission, action, path,
			fmt.Sprintf("let the user %s do that, or choose another sftp.naming if the server refuses this name: a test of the destination says which works", w.user), err)
	case errors.Is(err, fs.ErrNotExist):
		return w.fail(ErrPathMissing, action, path, "create the directory on the server, or correct the path", nil)
	case errors.Is(err, fs.ErrPermission):
		return w.fail(ErrPermission, action, path, fmt.Sprintf("let the user %s write there", w.user), nil)
	case errors.As(err, &status):
		return w.fail(ErrServer, action, path, "see the server's log", err)
	default:
		// What is left ends a session: EOF, a lost connection, a packet that makes no sense.
		return w.fail(ErrConnection, action, path, "try again", err)
	}
}

func (w where) network(action, path string, err error) error {
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return w.fail(ErrTimeout, action, path, "check the network, the firewall and the server", err)
	}
	remedy, cause := explainNetwork(w.address, err)
	return w.fail(ErrConnection, action, path, remedy, cause)
}

// handshakeError classifies what ended the way to a session. A refused login has no type of its own
// in x/crypto, but it has a place: after the host key was trusted, on a connection that works or was
// closed by a server that had enough.
func (w where) handshakeError(conn *guardedConn, trusted bool, login *signIn, err error) error {
	const action = "connect"
	var algorithms *ssh.AlgorithmNegotiationError
	var hostKey *HostKeyError
	var netErr net.Error
	failure := conn.failure()
	silent := w.explainSilence(&conn.heard, errors.As(failure, &netErr) && netErr.Timeout(), errors.Join(failure, err))
	switch {
	case errors.As(err, &hostKey):
		return w.fail(hostKey.class(), action, "", hostKey.remedy(), hostKey)
	case errors.As(err, &algorithms):
		remedy, cause := explainAlgorithms(algorithms)
		return w.fail(ErrAlgorithms, action, "", remedy, cause)
	case silent != nil:
		return silent
	case trusted && failure == nil:
		remedy, cause := login.explain(err)
		return w.fail(ErrAuth, "sign in", "", remedy, cause)
	case failure != nil:
		return w.network(action, "", failure)
	default:
		return w.network(action, "", err)
	}
}
