package sftp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	s := sftptest.StartOpenSSH(t)
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
	s := sftptest.StartOpenSSH(t)
	data := random(2, 64<<20)
	result := upload(t, dial(t, config(s)), "large.zip", data)
	t.Logf("%.0f MB/s, fsync included", 64*1.048576/result.Duration.Seconds())
	holds(t, s.Dir, map[string][]byte{"large.zip": data})
}

func TestHostKeys(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	other := sftptest.StartOpenSSH(t)

	unknown := config(s)
	unknown.HostKeys = nil
	err := refused(t, unknown, sftp.ErrHostKeyUnknown, true, s.Fingerprint)
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
	refused(t, elsewhere, sftp.ErrHostKeyUnknown, true, s.Fingerprint)

	changed := unknown
	changed.HostKeys = []string{other.Fingerprint}
	refused(t, changed, sftp.ErrHostKeyChanged, true, s.Fingerprint, other.Fingerprint, "IN BETWEEN")
	changed.HostKeys = []string{strings.Replace(other.KnownHosts, other.Addr()[len("127.0.0.1:"):], s.Addr()[len("127.0.0.1:"):], 1)}
	refused(t, changed, sftp.ErrHostKeyChanged, true, s.Fingerprint, other.Fingerprint)

	revoked := unknown
	revoked.HostKeys = []string{"@revoked " + s.KnownHosts, s.Fingerprint}
	refused(t, revoked, sftp.ErrHostKeyChanged, true, "revoked")

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
	s := sftptest.StartOpenSSH(t)
	wrong := config(s)
	wrong.Password = "not-the-password"
	refused(t, wrong, sftp.ErrAuth, true)
	stranger := config(s)
	stranger.User = "nobody-here"
	refused(t, stranger, sftp.ErrAuth, true)
	// A server that has had enough after one attempt and closes.
	impatient := sftptest.StartOpenSSH(t, sftptest.WithConfig("MaxAuthTries 1"))
	wrong = config(impatient)
	wrong.Password = "not-the-password"
	refused(t, wrong, sftp.ErrAuth, true)
}

