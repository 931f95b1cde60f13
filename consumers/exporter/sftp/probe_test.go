//go:build linux

package sftp_test

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

var discard = slog.New(slog.DiscardHandler)

func contains(list []string, s string) bool { return slices.Contains(list, s) }

func stateOf(r *sftp.Report, step string) sftp.State {
	for _, s := range r.Steps {
		if s.Name == step {
			return s.State
		}
	}
	return ""
}

// Requirements I4, I5, I13: a test tells, step by step, what the server offers, what was chosen, its key, the path, the
// room and the rename, and leaves nothing.
func TestProbe(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	cfg := config(s)
	cfg.Receipt = true
	r := sftp.Probe(t.Context(), cfg, discard)
	if !r.OK() {
		t.Fatal(r.Error)
	}
	names := make([]string, len(r.Steps))
	for i, step := range r.Steps {
		names[i] = step.Name
		if !step.OK || step.Found == "" && step.Name != "read back" || step.Took < 0 {
			t.Errorf("%+v", step)
		}
	}
	if got := strings.Join(names, " "); got != "settings name TCP SSH algorithms host key sign-in SFTP path space write read back rename remove" {
		t.Errorf("steps are %s", got)
	}
	if r.ServerVersion == "" || r.Fingerprint != s.Fingerprint || r.KnownHosts != s.KnownHosts || !r.HostKeyAccepted || r.Path != s.Dir ||
		r.FreeBytes == nil || !r.PosixRename || !r.Fsync || !contains(r.SignIn, "password") || !contains(r.SignIn, "publickey") ||
		!contains(r.Offers.KeyExchanges, "diffie-hellman-group14-sha1") || !contains(r.Offers.Ciphers, "aes128-cbc") ||
		!contains(r.Offers.MACs, "hmac-sha1") || !contains(r.Offers.HostKeyAlgorithms, "ssh-ed25519") || len(r.Legacy) != 0 {
		t.Errorf("%+v", r)
	}
	holds(t, s.Dir, nil)
	text, err := json.Marshal(r)
	if err != nil || strings.Contains(string(text), s.Password) {
		t.Errorf("%s, %v", text, err)
	}
	// Little room is a warning, and no failure.
	cfg.Path = s.SmallDisk(t, 1<<20)
	if r := sftp.Probe(t.Context(), cfg, discard); !r.OK() || stateOf(r, "space") != sftp.StepWarning {
		t.Errorf("%+v", r.Steps)
	}
}

