// Package sshd is a small SFTP server for the demo and for tests: a real one, in this process, on
// loopback, with one user and one directory.
//
// It owns its listener, its connections and a host key that is made anew and kept in memory. Clients
// are confined to the directory by os.Root, symbolic links included. It never listens beyond
// loopback, never runs a command or a shell, never forwards a port, and is no server for production.
package sshd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// handshakeTimeout bounds a client that connects and says nothing.
const handshakeTimeout = 30 * time.Second

// Options say whom the server serves and what.
type Options struct {
	// Dir is the directory that clients see as /. It must exist.
	Dir string
	// User may log in by Password, by AuthorizedKey (a line of authorized_keys), or by either.
	User, Password string
	AuthorizedKey  string
	// Port is on 127.0.0.1; 0 takes any.
	Port int
	// Bare offers no extensions, as old and commercial servers do: no posix-rename, no statvfs.
	Bare bool
	// Windows shows the directory as servers on Windows do: its folders are drives (C:), a sign-in
	// leads to /C:/Users/USER, and names that Windows does not have are refused.
	Windows bool
	// Code is asked for after the password, as a question of its own.
	Code string
	// Wrap may change how requests are answered, as servers do that have rules of their own.
	Wrap func(sftp.Handlers) sftp.Handlers
	// Log is for connections that go wrong; nil discards.
	Log *slog.Logger
}

// Server is running until Close, or until the context of Start ends.
type Server struct {
	log      *slog.Logger
	root     *os.Root
	config   *ssh.ServerConfig
	hostKey  ssh.PublicKey
	listener net.Listener
	bare     bool
	wrap     func(sftp.Handlers) sftp.Handlers
	windows  string // the directory to which a sign-in leads; empty: no Windows
	stop     func() bool
	owned    sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // nil once closed
	closed chan struct{}
	err    error
}

// Start listens and serves. When it returns, clients can connect.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.User == "" || o.Password == "" && o.AuthorizedKey == "" {
		return nil, errors.New("sshd: a user with a password or a key is required")
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("sshd: make a host key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("sshd: use the host key: %w", err)
	}
	s := &Server{
		log: o.Log, hostKey: signer.PublicKey(), bare: o.Bare, wrap: o.Wrap,
		conns: map[net.Conn]struct{}{}, closed: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.config, err = serverConfig(o); err != nil {
		return nil, err
	}
	s.config.AddHostKey(signer)
	if s.root, err = os.OpenRoot(o.Dir); err != nil {
		return nil, fmt.Errorf("sshd: open the directory: %w", err)
	}
	if o.Windows {
		s.windows = "/C:/Users/" + o.User
		if err := s.root.MkdirAll(s.windows[1:], 0o755); err != nil {
			_ = s.root.Close()
			return nil, fmt.Errorf("sshd: make the user's directory: %w", err)
		}
	}
	var lc net.ListenConfig
	s.listener, err = lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", o.Port))
	if err != nil {
		_ = s.root.Close()
		return nil, fmt.Errorf("sshd: listen: %w", err)
	}
	s.owned.Add(1)
	go s.accept()
	s.stop = context.AfterFunc(ctx, func() { _ = s.shut() })
	return s, nil
}

