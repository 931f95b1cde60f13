package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema"
)

// logins lets those who have a key use the embedded broker: publishers for their organization, and the operator's admins for
// all that the tools do. Each login, allowed or refused, is an event (requirement Q1).
type logins struct {
	// open is closed when the fields below are set, and who has a key can be known.
	open   chan struct{}
	ended  context.Context
	store  *access.Store
	record func(context.Context, schema.Event)
	log    *slog.Logger
	// fair knows which logins may not connect for a while. It is set when the limits are there.
	fair atomic.Pointer[fair]
	// anonymous lets programs on this machine publish without a key.
	anonymous bool

	refused *rate.Limiter // by address
	allowed *rate.Limiter // by key and address
}

// loginAgain is for how long the same key from the same address is no new login: applications connect again, and many times.
const loginAgain = time.Minute

func newLogins(perMinute int, anonymous bool, log *slog.Logger) *logins {
	return &logins{
		open: make(chan struct{}), log: log, anonymous: anonymous,
		refused: rate.New(perMinute, time.Minute, perMinute, time.Now), allowed: rate.New(1, loginAgain, 1, time.Now),
	}
}

// begin lets those in who wait at the door, until ended is done.
func (l *logins) begin(ended context.Context, store *access.Store, record func(context.Context, schema.Event)) {
	l.ended, l.store, l.record = ended, store, record
	close(l.open)
}

// LogIn is that of broker.ServerOptions.
func (l *logins) LogIn(ctx context.Context, secret, ip string) (login *broker.Login, err error) {
	defer func() {
		if fault := request.Caught(ctx, l.log, "login to the broker", recover()); fault != nil {
			login, err = nil, fault
		}
	}()
	select {
	case <-l.open:
	case <-ctx.Done():
		return nil, errors.New("the system is starting")
	}
	if err := l.ended.Err(); err != nil {
		return nil, fmt.Errorf("the system is stopping: %w", err)
	}
	if secret == "" && l.anonymous && net.ParseIP(ip).IsLoopback() {
		login := anonymous
		return &login, l.floods(login.Name)
	}
	who, err := l.store.ByKey(ctx, secret)
	switch {
	case errors.Is(err, access.ErrUnknown):
		why := "the key is not known, or has expired"
		if secret == "" {
			why = errAnonymous.Error()
		}
		return nil, l.refuse(who, ip, why)
	case err != nil:
		return nil, err
	}
	login = &broker.Login{Name: loginName(who.ID), Organization: who.Organization, Until: who.Until}
	switch {
	case who.Role == access.Publisher && who.Organization == "":
		login.Organization = broker.Everybody
	case who.Role == access.Publisher:
	case who.Role == access.Admin && who.Organization == "":
		login.Operator = true
	default:
		return nil, l.refuse(who, ip, "it takes the key of a publisher, or of an admin of all organizations, and "+who.ID+" is that of an "+string(who.Role))
	}
	if err := l.floods(login.Name); err != nil {
		return nil, err
	}
	if wait, _ := l.allowed.Take(who.ID + "\x00" + ip); wait == 0 {
		l.tell(who, ip, "signin.allowed", schema.Success, "NATS")
	}
	return login, nil
}

// floods refuses, for a while, a publisher that sent far more than its limit.
func (l *logins) floods(name string) error {
	f := l.fair.Load()
	if f == nil {
		return nil
	}
	if wait := f.shut(name); wait > 0 {
		return fmt.Errorf("%s published far more than its limit: connect again in %s", name, wait.Round(time.Millisecond))
	}
	return nil
}

// refuse tells the trail. Of those in a row that are too many for an address, only the first is told.
func (l *logins) refuse(who *access.Principal, ip, why string) error {
	wait, first := l.refused.Take(rate.Network(ip))
	switch {
	case wait == 0:
		l.tell(who, ip, "signin.refused", schema.Denied, "NATS: "+why)
	case first:
		l.tell(nil, ip, "request.limited", schema.Denied, "too many logins to NATS are refused: those that follow are not told")
	}
	return fmt.Errorf("%w: %s", broker.ErrNotLetIn, why)
}

func (l *logins) tell(who *access.Principal, ip, code string, outcome schema.Outcome, description string) {
	e := schema.Event{
		Trail: schema.Access, Event: code, Action: "signin", Outcome: outcome, Actor: schema.Actor{Type: "nobody", ID: "-"},
		Description: description, Context: schema.Context{IP: ip},
	}
	if who != nil {
		e.Organization, e.Actor = who.Organization, schema.Actor{Type: who.Kind, ID: who.ID}
	}
	l.record(l.ended, e)
}

// follow ends the connections of keys that are revoked, until ctx ends.
func (l *logins) follow(ctx context.Context, server *broker.Server) error {
	for ctx.Err() == nil {
		err := l.followOnce(ctx, server)
		if ctx.Err() == nil {
			l.log.Warn("following the keys again", slog.Any("error", err))
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

func (l *logins) followOnce(ctx context.Context, server *broker.Server) error {
	began := func() error {
		keys, err := l.store.Keys(ctx, "")
		if err != nil {
			return err
		}
		there := map[string]bool{}
		for i := range keys {
			there[keys[i].Name] = true
		}
		// Others have no key: programs without one, and connections that are logging in, of which the server does not know the name yet.
		return server.LogOut(func(name string) bool {
			key, ok := strings.CutPrefix(name, keyLogin)
			return ok && !there[key]
		})
	}
	return l.store.FollowKeys(ctx, began, func(revoked string) {
		if err := server.LogOut(func(name string) bool { return name == loginName(revoked) }); err != nil {
			l.log.Error("connections of a revoked key may be open still", slog.String("key", revoked), slog.Any("error", err))
		}
	})
}

const keyLogin = "key:"

// loginName is what the broker calls a key.
func loginName(key string) string { return keyLogin + key }
