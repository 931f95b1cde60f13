package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshd is OpenSSH's server on loopback. Whoever runs the benchmark may log in, by a key made for it.
type sshd struct {
	cmd         *exec.Cmd
	logged      chan struct{} // closed when its log has ended
	log         io.Closer
	port        int
	user        string
	keyFile     string // the user's
	keyPEM      string
	fingerprint string // the server's
	incoming    string // a directory, the same for server and client
}

func startSSHD(ctx context.Context, dir string) (*sshd, error) {
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd" // often not in PATH
		if _, err := os.Stat(program); err != nil {
			return nil, fmt.Errorf("find OpenSSH's server: %w", err)
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("find who runs this: %w", err)
	}
	s := &sshd{user: me.Username, keyFile: filepath.Join(dir, "user_key"), incoming: filepath.Join(dir, "incoming")}
	if err := os.MkdirAll(s.incoming, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	if os.Getuid() == 0 { // of privilege separation, which the system's own start script would make
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return nil, fmt.Errorf("make a directory: %w", err)
		}
	}
	hostKey, _, err := newKey(filepath.Join(dir, "host_key"))
	if err != nil {
		return nil, err
	}
	s.fingerprint = ssh.FingerprintSHA256(hostKey)
	userKey, keyPEM, err := newKey(s.keyFile)
	if err != nil {
		return nil, err
	}
	s.keyPEM = keyPEM
	authorized := filepath.Join(dir, "authorized_keys")
	if err := os.WriteFile(authorized, ssh.MarshalAuthorizedKey(userKey), 0o600); err != nil {
		return nil, fmt.Errorf("set up sshd: %w", err)
	}
	config := filepath.Join(dir, "sshd_config")
	lines := []string{
		"HostKey " + filepath.Join(dir, "host_key"), "AuthorizedKeysFile " + authorized, "PermitRootLogin prohibit-password",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no", "StrictModes no", "PidFile none",
		"Subsystem sftp internal-sftp", "",
	}
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		return nil, fmt.Errorf("set up sshd: %w", err)
	}
	for range 5 { // somebody may take a free port before sshd does
		if err = s.run(ctx, program, config); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *sshd) run(ctx context.Context, program, config string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "-D", "-e", "-f", config, "-p", strconv.Itoa(s.port), "-o", "ListenAddress=127.0.0.1")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start sshd: %w", err)
	}
	s.cmd.Stderr, s.log, s.logged = w, r, make(chan struct{})
	err = s.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return fmt.Errorf("start sshd: %w", err)
	}
	ready := make(chan bool, 1)
	go func() {
		defer close(s.logged)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "Server listening on") {
				select {
				case ready <- true:
				default:
				}
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if ok {
			return nil
		}
		err = errors.New("start sshd: it ended")
	case <-time.After(20 * time.Second):
		err = errors.New("start sshd: it did not listen within 20s")
	case <-ctx.Done():
		err = fmt.Errorf("start sshd: %w", ctx.Err())
	}
	return errors.Join(err, s.close())
}

func (s *sshd) close() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // ends by the signal
	select {
	case <-s.logged:
	case <-time.After(5 * time.Second): // a session of its that hangs must not hang us
	}
	err := s.log.Close()
	<-s.logged
	return err
}

func newKey(path string) (ssh.PublicKey, string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "kansabench")
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	text := pem.EncodeToMemory(block)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	return key, string(text), nil
}
