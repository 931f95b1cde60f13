// Package sftp delivers files to an SFTP server, whole or not at all.
//
// It owns one connection and what may go wrong on it: the host key, the login, the algorithms, a
// network that is cut, a server that falls silent, a disk that is full. A file appears under its name
// only when all its bytes are there, synced where the server can and of the right length. What ends
// before that leaves at most a hidden part file, which the next upload of that name removes.
//
// It never connects to a server whose key nobody has accepted, never replaces a file, never resumes
// (after concurrent writes a part may have holes), never retries, which is its caller's office
// ([Permanent] says when that is of no use), and never puts a secret into an error or a log.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Client is a session with a server. Its methods may be called by several goroutines and then wait
// for one another: a session has one window, which one upload fills.
type Client struct {
	cfg   Config
	where where
	log   *slog.Logger
	conn  *guardedConn
	ssh   *ssh.Client
	sftp  *sftp.Client
	turn  chan struct{} // holds one token; whoever has it uses the session

	accepted *pins
	hostKey  ssh.PublicKey // that the server showed last
	login    signIn
	passed   passed

	closeOnce sync.Once
	closeErr  error
	quit      chan struct{}
	owned     sync.WaitGroup // the keepalive
}

// Dial connects and logs in. ctx bounds it, and so does the connect timeout; the session lives on
// until Close.
func Dial(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	c, err := newClient(cfg, log)
	if err != nil {
		return nil, err
	}
	if err := c.dial(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// newClient checks what can be checked without a server.
func newClient(cfg Config, log *slog.Logger) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	have, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	accepted, err := parsePins(cfg.HostKeys)
	if err != nil {
		return nil, fmt.Errorf("%w: host_keys: %w", ErrConfig, err)
	}
	return &Client{
		cfg: cfg, log: log, where: where{cfg.Address(), cfg.User}, accepted: accepted, login: signIn{have: have},
		turn: make(chan struct{}, 1), quit: make(chan struct{}),
	}, nil
}

// passed says when a connection came how far.
type passed struct{ began, connected, keyShown, signedIn, ready time.Time }

func (c *Client) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.ConnectTimeout.or(DefaultConnectTimeout), errConnectTimeout)
	defer cancel()
	config := &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges: orDefault(c.cfg.KeyExchanges, defaultKeyExchanges),
			Ciphers:      orDefault(c.cfg.Ciphers, defaultCiphers),
			MACs:         orDefault(c.cfg.MACs, defaultMACs),
		},
		User:              c.cfg.User,
		Auth:              c.login.have.methods,
		AuthCallback:      c.login.follow,
		ClientVersion:     "SSH-2.0-kansa",
		HostKeyAlgorithms: orDefault(c.cfg.HostKeyAlgorithms, defaultHostKeys),
	}
	var refused error // the first host key that was, if the server may have another
	var shown ssh.PublicKey
	for {
		err := c.connect(ctx, config)
		if err == nil {
			break
		}
		var key *HostKeyError
		switch {
		case errors.As(err, &key) && len(key.Want) > 0 && !key.Revoked:
			if refused == nil {
				refused, shown = err, c.hostKey
			}
			tried := typesOf(key.Type)
			config.HostKeyAlgorithms = slices.DeleteFunc(config.HostKeyAlgorithms, func(name string) bool {
				return slices.Contains(tried, name)
			})
			if len(config.HostKeyAlgorithms) > 0 {
				continue
			}
			c.hostKey = shown
			return refused
		case refused != nil && errors.Is(err, ErrAlgorithms):
			c.hostKey = shown
			return refused // the server has no other key
		}
		return err
	}
	c.owned.Go(func() { c.keepAlive(c.cfg.Keepalive.or(DefaultKeepalive)) })
	c.log.DebugContext(ctx, "sftp connected", "address", c.where.address, "user", c.cfg.User)
	return nil
}