func TestAlgorithms(t *testing.T) {
	old := sftptest.StartOpenSSH(t, sftptest.WithConfig(
		"KexAlgorithms diffie-hellman-group14-sha1,diffie-hellman-group-exchange-sha1", "Ciphers aes192-ctr", "MACs hmac-sha1"))
	cfg := config(old)
	refused(t, cfg, sftp.ErrAlgorithms, true, "diffie-hellman-group14-sha1")
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
	s := sftptest.StartOpenSSH(t)
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
	s := sftptest.StartOpenSSH(t)
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

func TestConnectionCutAmidUpload(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	proxy := sftptest.NewProxy(t, s.Addr())
	cfg := config(s)
	cfg.Port, cfg.HostKeys = proxy.Port(), []string{s.Fingerprint}
	data := random(3, 8<<20)
	for _, after := range []int64{0, 1 << 10, 1 << 20, 8<<20 + 10_000} {
		c := dial(t, cfg)
		proxy.CutAfter(after)
		_, err := c.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
		check(t, err, sftp.ErrConnection, false, cfg)
		if _, err := os.Lstat(filepath.Join(s.Dir, "a.zip")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("cut after %d: there is a file: %v", after, err)
		}
		proxy.Heal()
	}
	upload(t, dial(t, cfg), "a.zip", data)
	holds(t, s.Dir, map[string][]byte{"a.zip": data})
}

// The connection is cut at every step of an upload, on the way there and on the way back. Whatever the
// step was, there is no half file, and the next upload ends with a whole one and nothing beside it.
func TestCutAtEveryStep(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	proxy := sftptest.NewProxy(t, s.Addr())
	cfg := config(s)
	cfg.Port, cfg.HostKeys = proxy.Port(), []string{s.Fingerprint}
	data := random(9, 500)
	target := filepath.Join(s.Dir, "a.zip")
	var cuts, lost int
	for _, way := range []struct {
		cut  func(int64)
		step int64
	}{
		{proxy.CutAfter, 180},
		{proxy.CutRepliesAfter, 45}, // shorter than any answer, so that none is left out
	} {
		for after := int64(0); ; after += way.step {
			c := dial(t, cfg)
			way.cut(after)
			_, err := c.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
			proxy.Heal()
			got, rerr := os.ReadFile(target)
			switch {
			case err == nil && (rerr != nil || !bytes.Equal(got, data)):
				t.Fatalf("delivered, but %v", rerr)
			case err != nil && !errors.Is(err, sftp.ErrConnection):
				t.Fatalf("after %d: %v", after, err)
			case rerr == nil && !bytes.Equal(got, data):
				t.Fatalf("after %d: half a file of %d bytes", after, len(got))
			case err != nil:
				cuts++
				if rerr == nil {
					lost++ // renamed, but nobody heard of it
				}
				again := upload(t, dial(t, cfg), "a.zip", data)
				if again.Existed != (rerr == nil) {
					t.Errorf("after %d: %+v", after, again)
				}
			}
			holds(t, s.Dir, map[string][]byte{"a.zip": data})
			if err := os.Remove(target); err != nil {
				t.Fatal(err)
			}
			if err == nil {
				break // the cut came too late
			}
		}
	}
	t.Logf("cut %d times, %d after the rename", cuts, lost)
	if lost == 0 {
		t.Error("no cut came between the rename and its answer")
	}
}

// One session, several uploads at once: they take turns.
func TestUploadsTakeTurns(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	c := dial(t, config(s))
	want := map[string][]byte{}
	var group sync.WaitGroup
	for i := range 8 {
		name, data := fmt.Sprintf("%d.zip", i), random(uint64(i), 200_000+i)
		want[name] = data
		group.Go(func() {
			if _, err := c.Upload(t.Context(), name, int64(len(data)), bytes.NewReader(data), nil); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	holds(t, s.Dir, want)
}

func TestSilentServer(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	proxy := sftptest.NewProxy(t, s.Addr())
	cfg := config(s)
	cfg.Port, cfg.HostKeys = proxy.Port(), []string{s.Fingerprint}
	cfg.IdleTimeout, cfg.Keepalive = sftp.Duration(time.Second), sftp.Duration(200*time.Millisecond)
	cfg.ConnectTimeout = sftp.Duration(2 * time.Second)
	data := random(4, 8<<20)

	c := dial(t, cfg)
	proxy.HoleAfter(1 << 20)
	start := time.Now()
	_, err := c.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
	check(t, err, sftp.ErrTimeout, false, cfg)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	start = time.Now()
	refused(t, cfg, sftp.ErrTimeout, false) // the hole is still there
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	// A server that does not even accept: its queue of connections takes ours, and that is all.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mute := cfg
	mute.Port = l.Addr().(*net.TCPAddr).Port
	refused(t, mute, sftp.ErrTimeout, false)
	proxy.Heal()
	// Nothing to do is not nothing happening: keepalives hold the session beyond the idle timeout.
	alive := dial(t, cfg)
	deadline, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	<-deadline.Done()
	upload(t, alive, "a.zip", data)
	holds(t, s.Dir, map[string][]byte{"a.zip": data})
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := sftp.Config{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "u", Password: "secret"}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	refused(t, cfg, sftp.ErrConnection, false)
}

func TestTargetExists(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
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

func TestSourceThatLies(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	cfg := config(s)
	c := dial(t, cfg)
	data := random(6, 300_000)
	broken := errors.New("the bucket is gone")
	for name, r := range map[string]io.Reader{
		"short":  bytes.NewReader(data[:299_999]),
		"long":   bytes.NewReader(append(bytes.Clone(data), 1)),
		"broken": io.MultiReader(bytes.NewReader(data[:200_000]), readerFunc(func([]byte) (int, error) { return 0, broken })),
	} {
		_, err := c.Upload(t.Context(), name, int64(len(data)), r, nil)
		check(t, err, sftp.ErrSource, false, cfg, name)
		if name == "broken" && !errors.Is(err, broken) {
			t.Errorf("the cause is lost: %v", err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", `a\b`, "a\nb", strings.Repeat("x", 240)} {
		if _, err := c.Upload(t.Context(), name, 0, strings.NewReader(""), nil); !errors.Is(err, sftp.ErrConfig) {
			t.Errorf("%q: %v", name, err)
		}
	}
	holds(t, s.Dir, nil)
}

func TestCancelledUpload(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	cfg := config(s)
	c := dial(t, cfg)
	data := random(7, 8<<20)
	ctx, cancel := context.WithCancelCause(t.Context())
	revoked := errors.New("the export was revoked")
	_, err := c.Upload(ctx, "a.zip", int64(len(data)), bytes.NewReader(data), func(n int64) {
		if n > 1<<20 {
			cancel(revoked)
		}
	})
	if !errors.Is(err, sftp.ErrCancelled) || !errors.Is(err, revoked) {
		t.Fatalf("got %v", err)
	}
	holds(t, s.Dir, nil)
	// The session is as good as before.
	upload(t, c, "a.zip", data)
	if _, err := sftp.Dial(ctx, cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, sftp.ErrCancelled) {
		t.Errorf("got %v", err)
	}
}

func TestLeftoversOfThisNameOnly(t *testing.T) {
	s := sftptest.StartOpenSSH(t)
	keep := map[string][]byte{
		".b.zip.0123456789abcdef.part": []byte("another name's"),
		".a.zip.part":                  []byte("not ours"),
		".a.zip.0123.part":             []byte("not ours either"),
		"a.zip.0123456789abcdef.part":  []byte("visible"),
	}
	for name, data := range keep {
		if err := os.WriteFile(filepath.Join(s.Dir, name), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.Dir, ".a.zip.0123456789abcdef.part"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	keep["a.zip"] = []byte("new")
	upload(t, dial(t, config(s)), "a.zip", keep["a.zip"])
	holds(t, s.Dir, keep)
}

func BenchmarkUpload(b *testing.B) {
	s := sftptest.StartOpenSSH(b)
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