func serverConfig(o Options) (*ssh.ServerConfig, error) {
	supported := ssh.SupportedAlgorithms()
	config := &ssh.ServerConfig{
		Config:        ssh.Config{KeyExchanges: supported.KeyExchanges, Ciphers: supported.Ciphers, MACs: supported.MACs},
		ServerVersion: "SSH-2.0-kansa-demo",
	}
	refused := errors.New("refused")
	if o.Code != "" {
		config.KeyboardInteractiveCallback = func(meta ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			for _, c := range [][2]string{{"Password: ", o.Password}, {"Verification code: ", o.Code}} {
				answers, err := ask("", "", []string{c[0]}, []bool{false})
				if err != nil || meta.User() != o.User || len(answers) != 1 || subtle.ConstantTimeCompare([]byte(answers[0]), []byte(c[1])) != 1 {
					return nil, errors.Join(refused, err)
				}
			}
			return nil, nil
		}
	} else if o.Password != "" {
		config.PasswordCallback = func(meta ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			user := subtle.ConstantTimeCompare([]byte(meta.User()), []byte(o.User))
			if user&subtle.ConstantTimeCompare(password, []byte(o.Password)) != 1 {
				return nil, refused
			}
			return nil, nil
		}
	}
	if o.AuthorizedKey != "" {
		authorized, _, _, _, err := ssh.ParseAuthorizedKey([]byte(o.AuthorizedKey))
		if err != nil {
			return nil, fmt.Errorf("sshd: parse the authorized key: %w", err)
		}
		config.PublicKeyCallback = func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() != o.User || subtle.ConstantTimeCompare(key.Marshal(), authorized.Marshal()) != 1 {
				return nil, refused
			}
			return nil, nil
		}
	}
	return config, nil
}

// Addr is host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// HostKeyFingerprint is what a client pins: SHA256:….
func (s *Server) HostKeyFingerprint() string { return ssh.FingerprintSHA256(s.hostKey) }

// KnownHosts is the server's line of known_hosts.
func (s *Server) KnownHosts() string { return knownhosts.Line([]string{s.Addr()}, s.hostKey) }

// Close ends every connection and waits until nothing of the server runs.
func (s *Server) Close() error {
	s.stop()
	err := s.shut()
	s.owned.Wait()
	return err
}

// shut may run twice, by Close and by the context; only the first does something, and both wait for
// it under the lock.
func (s *Server) shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return s.err
	}
	close(s.closed)
	s.err = s.listener.Close()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.conns = nil
	if err := s.root.Close(); s.err == nil {
		s.err = err
	}
	return s.err
}

func (s *Server) accept() {
	defer s.owned.Done()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			select {
			case <-s.closed:
			default:
				s.log.Error("sshd stopped accepting", "error", err)
			}
			return
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.conns[conn] = struct{}{}
		s.owned.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.owned.Done()
			s.serve(conn)
		}()
	}
}

func (s *Server) serve(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	session, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		s.log.Debug("sshd handshake failed", "peer", conn.RemoteAddr().String(), "error", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	var inner sync.WaitGroup
	defer inner.Wait()
	defer session.Close()
	inner.Go(func() { ssh.DiscardRequests(requests) }) // answers keepalives with a refusal
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		inner.Go(func() { s.session(channel, requests, &inner) })
	}
}

// session waits for the one request it grants, and serves SFTP until the client hangs up.
func (s *Server) session(channel ssh.Channel, requests <-chan *ssh.Request, inner *sync.WaitGroup) {
	defer channel.Close()
	for request := range requests {
		// The payload is a string: four bytes of length, then the name.
		granted := request.Type == "subsystem" && len(request.Payload) > 4 && string(request.Payload[4:]) == "sftp"
		if request.WantReply {
			_ = request.Reply(granted, nil)
		}
		if !granted {
			continue
		}
		inner.Go(func() { ssh.DiscardRequests(requests) })
		var rwc io.ReadWriteCloser = channel
		if s.bare {
			rwc = &withoutExtensions{Channel: channel}
		}
		f := &files{root: s.root}
		handlers := sftp.Handlers{FileGet: f, FilePut: f, FileCmd: f, FileList: f}
		var options []sftp.RequestServerOption
		if s.windows != "" {
			w := windows{f}
			handlers = sftp.Handlers{FileGet: w, FilePut: w, FileCmd: w, FileList: w}
			options = append(options, sftp.WithStartDirectory(s.windows))
		}
		if s.wrap != nil {
			handlers = s.wrap(handlers)
		}
		server := sftp.NewRequestServer(rwc, handlers, options...)
		if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
			s.log.Debug("sshd session ended", "error", err)
		}
		_, _ = channel.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
		return
	}
}
