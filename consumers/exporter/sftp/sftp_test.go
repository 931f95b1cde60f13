//go:build linux

package sftp_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Tests here wait more than they work.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8")
	}
	goleak.VerifyTestMain(stopping{m})
}

// stopping ends the shared server before leaks are looked for.
type stopping struct{ *testing.M }

func (s stopping) Run() int {
	defer sftptest.Stop()
	return s.M.Run()
}

func config(s *sftptest.Server) sftp.Config {
	return sftp.Config{
		Host: s.Host, Port: s.Port, User: s.User, Password: s.Password,
		HostKeys: []string{s.KnownHosts}, Path: s.Dir,
	}
}

func dial(t testing.TB, cfg sftp.Config) *sftp.Client {
	t.Helper()
	c, err := sftp.Dial(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// refused dials and expects a class of error; the text must hold every one of words and no secret.
func refused(t *testing.T, cfg sftp.Config, class error, permanent bool, words ...string) error {
	t.Helper()
	c, err := sftp.Dial(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		_ = c.Close()
		t.Fatal("connected")
	}
	check(t, err, class, permanent, cfg, words...)
	return err
}

func check(t *testing.T, err, class error, permanent bool, cfg sftp.Config, words ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
	if sftp.Permanent(err) != permanent {
		t.Errorf("Permanent is %v: %v", !permanent, err)
	}
	for _, word := range append(words, cfg.Address(), cfg.User) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in: %v", word, err)
		}
	}
	if cfg.Password != "" && strings.Contains(err.Error(), cfg.Password) {
		t.Errorf("the password is in: %v", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
	t.Log(err)
}

func random(seed uint64, size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

func upload(t testing.TB, c *sftp.Client, name string, data []byte) sftp.UploadResult {
	t.Helper()
	result, err := c.Upload(t.Context(), name, int64(len(data)), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// holds checks that dir has exactly these files, hidden ones included.
func holds(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, ok := want[e.Name()]
		if !ok {
			t.Errorf("%s should not be there", e.Name())
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes instead of %d, or others: %v", e.Name(), len(got), len(data), err)
		}
	}
	if len(entries) < len(want) {
		t.Errorf("%d files, want %d", len(entries), len(want))
	}
}

func TestUploadByPasswordAndByKey(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	byKey := config(s)
	byKey.Password, byKey.PrivateKey = "", s.KeyPEM
	byFile := config(s)
	byFile.Password, byFile.PasswordFile = "", filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(byFile.PasswordFile, []byte(s.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{}
	for name, cfg := range map[string]sftp.Config{"password": config(s), "key": byKey, "file": byFile} {
		c := dial(t, cfg)
		for suffix, size := range map[string]int{"-empty": 0, "-one": 1, "-packet": 32 << 10, "-odd": 1_000_003} {
			want[name+suffix] = random(1, size)
			var last int64
			sum := sha256.Sum256(want[name+suffix])
			result, err := c.Upload(t.Context(), name+suffix, int64(size), bytes.NewReader(want[name+suffix]), func(n int64) { last = n })
			if err != nil {
				t.Fatal(err)
			}
			if last != int64(size) || result.SHA256 != hex.EncodeToString(sum[:]) || !result.Synced || result.Existed || result.Path != s.Dir+"/"+name+suffix {
				t.Errorf("progress %d, result %+v", last, result)
			}
		}
	}
	holds(t, s.Dir, want)
}

func TestLargeUpload(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	data := random(2, 64<<20)
	result := upload(t, dial(t, config(s)), "large.zip", data)
	t.Logf("%.0f MB/s, fsync included", 64*1.048576/result.Duration.Seconds())
	holds(t, s.Dir, map[string][]byte{"large.zip": data})
}

func TestHostKeys(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	// The key of another server.
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	other := sftptest.Server{
		Host: s.Host, Port: 54321, Fingerprint: ssh.FingerprintSHA256(foreign), KnownHosts: knownhosts.Line([]string{"127.0.0.1:54321"}, foreign),
	}

	unknown := config(s)
	unknown.HostKeys = nil
	err = refused(t, unknown, sftp.ErrHostKeyUnknown, true, s.Fingerprint)
	var key *sftp.HostKeyError
	if !errors.As(err, &key) || key.Fingerprint != s.Fingerprint {
		t.Fatalf("no fingerprint to accept in %v", err)
	}
	// Either form that the error shows is enough to get in.
	for _, line := range []string{key.Fingerprint, key.KnownHosts, "ssh-ed25519 " + strings.SplitN(key.KnownHosts, " ", 3)[2]} {
		accepted := unknown
		accepted.HostKeys = []string{line}
		dial(t, accepted)
	}
	// A line for another host says nothing about this one.
	elsewhere := unknown
	elsewhere.HostKeys = []string{other.KnownHosts}
	_ = refused(t, elsewhere, sftp.ErrHostKeyUnknown, true, s.Fingerprint)

	changed := unknown
	changed.HostKeys = []string{other.Fingerprint}
	_ = refused(t, changed, sftp.ErrHostKeyChanged, true, s.Fingerprint, other.Fingerprint, "IN BETWEEN")
	changed.HostKeys = []string{strings.Replace(other.KnownHosts, other.Addr()[len("127.0.0.1:"):], s.Addr()[len("127.0.0.1:"):], 1)}
	_ = refused(t, changed, sftp.ErrHostKeyChanged, true, s.Fingerprint, other.Fingerprint)

	revoked := unknown
	revoked.HostKeys = []string{"@revoked " + s.KnownHosts, s.Fingerprint}
	_ = refused(t, revoked, sftp.ErrHostKeyChanged, true, "revoked")

	// The server's other key is found although the client would rather have seen the first.
	rsa := unknown
	rsa.HostKeyAlgorithms = []string{"rsa-sha2-512"}
	if !errors.As(refused(t, rsa, sftp.ErrHostKeyUnknown, true, "ssh-rsa"), &key) {
		t.Fatal("no RSA fingerprint")
	}
	rsa.HostKeyAlgorithms = nil
	rsa.HostKeys = []string{key.Fingerprint}
	dial(t, rsa)
}

func TestLoginRefused(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	wrong := config(s)
	wrong.Password = "not-the-password"
	_ = refused(t, wrong, sftp.ErrAuth, true)
	stranger := config(s)
	stranger.User = "nobody-here"
	_ = refused(t, stranger, sftp.ErrAuth, true)
	// A server that has had enough after one attempt and closes.
	impatient := sftptest.StartOpenSSH(t, sftptest.WithConfig("MaxAuthTries 1"))
	wrong = config(impatient)
	wrong.Password = "not-the-password"
	_ = refused(t, wrong, sftp.ErrAuth, true)
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	old := sftptest.StartOpenSSH(t, sftptest.WithConfig(
		"KexAlgorithms diffie-hellman-group14-sha1,diffie-hellman-group-exchange-sha1", "Ciphers aes192-ctr", "MACs hmac-sha1"))
	cfg := config(old)
	_ = refused(t, cfg, sftp.ErrAlgorithms, true, "diffie-hellman-group14-sha1")
	for _, kex := range []string{"diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1"} {
		cfg.KeyExchanges, cfg.Ciphers, cfg.MACs = []string{kex}, []string{"aes192-ctr"}, []string{"hmac-sha1"}
		report, err := dial(t, cfg).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if report.KeyExchange != kex || report.Cipher != "aes192-ctr" || report.MAC != "hmac-sha1" {
			t.Errorf("%+v", report)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	cfg := config(s)
	report, err := dial(t, cfg).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Path != s.Dir || report.FreeBytes == nil || *report.FreeBytes == 0 || !report.PosixRename || !report.Fsync ||
		report.HostKey != "ssh-ed25519" || report.Cipher != "aes128-gcm@openssh.com" || !strings.Contains(report.ServerVersion, "OpenSSH") {
		t.Errorf("%+v", report)
	}
	holds(t, s.Dir, nil)

	file := filepath.Join(s.Dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, class := range map[string]error{
		s.Dir + "/missing":              sftp.ErrPathMissing,
		file:                            sftp.ErrPathMissing,
		s.Mkdir(t, "read-only", 0o555):  sftp.ErrPermission,
		s.Mkdir(t, "no-entry", 0o000):   sftp.ErrPermission,
		s.Mkdir(t, "in", 0o755) + "/..": sftp.ErrPermission, // the base, which is root's
	} {
		cfg.Path = path
		c := dial(t, cfg)
		_, err := c.Check(t.Context())
		check(t, err, class, true, cfg, path)
		_, err = c.Upload(t.Context(), "a.zip", 1, strings.NewReader("x"), nil)
		check(t, err, class, true, cfg, path)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	cfg := config(s)
	cfg.Path = s.SmallDisk(t, 1<<20)
	c := dial(t, cfg)
	// Known beforehand.
	_, err := c.Upload(t.Context(), "a.zip", 2<<20, bytes.NewReader(random(1, 2<<20)), nil)
	check(t, err, sftp.ErrNoSpace, false, cfg, cfg.Path)
	holds(t, cfg.Path, nil)
	// Found out on the way: somebody else fills the disk.
	data := random(1, 900<<10)
	other := filepath.Join(cfg.Path, "other")
	once := false
	r := readerFunc(func(p []byte) (int, error) {
		if !once {
			once = true
			if err := os.WriteFile(other, make([]byte, 600<<10), 0o644); err != nil {
				t.Error(err)
			}
		}
		return 0, io.EOF
	})
	_, err = c.Upload(t.Context(), "a.zip", int64(len(data)), io.MultiReader(bytes.NewReader(data[:100<<10]), r, bytes.NewReader(data[100<<10:])), nil)
	check(t, err, sftp.ErrNoSpace, false, cfg, cfg.Path)
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	holds(t, cfg.Path, nil)
	upload(t, c, "a.zip", data)
	holds(t, cfg.Path, map[string][]byte{"a.zip": data})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTargetExists(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	cfg := config(s)
	c := dial(t, cfg)
	data := random(5, 100_000)
	other := bytes.Clone(data)
	other[99_999] ^= 1
	first := upload(t, c, "a.zip", data)
	again := upload(t, c, "a.zip", data)
	if !again.Existed || again.SHA256 != first.SHA256 {
		t.Errorf("%+v", again)
	}
	for _, different := range [][]byte{other, data[:99_999]} {
		_, err := c.Upload(t.Context(), "a.zip", int64(len(different)), bytes.NewReader(different), nil)
		check(t, err, sftp.ErrExists, true, cfg)
	}
	// It appears while we are at it.
	r := readerFunc(func([]byte) (int, error) {
		return 0, errors.Join(os.WriteFile(filepath.Join(s.Dir, "b.zip"), other, 0o600), io.EOF)
	})
	_, err := c.Upload(t.Context(), "b.zip", int64(len(data)), io.MultiReader(bytes.NewReader(data), eof(r)), nil)
	check(t, err, sftp.ErrExists, true, cfg)
	holds(t, s.Dir, map[string][]byte{"a.zip": data, "b.zip": other})
}

// eof runs a function when it is read, and ends.
func eof(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		_, _ = r.Read(p)
		return 0, io.EOF
	})
}

func BenchmarkUpload(b *testing.B) {
	s := sftptest.Shared(b)
	data := random(8, 64<<20)
	memory := s.SmallDisk(b, 256<<20)
	for _, way := range []struct{ name, cipher, dir string }{
		{"aes128-gcm", "aes128-gcm@openssh.com", s.Dir},
		{"aes128-gcm in memory", "aes128-gcm@openssh.com", memory},
		{"aes256-ctr in memory", "aes256-ctr", memory},
		{"chacha20 in memory", "chacha20-poly1305@openssh.com", memory},
	} {
		b.Run(way.name, func(b *testing.B) {
			cfg := config(s)
			cfg.Ciphers, cfg.Path = []string{way.cipher}, way.dir
			c := dial(b, cfg)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				upload(b, c, "bench", data)
				if err := os.Remove(filepath.Join(way.dir, "bench")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
