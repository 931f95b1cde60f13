package broker

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/schema"
)

// ErrNotLetIn is what a [ServerOptions.LogIn] answers about somebody who is not to be let in. Any other error means that it is
// not known: whoever it is may try again.
var ErrNotLetIn = errors.New("not let in")

// Login is somebody who is let in.
type Login struct {
	Name string // that the server shows, and [Server.LogOut] is asked about
	// Organization is the one whose events it may publish, and whose switches it may read, and nothing else. Everybody is every
	// organization.
	Organization string
	Operator     bool      // it may do all that we may
	Until        time.Time // when its connections end; zero is never
}

// Everybody stands for all organizations.
const Everybody = "*"

// lookFor bounds the question who somebody is.
const lookFor = 5 * time.Second

// door decides who comes in, and where: publishers into an account of their organization, in which there is nothing but what
// they may do. An account, not only permissions, since answers travel on subjects, too: in one account, whoever
// may read _INBOX.> could read the batches that the writers fetch, of every organization. It belongs to one start of the server.
type door struct {
	s  *Server
	ns *server.Server
	// ctx ends with the server: whoever is being looked up meanwhile is let go.
	ctx   context.Context
	close context.CancelFunc

	logOuts atomic.Int64
	mu      sync.Mutex
	of      map[string]*server.Account
}

func newDoor(s *Server) *door {
	d := &door{s: s, of: map[string]*server.Account{}}
	d.ctx, d.close = context.WithCancel(context.Background())
	return d
}

// shut stops the server and waits until it has.
func (d *door) shut() {
	d.close()
	d.ns.Shutdown()
	d.ns.WaitForShutdown()
}

// Check is nats-server's question whether a connection may be.
func (d *door) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	o := c.GetOpts()
	secret := o.Token
	if secret == "" {
		secret = o.Password
	}
	if subtle.ConstantTimeCompare([]byte(secret), []byte(d.s.token)) == 1 {
		c.RegisterUser(&server.User{Username: ourName})
		return true
	}
	ip, local := from(c.RemoteAddress())
	if secret == "" && o.Username == "" && local && !d.s.o.mustLogIn() {
		return true
	}
	ctx, cancel := context.WithTimeout(d.ctx, lookFor)
	defer cancel()
	for {
		seen := d.logOuts.Load()
		login, err := d.lookUp(ctx, secret, ip)
		if err == nil {
			err = d.letIn(c, login)
		}
		switch {
		case errors.Is(err, ErrNotLetIn):
			return false
		case err != nil:
			d.s.log.Warn("somebody was sent away from the broker, to try again: who it is could not be looked up", slog.String("ip", ip), slog.Any("error", err))
			// Without the word that his login is wrong, after which clients give up.
			_ = d.ns.DisconnectClientByID(c.GetID()) // it may be gone by itself
			return false
		case d.logOuts.Load() == seen:
			return true
		}
		// Somebody was logged out before this one was on the list.
	}
}

func (d *door) lookUp(ctx context.Context, secret, ip string) (*Login, error) {
	if d.s.o.LogIn == nil {
		return nil, ErrNotLetIn
	}
	return d.s.o.LogIn(ctx, secret, ip)
}

func (d *door) letIn(c server.ClientAuthentication, l *Login) error {
	u := &server.User{Username: l.Name, ConnectionDeadline: l.Until}
	if !l.Operator {
		a, err := d.account(l.Organization)
		if err != nil {
			return fmt.Errorf("make an account of organization %s: %w", l.Organization, err)
		}
		u.Account = a
		events, asked, told := subjects(l.Organization)
		u.Permissions = &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{events, asked}},
			Subscribe: &server.SubjectPermission{Allow: []string{nats.InboxPrefix + ">", told}},
		}
	}
	c.RegisterUser(u)
	return nil
}

// subjects are those of an organization's publishers: its events, the question for its switches, and word that they were turned.
func subjects(organization string) (events, asked, told string) {
	return schema.SubjectEvents + "." + organization + ".>",
		schema.JetStreamAPI("", "") + "DIRECT.GET." + schema.RecordingStream + "." + schema.RecordingKeys + "." + organization,
		schema.SubjectRecording + "." + organization
}

// account is the one of an organization's publishers. deploy/nats/accounts.conf has the same for servers of one's own.
func (d *door) account(organization string) (*server.Account, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.of[organization]; a != nil {
		return a, nil
	}
	name := "organization-" + organization
	if organization == Everybody {
		name = "organizations"
	}
	a, _ := d.ns.LookupOrRegisterAccount(name)
	ours, to := d.ns.GlobalAccount(), []*server.Account{a}
	events, asked, told := subjects(organization)
	for _, subject := range []string{events, asked} {
		if err := errors.Join(ours.AddServiceExport(subject, to), a.AddServiceImport(ours, subject, "")); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(ours.AddStreamExport(told, to), a.AddStreamImport(ours, told, "")); err != nil {
		return nil, err
	}
	d.of[organization] = a
	return a, nil
}

// LogOut ends the connections of those who logged in and are not to be here any more.
func (s *Server) LogOut(ended func(name string) bool) error {
	d := s.door.Load()
	d.logOuts.Add(1) // before the list is made: see Check
	all, err := d.ns.Connz(&server.ConnzOptions{Username: true, Limit: math.MaxInt32})
	if err != nil {
		return fmt.Errorf("list the connections: %w", err)
	}
	for _, c := range all.Conns {
		if c.AuthorizedUser != "" && c.AuthorizedUser != ourName && ended(c.AuthorizedUser) {
			_ = d.ns.DisconnectClientByID(c.Cid) // it may be gone by itself
		}
	}
	return nil
}

// ourName is what the server knows us by.
const ourName = "this process"

// mustLogIn says that those on this machine need a login, too: where a server listens to others, somebody else's connection may
// come by a proxy of this machine.
func (o *ServerOptions) mustLogIn() bool {
	return !o.NoListen && (o.RequireLogin || !loopback(o.Listen))
}

// loopback says whether only this machine reaches a host.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// from is where a connection comes from.
func from(a net.Addr) (ip string, local bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok { // it is within this process
		return "", true
	}
	return tcp.IP.String(), tcp.IP.IsLoopback()
}

// newToken is what we log in with ourselves; nobody else has it.
func newToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// serverTLS is the server's certificate, read again at each connection. There is none without files.
func (o *ServerOptions) serverTLS() (*tls.Config, error) {
	if o.CertFile == "" && o.KeyFile == "" {
		return nil, nil
	}
	read := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read nats.tls_cert_file and nats.tls_key_file: %w", err)
		}
		return &pair, nil
	}
	if _, err := read(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return read() },
	}, nil
}

// options are those of our own connection.
func (s *Server) options() []nats.Option {
	o := []nats.Option{nats.Token(s.token)}
	if s.o.CertFile == "" {
		return o
	}
	// It is within this process: what counts is that it is the server's own certificate, not whose name is in it, or until when.
	return append(o, nats.Secure(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyPeerCertificate does
		VerifyPeerCertificate: func(shown [][]byte, _ [][]*x509.Certificate) error {
			pair, err := tls.LoadX509KeyPair(s.o.CertFile, s.o.KeyFile)
			if err != nil {
				return fmt.Errorf("read nats.tls_cert_file and nats.tls_key_file: %w", err)
			}
			if len(shown) == 0 || subtle.ConstantTimeCompare(shown[0], pair.Certificate[0]) != 1 {
				return errors.New("the embedded NATS server shows a certificate that is not nats.tls_cert_file")
			}
			return nil
		},
	}))
}
