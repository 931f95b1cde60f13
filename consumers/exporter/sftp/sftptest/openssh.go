//go:build linux

package sftptest

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Server is an OpenSSH server that runs until the test ends.
type Server struct {
	// Host and Port are on loopback.
	Host string
	Port int
	// HostKey is the server's Ed25519 key: Fingerprint of it, and its line of known_hosts. It has an
	// RSA key as well.
	HostKey     ssh.PublicKey
	Fingerprint string
	KnownHosts  string
	// User may log in with Password or with KeyPEM.
	User, Password, KeyPEM string
	// Dir belongs to the user. It is the same path on the server as here.
	Dir string

	uid, gid int
}

// Addr is host:port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Option changes how sshd is set up.
type Option func(*setup)

type setup struct{ extra []string }

// WithConfig adds lines to sshd_config, which go first and so win.
func WithConfig(lines ...string) Option { return func(s *setup) { s.extra = lines } }

// StartOpenSSH starts sshd and waits until it listens. A password needs a user of the system, so this
// needs root; without it, or without sshd, the test is skipped, or fails where REQUIRE_ALL is set.
func StartOpenSSH(t testing.TB, options ...Option) *Server {
	t.Helper()
	var set setup
	for _, o := range options {
		o(&set)
	}
	s, stop := open(t, set)
	t.Cleanup(func() {
		if log := stop(); t.Failed() {
			t.Logf("sshd:\n%s", log)
		}
	})
	return s
}

var shared struct {
	sync.Mutex
	*Server
	base  string
	users int
	stop  func() string
}

// Shared is one sshd for all tests of a process, which takes weak algorithms too, with a directory for
// this test alone. Whoever uses it calls Stop after the last test.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.Server == nil {
		shared.Server, shared.stop = open(t, setup{[]string{
			"MaxStartups 1000", "LoginGraceTime 60",
			"KexAlgorithms +diffie-hellman-group14-sha1,diffie-hellman-group-exchange-sha1,diffie-hellman-group1-sha1",
			"Ciphers +aes128-cbc,3des-cbc", "MACs +hmac-sha1-96", "HostKeyAlgorithms +ssh-rsa",
		}})
		shared.base = filepath.Dir(shared.Dir)
	}
	shared.users++
	s := *shared.Server
	own := filepath.Join(shared.base, strconv.Itoa(shared.users))
	s.Dir = filepath.Join(own, "incoming")
	must(t, os.Mkdir(own, 0o755))
	must(t, os.Mkdir(s.Dir, 0o755))
	must(t, os.Chown(s.Dir, s.uid, s.gid))
	return &s
}

// Stop ends the shared sshd, if there is one.
func Stop() {
	shared.Lock()
	defer shared.Unlock()
	if shared.Server != nil {
		shared.stop()
		shared.Server = nil
	}
}

// rsaKey is made once in a process: it takes long.
var rsaKey = sync.OnceValues(func() ([]byte, error) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "kansa test")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
})

// open starts an sshd that runs until stop, which gives its log.
func open(t testing.TB, set setup) (s *Server, stop func() string) {
	t.Helper()
	sshd := findSSHD(t)
	account := testUser(t)
	// Not t.TempDir, through which only root can pass.
	base, err := os.MkdirTemp("", "kansa-sshd-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	s = &Server{
		Host: "127.0.0.1", User: account.name, Password: account.password,
		Dir: filepath.Join(base, "incoming"), uid: account.uid, gid: account.gid,
	}
	must(t, os.Chmod(base, 0o755))
	must(t, os.Mkdir(s.Dir, 0o755))
	must(t, os.Chown(s.Dir, s.uid, s.gid))

	hostKey := filepath.Join(base, "host_ed25519")
	s.HostKey, _ = writeKey(t, hostKey)
	rsaPEM, err := rsaKey()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(base, "host_rsa"), rsaPEM, 0o600))
	userKey, userPEM := writeKey(t, filepath.Join(base, "user_ed25519"))
	s.KeyPEM = string(userPEM)
	authorized := filepath.Join(base, "authorized_keys")
	must(t, os.WriteFile(authorized, ssh.MarshalAuthorizedKey(userKey), 0o644))
	// The directory of privilege separation, which the system's own start script would make.
	must(t, os.MkdirAll("/run/sshd", 0o755))

	config := append([]string{}, set.extra...)
	config = append(config,
		"HostKey "+hostKey,
		"HostKey "+filepath.Join(base, "host_rsa"),
		"AuthorizedKeysFile "+authorized,
		"AllowUsers "+s.User,
		"PasswordAuthentication yes",
		"KbdInteractiveAuthentication no",
		"UsePAM no",
		"StrictModes no",
		"PidFile none",
		"LogLevel VERBOSE",
		"Subsystem sftp internal-sftp",
		"ForceCommand internal-sftp",
	)
	path := filepath.Join(base, "sshd_config")
	must(t, os.WriteFile(path, []byte(strings.Join(config, "\n")+"\n"), 0o600))
	var end func() string
	for attempt := 1; ; attempt++ {
		s.Port = freePort(t)
		log, err := "", error(nil)
		if end, log, err = start(t, sshd, path, s.Port); err == nil {
			break
		}
		if attempt == 5 { // somebody took the port in between, five times
			_ = os.RemoveAll(base)
			t.Fatalf("sshd did not start: %v\n%s", err, log)
		}
	}
	s.Fingerprint = ssh.FingerprintSHA256(s.HostKey)
	s.KnownHosts = knownhosts.Line([]string{s.Addr()}, s.HostKey)
	return s, func() string {
		log := end()
		_ = os.RemoveAll(base)
		return log
	}
}

// start runs sshd in the foreground and returns when it listens; stop ends it and gives its log.
func start(t testing.TB, sshd, config string, port int) (stop func() string, log string, err error) {
	t.Helper()
	cmd := exec.Command(sshd, "-D", "-e", "-f", config, "-p", strconv.Itoa(port), "-o", "ListenAddress=127.0.0.1")
	// It must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	must(t, err)
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	ready := make(chan bool, 1)
	logged := make(chan string, 1)
	go func() {
		// Reads until sshd and its children are gone, lest they block on a full pipe.
		var log strings.Builder
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			fmt.Fprintln(&log, lines.Text())
			if strings.Contains(lines.Text(), "Server listening on") {
				ready <- true
			}
		}
		close(ready)
		_, _ = io.Copy(io.Discard, r)
		logged <- log.String()
	}()
	stop = func() string {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		// A session whose client is gone ends by itself; one that hangs must not hang the test.
		_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
		log := <-logged
		_ = r.Close()
		return log
	}
	select {
	case ok := <-ready:
		if !ok {
			return nil, stop(), fmt.Errorf("it ended")
		}
	case <-time.After(20 * time.Second):
		return nil, stop(), fmt.Errorf("it did not listen within 20s")
	}
	return stop, "", nil
}

func findSSHD(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd" // often not in PATH
		_, err = os.Stat(path)
	}
	switch {
	case err != nil:
		require(t, "OpenSSH's sshd is not installed")
	case os.Getuid() != 0:
		require(t, "logging in by password needs root")
	}
	return path
}

// require skips a test, unless everything is required.
func require(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// freePort gives a port that was free a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func writeKey(t testing.TB, path string) (ssh.PublicKey, []byte) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(private, "kansa test")
	must(t, err)
	text := pem.EncodeToMemory(block)
	must(t, os.WriteFile(path, text, 0o600))
	key, err := ssh.NewPublicKey(public)
	must(t, err)
	return key, text
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
