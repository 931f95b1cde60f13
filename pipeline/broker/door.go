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
	names   sync.Map // of those who were let in
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
	ip := addressOf(c.RemoteAddress())
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
		of := subjectsOf(l.Organization)
		u.Permissions = &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{of.events, of.question}, Deny: []string{schema.SubjectEvents + "." + schema.SystemOrganization + ".>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{nats.InboxPrefix + ">", of.notice}},
		}
	}
	d.names.Store(l.Name, true)
	c.RegisterUser(u)
	return nil
}

// subjects are what the publishers of an organization may use.
type subjects struct {
	events   string // where they publish
	relay    string // where the relay receives what they published
	question string // for the organization's switches
	notice   string // that a switch was turned
}

func subjectsOf(organization string) subjects {
	return subjects{
		events:   schema.SubjectEvents + "." + organization + ".>",
		relay:    schema.SubjectRelay + "." + organization + ".>",
		question: schema.JetStreamAPI("", "") + "DIRECT.GET." + schema.RecordingStream + "." + schema.RecordingKeys + "." + organization,
		notice:   schema.SubjectRecording + "." + organization,
	}
}

// account is the account of an organization's publishers. Their messages reach the relay, never the stream itself, with the
// name of the login added by the server. deploy/nats/accounts.conf has the same for external servers.
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
	of := subjectsOf(organization)
	for _, service := range []struct{ from, to string }{{of.events, of.relay}, {of.question, of.question}} {
		if err := errors.Join(ours.AddServiceExport(service.to, to), a.AddServiceImport(ours, service.from, service.to)); err != nil {
			return nil, err
		}
	}
	if err := a.SetServiceImportSharing(ours, of.relay, true); err != nil {
		return nil, err
	}
	if err := errors.Join(ours.AddStreamExport(of.notice, to), a.AddStreamImport(ours, of.notice, "")); err != nil {
		return nil, err
	}
	d.of[organization] = a
	return a, nil
}

// LogOut ends the connections of those who logged in and are not to be here any more. Connections that are logging in, of which some are
// Kansa's own, are left alone: until the server knows who they are, it lists them under a name of its own, such as [REDACTED].
func (s *Server) LogOut(ended func(name string) bool) error {
	d := s.door.Load()
	d.logOuts.Add(1) // before the list is made: see Check
	all, err := d.ns.Connz(&server.ConnzOptions{Username: true, Limit: math.MaxInt32})
	if err != nil {
		return fmt.Errorf("list the connections: %w", err)
	}
	for _, c := range all.Conns {
		if _, loggedIn := d.names.Load(c.AuthorizedUser); loggedIn && ended(c.AuthorizedUser) {
			_ = d.ns.DisconnectClientByID(c.Cid) // it may be gone by itself
		}
	}
	return nil
}

// Traffic is what a connection has sent so far.
type Traffic struct {
	Name            string // of its login
	Bytes, Messages int64
}

// Traffic returns what each connection has sent, by its id. Our own are left out.
func (s *Server) Traffic() (map[uint64]Traffic, error) {
	all, err := s.door.Load().ns.Connz(&server.ConnzOptions{Username: true, Limit: math.MaxInt32})
	if err != nil {
		return nil, fmt.Errorf("list the connections: %w", err)
	}
	of := make(map[uint64]Traffic, len(all.Conns))
	for _, c := range all.Conns {
		if c.AuthorizedUser != "" && c.AuthorizedUser != ourName {
			of[c.Cid] = Traffic{c.AuthorizedUser, c.InBytes, c.InMsgs}
		}
	}
	return of, nil
}

// ourName is what the server knows us by.
const ourName = "this process"

// loopback says whether only this machine reaches a host.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// addressOf is the address of a connection; it is empty for one within this process.
func addressOf(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return ""
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