// connect makes one attempt. On failure nothing of it is left.
func (c *Client) connect(ctx context.Context, config *ssh.ClientConfig) (err error) {
	dial := c.cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c.conn, c.passed = nil, passed{began: time.Now()}
	raw, err := dial(ctx, "tcp", c.where.address)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return c.dialError(cause)
		}
		return c.where.network("connect", "", err)
	}
	c.passed.connected = time.Now()
	c.conn = &guardedConn{Conn: raw, idle: c.cfg.IdleTimeout.or(DefaultIdleTimeout)}
	// Nothing of the handshake knows of contexts: when ctx ends, so does the connection.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = c.dialError(context.Cause(ctx))
		}
		if err != nil {
			_ = raw.Close()
		}
	}()
	trusted := false
	attempt := *config
	attempt.HostKeyCallback = func(address string, remote net.Addr, key ssh.PublicKey) error {
		c.passed.keyShown, c.hostKey = time.Now(), key
		err := c.accepted.check(address, remote, key)
		trusted = err == nil
		return err
	}
	conn, channels, requests, err := ssh.NewClientConn(c.conn, c.where.address, &attempt)
	if err != nil {
		if ctx.Err() != nil {
			return c.dialError(context.Cause(ctx))
		}
		return c.where.handshakeError(c.conn, trusted, &c.login, err)
	}
	c.passed.signedIn = time.Now()
	c.ssh = ssh.NewClient(conn, channels, requests)
	options := []sftp.ClientOption{sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true)}
	if c.cfg.Concurrency > 0 {
		options = append(options, sftp.MaxConcurrentRequestsPerFile(c.cfg.Concurrency))
	}
	if c.sftp, err = sftp.NewClient(c.ssh, options...); err != nil {
		_ = c.ssh.Close()
		if ctx.Err() != nil {
			return c.dialError(context.Cause(ctx))
		}
		return c.noSFTP(err)
	}
	c.passed.ready = time.Now()
	return nil
}

// noSFTP tells of a server that lets a user in for nothing.
func (c *Client) noSFTP(err error) error {
	const action = "start SFTP"
	switch cause := c.conn.failure(); {
	case errors.Is(cause, io.EOF) || errors.Is(cause, syscall.ECONNRESET) || errors.Is(cause, syscall.EPIPE):
		return c.where.fail(ErrConnection, action, "", "see the server's log; the directory to which it confines the user may have the wrong owner",
			&reason{"the server let the user in and closed the connection", cause})
	case cause != nil:
		return c.where.network(action, "", cause)
	}
	return c.where.fail(ErrNoSFTP, action, "", "let the server give this user the sftp subsystem", &reason{"the server let the user in, but not to SFTP", err})
}

func (c *Client) dialError(cause error) error {
	if !errors.Is(cause, errConnectTimeout) {
		return c.where.fail(ErrCancelled, "connect", "", "", cause)
	}
	late := fmt.Errorf("not connected within %v", c.cfg.ConnectTimeout.or(DefaultConnectTimeout))
	if c.conn != nil {
		if err := c.where.explainSilence(&c.conn.heard, true, late); err != nil {
			return err
		}
	}
	return c.where.fail(ErrTimeout, "connect", "", "check the host, the port, the firewall and the server", late)
}

var errConnectTimeout = errors.New("connect timeout")

// keepAlive asks the server to say something, now and then. The answer does not matter, a refusal
// is one too; that there is none shows in the deadline of the connection.
func (c *Client) keepAlive(every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-c.quit:
			return
		case <-ticker.C:
			if _, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil); err != nil {
				return
			}
		}
	}
}

// Close ends the session and waits for all that belongs to it. It never takes longer than the
// time a cleanup may take, even if the server is gone.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		close(c.quit)
		broken := c.conn.failure() != nil
		c.conn.setLimit(time.Now().Add(cleanupTimeout))
		_ = c.sftp.Close() // closes the channel; the connection's own end is what matters
		err := c.ssh.Close()
		c.owned.Wait()
		if err != nil && !broken && !errors.Is(err, net.ErrClosed) {
			c.closeErr = fmt.Errorf("sftp: close the connection to %s: %w", c.where.address, err)
		}
	})
	return c.closeErr
}

// use takes the session for one piece of work, bounded by ctx: once that ends, what is under way has
// a short while left, for cleaning up, before the connection is cut.
func (c *Client) use(ctx context.Context, action string) (release func(), err error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, c.where.fail(ErrCancelled, action, "", "", context.Cause(ctx))
	}
	if ctx.Err() != nil {
		<-c.turn
		return nil, c.where.fail(ErrCancelled, action, "", "", context.Cause(ctx))
	}
	limited := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(limited)
		c.conn.setLimit(time.Now().Add(cleanupTimeout))
	})
	return func() {
		if !stop() {
			<-limited
			c.conn.setLimit(time.Time{})
		}
		<-c.turn
	}, nil
}