// says serves every connection one text, and keeps it open.
func says(t *testing.T, text string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if strings.HasPrefix(text, "HTTP/") { // which waits to be asked
				_, _ = bufio.NewReader(c).ReadString('\n')
			}
			_, _ = io.WriteString(c, text)
			if strings.HasSuffix(text, "bye\r\n") || text == "close" {
				_ = c.Close()
				continue
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	t.Cleanup(func() { _ = l.Close(); await.Receive(t, await.Limit, "the server to end", done) })
	return l.Addr().(*net.TCPAddr).Port
}

// Requirements I3, I4, I5, I10, I13, I15: what people get wrong, and the very sentence they are told. A test stops there, and
// lists what it did not try.
func TestMistakes(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	file := filepath.Join(s.Dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	readOnly := s.Mkdir(t, "read-only", 0o555)
	full := s.SmallDisk(t, 64<<10)
	if err := os.WriteFile(filepath.Join(full, "filler"), make([]byte, 1<<20), 0o644); err == nil {
		t.Fatal("the disk is not full")
	}
	keysOnly := sftptest.StartOpenSSH(t, sftptest.WithConfig("PasswordAuthentication no"))
	passwordsOnly := sftptest.StartOpenSSH(t, sftptest.WithConfig("PubkeyAuthentication no"))
	old := sftptest.StartOpenSSH(t, sftptest.WithConfig("KexAlgorithms diffie-hellman-group14-sha1"))
	strange := sftptest.StartOpenSSH(t, sftptest.WithConfig("KexAlgorithms sntrup761x25519-sha512@openssh.com"))
	both := sftptest.StartOpenSSH(t, sftptest.WithConfig("AuthenticationMethods publickey,password"))
	noSFTP := sftptest.StartOpenSSH(t, sftptest.WithConfig("ForceCommand /bin/false"))
	chroot := sftptest.StartOpenSSH(t, sftptest.WithConfig("ChrootDirectory "+s.Dir))
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	wrongKey := string(pem.EncodeToMemory(block))
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	lockedKey := string(pem.EncodeToMemory(locked))
	hurry := sftp.Duration(time.Second)
	at := func(o *sftptest.Server) func(c *sftp.Config) {
		return func(c *sftp.Config) { *c = config(o) }
	}
	byKey := func(c *sftp.Config) { c.Password, c.PrivateKey = "", s.KeyPEM }
	port := func(n int) func(c *sftp.Config) {
		return func(c *sftp.Config) { c.Port = n }
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	const other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, c := range []struct {
		name   string
		change []func(*sftp.Config)
		step   string
		says   string // with $AT for user@address, $PORT and $PATH
	}{
		{
			"wrong port",
			[]func(*sftp.Config){port(closed)},
			"TCP",
			"sftp: connection failed: connect at $AT: nothing listens on port $PORT there: check the port, which is usually 22, and whether the server runs",
		},
		{
			"unknown name",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Host = "sftp..example.com" }},
			"name",
			`sftp: connection failed: look up the host at $AT: there is no host "sftp..example.com": check how it is written`,
		},
		{
			"web server",
			[]func(*sftp.Config){port(says(t, "HTTP/1.1 400 Bad Request\r\n\r\n"))},
			"SSH",
			`sftp: no SSH server: connect at $AT: the server on port $PORT does not speak SSH: give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator`,
		},
		{
			"mail server",
			[]func(*sftp.Config){port(says(t, "220 mx.example.com ESMTP\r\n"))},
			"SSH",
			`sftp: no SSH server: connect at $AT: the server on port $PORT does not speak SSH: give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator`,
		},
		{
			"FTP server",
			[]func(*sftp.Config){port(says(t, "220 (vsFTPd 3.0.3)\r\n"))},
			"SSH",
			`sftp: no SSH server: connect at $AT: the server on port $PORT does not speak SSH: give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator`,
		},
		{
			"TLS server",
			[]func(*sftp.Config){port(says(t, "\x15\x03\x01\x00\x02\x02\x46"))},
			"SSH",
			`sftp: no SSH server: connect at $AT: the server on port $PORT does not speak SSH: give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator`,
		},
		{
			"too many connections",
			[]func(*sftp.Config){port(says(t, "Exceeded MaxStartups, bye\r\n"))},
			"SSH",
			`sftp: connection failed: connect at $AT: the server on port $PORT does not speak SSH: give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator`,
		},
		{
			"silent server",
			[]func(*sftp.Config){port(says(t, "")), func(c *sftp.Config) { c.ConnectTimeout = hurry }},
			"SSH",
			"sftp: server does not answer: connect at $AT: something took the connection, and says nothing: check that the port is that of an SSH server, and the firewall",
		},
		{
			"unknown host key",
			[]func(*sftp.Config){func(c *sftp.Config) { c.HostKeys = nil }},
			"host key",
			"sftp: unknown host key: connect at $AT: the server showed the ssh-ed25519 key " + s.Fingerprint + ", which nobody has accepted yet: " +
				"compare it with the server's (ssh-keygen -lf), then add " + s.Fingerprint + " to host_keys",
		},
		{
			"changed host key",
			[]func(*sftp.Config){func(c *sftp.Config) { c.HostKeys = []string{other} }},
			"host key",
			"sftp: HOST KEY CHANGED: connect at $AT: the server showed the ssh-ed25519 key " + s.Fingerprint + " instead of " + other +
				"; SOMEBODY MAY BE IN BETWEEN, nothing was sent: ask the server's administrator whether its key was changed, and only then replace it in host_keys",
		},
		{
			"old server",
			[]func(*sftp.Config){at(old)},
			"algorithms",
			"sftp: no algorithm in common: connect at $AT: for the key exchange the server has only diffie-hellman-group14-sha1: " +
				"that is weak: have the server brought up to date, or name diffie-hellman-group14-sha1 in key_exchanges",
		},
		{
			"strange server",
			[]func(*sftp.Config){at(strange)},
			"algorithms",
			"sftp: no algorithm in common: connect at $AT: for the key exchange the server has only sntrup761x25519-sha512@openssh.com: " +
				"kansa has none of these: have the server brought up to date",
		},
		{
			"too few algorithms",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Ciphers, c.MACs = []string{"aes128-ctr"}, []string{"hmac-sha1-96"} }, at(old), func(c *sftp.Config) {
				c.KeyExchanges, c.Ciphers, c.MACs = []string{"diffie-hellman-group14-sha1"}, []string{"aes128-cbc"}, nil
			}},
			"algorithms",
			"sftp: no algorithm in common: connect at $AT: for the client to server cipher the server has only " +
				"chacha20-poly1305@openssh.com, aes128-ctr, aes192-ctr, aes256-ctr, aes128-gcm@openssh.com, aes256-gcm@openssh.com: " +
				"name aes128-gcm@openssh.com or aes256-gcm@openssh.com or chacha20-poly1305@openssh.com or aes128-ctr or aes192-ctr or aes256-ctr in ciphers",
		},
		{
			"wrong password",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Password = "not-the-password" }},
			"sign-in",
			"sftp: login refused: sign in at $AT: the server refused the password: check the user and the password",
		},
		{
			"wrong key",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Password, c.PrivateKey = "", wrongKey }},
			"sign-in",
			"sftp: login refused: sign in at $AT: the server refused the private key ssh-ed25519 " + ssh.FingerprintSHA256(signer.PublicKey()) +
				": check the user, and that the public half of this very key is among the user's authorized keys",
		},
		{
			"password where a key is demanded",
			[]func(*sftp.Config){at(keysOnly)},
			"sign-in",
			"sftp: login refused: sign in at $AT: the server takes only a private key, and a password was given: " +
				"give the key in private_key or private_key_file, and its public half to the server",
		},
		{
			"key where a password is demanded",
			[]func(*sftp.Config){at(passwordsOnly), byKey},
			"sign-in",
			"sftp: login refused: sign in at $AT: the server takes only a password, and a private key was given: give the password in password or password_file",
		},
		{
			"one proof where two are demanded",
			[]func(*sftp.Config){at(both), func(c *sftp.Config) { c.Password, c.PrivateKey = "", both.KeyPEM }},
			"sign-in",
			"sftp: login refused: sign in at $AT: the server wants more than one proof: give both a private key and a password",
		},
		{
			"wrong passphrase",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Password, c.PrivateKey, c.Passphrase = "", lockedKey, "wrong" }},
			"settings",
			"sftp: invalid configuration: private_key: (hidden): the passphrase does not open it",
		},
		{
			"no passphrase",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Password, c.PrivateKey = "", lockedKey }},
			"settings",
			"sftp: invalid configuration: private_key: (hidden): it is encrypted: give its passphrase in the field passphrase",
		},
		{
			"Windows path",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = `C:\Users\kansa\in` }},
			"settings",
			`sftp: invalid configuration: path: "C:\Users\kansa\in": SFTP has slashes, on Windows too: write /C:/Users/kansa/in`,
		},
		{
			"drive without a slash",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = "c:/in" }},
			"settings",
			`sftp: invalid configuration: path: "c:/in": SFTP has a slash before the drive: write /c:/in`,
		},
		{
			"home",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = "~/in" }},
			"settings",
			`sftp: invalid configuration: path: "~/in": SFTP does not know ~: leave it away, a path without a slash in front begins where sign-in leads`,
		},
		{
			"no SFTP",
			[]func(*sftp.Config){at(noSFTP)},
			"SFTP",
			"sftp: server offers no SFTP: start SFTP at $AT: the server let the user in, but not to SFTP: let the server give this user the sftp subsystem",
		},
		{
			"chroot of somebody else's",
			[]func(*sftp.Config){at(chroot)},
			"SFTP",
			"sftp: connection failed: start SFTP at $AT: the server let the user in and closed the connection: " +
				"see the server's log; the directory to which it confines the user may have the wrong owner",
		},
		{
			"missing path",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path += "/none" }},
			"path",
			"sftp: path missing: check the path at $AT in $PATH: create the directory on the server, or correct the path",
		},
		{
			"relative path",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = "incoming" }},
			"path",
			`sftp: path missing: check the path at $AT in "incoming": without a slash in front it is "/incoming": create it there, or begin the path with a slash`,
		},
		{
			"path that is a file",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = file }},
			"path",
			"sftp: path missing: check the path at $AT in $PATH: it is a file: give a directory",
		},
		{
			"no right to write",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = readOnly }},
			"write",
			"sftp: permission denied: check the path at $AT in $PATH: let the user $USER write there",
		},
		{
			"full disk",
			[]func(*sftp.Config){func(c *sftp.Config) { c.Path = full }},
			"write",
			"sftp: disk full: check the path at $AT in $PATH: 0 bytes are free for an upload of 6: make room on the server",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(s)
			for _, change := range c.change {
				change(&cfg)
			}
			r := sftp.Probe(t.Context(), cfg, discard)
			if r.OK() {
				t.Fatalf("it is well: %+v", r.Steps)
			}
			_, p, _ := net.SplitHostPort(cfg.Address())
			want := strings.NewReplacer("$AT", cfg.User+"@"+cfg.Address(), "$PORT", p, "$PATH", `"`+cfg.Path+`"`, "$USER", cfg.User).Replace(c.says)
			if r.Error.Error() != want {
				t.Errorf("it says\n%s\nand should\n%s", r.Error, want)
			}
			state := sftp.StepOK
			for _, step := range r.Steps {
				switch {
				case step.Name == c.step:
					state = sftp.StepNotTried
					if step.State != sftp.StepFailed || step.OK || step.Found != want {
						t.Errorf("%+v", step)
					}
				case step.State != state && (step.State != sftp.StepWarning || state != sftp.StepOK):
					t.Errorf("step %s is %s, want %s: %s", step.Name, step.State, state, step.Found)
				}
			}
			if c.step == "host key" && (r.KnownHosts != s.KnownHosts || r.Fingerprint != s.Fingerprint || r.HostKeyAccepted || r.KeyExchange == "") {
				t.Errorf("nothing to accept in %+v", r)
			}
			if text, err := json.Marshal(r); err != nil || strings.Contains(string(text), cfg.Password) && cfg.Password != "" || strings.Contains(string(text), "PRIVATE") {
				t.Errorf("a secret is in %s, %v", text, err)
			}
		})
	}
	t.Cleanup(func() {
		if names, err := os.ReadDir(full); err != nil || len(names) != 1 {
			t.Errorf("on the full disk lies %v, %v", names, err)
		}
	})
}
