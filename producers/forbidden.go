package producers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// forbiddenPublish finds the subject in the server's words.
var forbiddenPublish = regexp.MustCompile(`(?i)publish to "([^"]+)"`)

// violations are the permission violations of a connection. The server reports one to the connection and not to the
// message, which gets no answer: without them a forbidden message waits for an acknowledgement until its time is over.
type violations struct {
	mu      sync.Mutex
	waiting map[string]map[*context.CancelCauseFunc]struct{} // by subject
}

// watched has the connections whose error handler passes violations on. A handler cannot be removed again, so that a
// connection keeps its own until it is closed.
var watched struct {
	mu sync.Mutex
	of map[*nats.Conn]*violations
}

// violationsOf watches a connection. Its own error handler is called as before.
func violationsOf(js jetstream.JetStream) *violations {
	if js == nil { // of settings that are only checked
		return &violations{}
	}
	nc := js.Conn()
	watched.mu.Lock()
	defer watched.mu.Unlock()
	for old := range watched.of {
		if old.IsClosed() {
			delete(watched.of, old)
		}
	}
	if v := watched.of[nc]; v != nil {
		return v
	}
	if watched.of == nil {
		watched.of = map[*nats.Conn]*violations{}
	}
	v, before := &violations{}, nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		v.note(nc, err)
		if before != nil {
			before(nc, sub, err)
		}
	})
	watched.of[nc] = v
	return v
}

// note ends the attempts to publish on the subject of a violation.
func (v *violations) note(nc *nats.Conn, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	found := forbiddenPublish.FindStringSubmatch(err.Error())
	if found == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for end := range v.waiting[found[1]] {
		(*end)(&forbidden{subject: found[1], login: loginOf(nc)})
	}
}

// wait ends the context with an error that answers to nats.ErrPermissionViolation, if the server forbids to publish on a
// subject before done is called.
func (v *violations) wait(ctx context.Context, subject string) (_ context.Context, done func()) {
	ctx, end := context.WithCancelCause(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiting == nil {
		v.waiting = map[string]map[*context.CancelCauseFunc]struct{}{}
	}
	if v.waiting[subject] == nil {
		v.waiting[subject] = map[*context.CancelCauseFunc]struct{}{}
	}
	v.waiting[subject][&end] = struct{}{}
	return ctx, func() {
		v.mu.Lock()
		delete(v.waiting[subject], &end)
		if len(v.waiting[subject]) == 0 {
			delete(v.waiting, subject)
		}
		v.mu.Unlock()
		end(nil)
	}
}

// forbidden is a subject on which a login may not publish.
type forbidden struct{ subject, login string }

func (f *forbidden) Error() string {
	return fmt.Sprintf("NATS forbids %s to publish on %s: log in as a publisher of that organization, or permit it there (accounts.conf)", f.login, f.subject)
}

func (f *forbidden) Unwrap() error { return nats.ErrPermissionViolation }

// loginOf names who a connection logged in as, without a secret.
func loginOf(nc *nats.Conn) string {
	if nc.Opts.User != "" {
		return "user " + nc.Opts.User
	}
	for _, text := range append([]string{nc.ConnectedUrl()}, nc.Opts.Servers...) {
		if u, err := url.Parse(text); err == nil && u.User != nil {
			if _, password := u.User.Password(); password { // alone, it is a token
				return "user " + u.User.Username()
			}
		}
	}
	if nc.Opts.Nkey != "" {
		return "NKey " + nc.Opts.Nkey
	}
	return "the login of this connection"
}
