package sshd_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	psftp "github.com/pkg/sftp"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o sshd.Options) *sshd.Server {
	t.Helper()
	o.User, o.Password = "demo", "secret"
	s, err := sshd.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func raw(t *testing.T, s *sshd.Server) *psftp.Client {
	t.Helper()
	conn, err := ssh.Dial("tcp", s.Addr(), &ssh.ClientConfig{
		User: "demo", Auth: []ssh.AuthMethod{ssh.Password("secret")},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if ssh.FingerprintSHA256(key) != s.HostKeyFingerprint() {
				return errors.New("another key")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c, err := psftp.NewClient(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Requirement I3: servers with extensions, without, and on Windows. A plain rename fails if its target exists.
func TestOurClientDelivers(t *testing.T) {
	for name, o := range map[string]sshd.Options{"with extensions": {}, "bare": {Bare: true}, "bare Windows": {Bare: true, Windows: true}} {
		t.Run(name, func(t *testing.T) {
			o.Dir = t.TempDir()
			incoming := filepath.Join(o.Dir, "C:", "incoming")
			if err := os.MkdirAll(incoming, 0o755); err != nil {
				t.Fatal(err)
			}
			s := start(t, o)
			_, port, _ := net.SplitHostPort(s.Addr())
			cfg := sftp.Config{
				Host: "127.0.0.1", User: "demo", Password: "secret", HostKeys: []string{s.KnownHosts()}, Path: "/C:/incoming/",
				Verify: sftp.VerifySHA256, ChecksumFile: true, Receipt: true,
			}
			cfg.Port, _ = strconv.Atoi(port)
			c, err := sftp.Dial(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			report := sftp.Probe(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if !report.OK() || report.PosixRename == o.Bare || report.Fsync || (report.FreeBytes == nil) != o.Bare || report.Path != "/C:/incoming" {
				t.Errorf("%+v", report)
			}
			data := bytes.Repeat([]byte("audit"), 1_000_000)
			for _, existed := range []bool{false, true} {
				result, err := c.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
				if err != nil || result.Existed != existed || result.Synced || !result.ReadBack || result.HostKey != s.HostKeyFingerprint() ||
					result.Path != "/C:/incoming/a.zip" || result.Checksum != "/C:/incoming/a.zip.sha256" {
					t.Fatalf("%+v, %v", result, err)
				}
			}
			data[0] = 'A'
			if _, err := c.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil); !errors.Is(err, sftp.ErrExists) {
				t.Errorf("got %v", err)
			}
			data[0] = 'a'
			got, err := os.ReadFile(filepath.Join(incoming, "a.zip"))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if entries, err := os.ReadDir(incoming); err != nil || len(entries) != 2 {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

// Requirement I3: what is written wrongly about a path on Windows is told as it would be right.
// checkName is the name of the file by which a path is tried.
var checkName = regexp.MustCompile(`check\.[0-9a-f]+\.part`)

func TestWindowsPaths(t *testing.T) {
	s := start(t, sshd.Options{Dir: t.TempDir(), Bare: true, Windows: true})
	_, port, _ := net.SplitHostPort(s.Addr())
	cfg := sftp.Config{Host: "127.0.0.1", User: "demo", Password: "secret", HostKeys: []string{s.HostKeyFingerprint()}}
	cfg.Port, _ = strconv.Atoi(port)
	at := " at demo@" + s.Addr()
	for path, want := range map[string]string{
		"":                   "",
		"/C:/Users/demo":     "",
		`C:\Users\demo`:      `sftp: invalid configuration: path: "C:\Users\demo": SFTP has slashes, on Windows too: write /C:/Users/demo`,
		`\\share\in`:         `sftp: invalid configuration: path: "\\share\in": SFTP has slashes, on Windows too: write //share/in`,
		"C:/Users/demo":      `sftp: invalid configuration: path: "C:/Users/demo": SFTP has a slash before the drive: write /C:/Users/demo`,
		"/Users/demo":        "sftp: path missing: check the path" + at + ` in "/Users/demo": create the directory on the server, or correct the path`,
		"in":                 "sftp: path missing: check the path" + at + ` in "in": without a slash in front it is "/C:/Users/demo/in": create it there, or begin the path with a slash`,
		"/C:/Users/demo/a?b": "sftp: server reported a failure: check the path" + at + ` in "/C:/Users/demo/a?b": the server refused to create "/C:/Users/demo/a?b/.kansa-check.HEX.part": sftp: "failure" (SSH_FX_FAILURE): see the server's log`,
	} {
		cfg.Path = path
		r := sftp.Probe(t.Context(), cfg, slog.New(slog.DiscardHandler))
		got := ""
		if !r.OK() {
			got = checkName.ReplaceAllString(r.Error.Error(), "check.HEX.part")
		}
		if got != want {
			t.Errorf("%q: it says\n%s\nand should\n%s", path, got, want)
		}
		if want == "" && r.Path != "/C:/Users/demo" {
			t.Errorf("%q is %s", path, r.Path)
		}
	}
	c := raw(t, s)
	for _, name := range []string{"a", "b"} {
		f, err := c.Create("/C:/Users/demo/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if err := c.Rename("/C:/Users/demo/a", "/C:/Users/demo/b"); err == nil {
		t.Error("a rename replaced its target")
	}
}

func TestClientsAreConfined(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "door")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("y"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := raw(t, start(t, sshd.Options{Dir: dir}))
	for _, path := range []string{"door/secret", "/door/secret", "../secret", outside, "/../../.." + outside} {
		if f, err := c.Open(path); err == nil {
			_ = f.Close()
			t.Errorf("%s was opened", path)
		}
		if _, err := c.Stat(path); err == nil {
			t.Errorf("%s was seen", path)
		}
		if f, err := c.OpenFile(path, os.O_WRONLY|os.O_TRUNC); err == nil {
			_ = f.Close()
			t.Errorf("%s was opened for writing", path)
		}
		if err := c.Remove(path); err == nil {
			t.Errorf("%s was removed", path)
		}
	}
	if err := c.Symlink(outside, "link"); err == nil {
		t.Error("a symbolic link was made")
	}
	if err := c.PosixRename("in", "door/in"); err == nil {
		t.Error("a file was moved out")
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestRenames(t *testing.T) {
	dir := t.TempDir()
	c := raw(t, start(t, sshd.Options{Dir: dir}))
	for name, text := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Rename("a", "b"); err == nil {
		t.Error("a plain rename replaced its target")
	}
	if err := c.PosixRename("a", "b"); err != nil {
		t.Error(err)
	}
	if err := c.Rename("c", "d"); err != nil {
		t.Error(err)
	}
	if err := c.Mkdir("e"); err != nil {
		t.Error(err)
	}
	if err := c.Rename("e", "f"); err != nil {
		t.Error(err)
	}
	infos, err := c.ReadDir("/")
	if err != nil || len(infos) != 3 {
		t.Fatalf("%v, %v", infos, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "b")); err != nil || string(data) != "1" {
		t.Errorf("%q, %v", data, err)
	}
	if err := c.Remove("gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestOnlySFTPForTheOneUser(t *testing.T) {
	s := start(t, sshd.Options{Dir: t.TempDir()})
	config := &ssh.ClientConfig{User: "demo", Auth: []ssh.AuthMethod{ssh.Password("wrong")}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}
	if c, err := ssh.Dial("tcp", s.Addr(), config); err == nil {
		_ = c.Close()
		t.Error("a wrong password was accepted")
	}
	config.Auth = []ssh.AuthMethod{ssh.Password("secret")}
	c, err := ssh.Dial("tcp", s.Addr(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	session, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := session.Start("id"); err == nil {
		t.Error("a command was started")
	}
	if conn, err := c.Dial("tcp", s.Addr()); err == nil {
		_ = conn.Close()
		t.Error("a port was forwarded")
	}
}

func TestCloseEndsWhatIsOpen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := sshd.Start(ctx, sshd.Options{Dir: t.TempDir(), User: "demo", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	c := raw(t, s)
	cancel()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Getwd(); err == nil {
		t.Error("the session still works")
	}
}
