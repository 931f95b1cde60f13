//go:build linux

package sftp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
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

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func TestConnectionCutAmidUpload(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
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

// Requirement I2: the connection is cut at every step of an upload, on the way there and on the way back, and at
// random places of one with all that can be asked for. Wherever it was, there is no half file, and the next upload
// ends with a whole one, what belongs beside it, and nothing else.
func TestCutAtEveryStep(t *testing.T) {
	t.Parallel()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	for i, c := range []struct {
		name    string
		replies bool
		all     bool // that can be asked for
		step    int64
	}{
		{"there", false, false, 180},
		{"back", true, false, 45}, // shorter than any answer, so that none is left out
		{"there, with all", false, true, 500},
		{"back, with all", true, true, 220},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := sftptest.Shared(t)
			proxy := sftptest.NewProxy(t, s.Addr())
			cfg := config(s)
			cfg.Port, cfg.HostKeys = proxy.Port(), []string{s.Fingerprint}
			cfg.Password, cfg.PrivateKey = "", s.KeyPEM // which costs the server less
			data := random(9, 500)
			want := map[string][]byte{"a.zip": data}
			if c.all {
				cfg.Verify, cfg.ChecksumFile, cfg.Receipt = sftp.VerifySHA256, true, true
				want["a.zip.sha256"] = fmt.Appendf(nil, "%x  a.zip\n", sha256.Sum256(data))
			}
			dice := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
			var cuts, lost int
			for after := int64(0); ; {
				client := dial(t, cfg)
				if c.replies {
					proxy.CutRepliesAfter(after)
				} else {
					proxy.CutAfter(after)
				}
				_, err := client.Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
				proxy.Heal()
				if err != nil && !errors.Is(err, sftp.ErrConnection) {
					t.Fatalf("after %d: %v", after, err)
				}
				there := 0
				for name, text := range want {
					got, rerr := os.ReadFile(filepath.Join(s.Dir, name))
					if rerr == nil {
						there++
					}
					if rerr == nil && !bytes.Equal(got, text) || rerr != nil && err == nil {
						t.Fatalf("after %d: %s has %d bytes, %v; %v", after, name, len(got), rerr, err)
					}
				}
				if err != nil {
					cuts++
					_, rerr := os.Stat(filepath.Join(s.Dir, "a.zip"))
					if rerr == nil {
						lost++ // renamed, but nobody heard of it
					}
					again := upload(t, dial(t, cfg), "a.zip", data)
					if again.Existed != (rerr == nil) || c.all && (!again.ReadBack || again.Checksum != s.Dir+"/a.zip.sha256") {
						t.Errorf("after %d: %+v", after, again)
					}
				}
				holds(t, s.Dir, want)
				for name := range want {
					if err := os.Remove(filepath.Join(s.Dir, name)); err != nil {
						t.Fatal(err)
					}
				}
				if err == nil {
					break // the cut came too late
				}
				if after += c.step; c.all {
					after += dice.Int64N(c.step) - c.step/2
				}
			}
			t.Logf("cut %d times, %d after the rename", cuts, lost)
			if lost == 0 && (c.replies || c.all) {
				t.Error("no cut came between the rename and its answer")
			}
		})
	}
}

// One session, several uploads at once: they take turns.
func TestUploadsTakeTurns(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
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
	await.Return(t, await.Limit, "all uploads to end", group.Wait)
	holds(t, s.Dir, want)
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	proxy := sftptest.NewProxy(t, s.Addr())
	cfg := config(s)
	cfg.Port, cfg.HostKeys = proxy.Port(), []string{s.Fingerprint}
	cfg.IdleTimeout, cfg.Keepalive = sftp.Duration(time.Second), sftp.Duration(100*time.Millisecond)
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
	hurried := cfg
	hurried.ConnectTimeout = sftp.Duration(400 * time.Millisecond)
	_ = refused(t, hurried, sftp.ErrTimeout, false) // the hole is still there
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	// A server that does not even accept: its queue of connections takes ours, and that is all.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mute := hurried
	mute.Port = l.Addr().(*net.TCPAddr).Port
	_ = refused(t, mute, sftp.ErrTimeout, false)
	proxy.Heal()
	// Nothing to do is not nothing happening: keepalives hold the session beyond the idle timeout.
	cfg.IdleTimeout = sftp.Duration(2 * time.Second)
	alive := dial(t, cfg)
	deadline, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	await.Receive(t, await.Limit, "more than the idle timeout to pass", deadline.Done())
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
	_ = refused(t, cfg, sftp.ErrConnection, false)
}

func TestSourceThatLies(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
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
	t.Parallel()
	s := sftptest.Shared(t)
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
	t.Parallel()
	s := sftptest.Shared(t)
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
