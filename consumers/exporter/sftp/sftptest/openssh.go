//go:build linux

package sftptest

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	sshd := findSSHD(t)
	account := testUser(t)
	// Not t.TempDir, through which only root can pass.
	base, err := os.MkdirTemp("", "kansa-sshd-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	s := &Server{
		Host: "127.0.0.1", User: account.name, Password: account.password,
		Dir: filepath.Join(base, "incoming"), uid: account.uid, gid: account.gid,
	}
	must(t, os.Chmod(base, 0o755))
	must(t, os.Mkdir(s.Dir, 0o755))
	must(t, os.Chown(s.Dir, s.uid, s.gid))

	hostKey := filepath.Join(base, "host_ed25519")
	s.HostKey, _ = writeKey(t, hostKey)
	run(t, "ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", filepath.Join(base, "host_rsa"))
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
	for attempt := 1; ; attempt++ {
		s.Port = freePort(t)
		log, err := start(t, sshd, path, s.Port)
		if err == nil {
			break
		}
		if attempt == 5 { // somebody took the port in between, five times
			t.Fatalf("sshd did not start: %v\n%s", err, log)
		}
	}
	s.Fingerprint = ssh.FingerprintSHA256(s.HostKey)
	s.KnownHosts = knownhosts.Line([]string{s.Addr()}, s.HostKey)
	return s
}

// start runs sshd in the foreground and returns when it listens.
func start(t testing.TB, sshd, config string, port int) (string, error) {
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
	stop := func() string {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		// A session whose client is gone ends by itself; one that hangs must not hang the test.
		must(t, r.SetReadDeadline(time.Now().Add(5*time.Second)))
		log := <-logged
		_ = r.Close()
		return log
	}
	select {
	case ok := <-ready:
		if !ok {
			return stop(), fmt.Errorf("it ended")
		}
	case <-time.After(20 * time.Second):
		return stop(), fmt.Errorf("it did not listen within 20s")
	}
	t.Cleanup(func() {
		if log := stop(); t.Failed() {
			t.Logf("sshd:\n%s", log)
		}
	})
	return "", nil
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
