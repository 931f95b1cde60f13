//go:build linux

package sftp_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
)

// Requirements I2, N4: what is delivered was read back, has a checksum beside it that sha256sum takes, and tells of
// which server it was.
func TestReadBackAndChecksumFile(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	data := random(11, 300_000)
	for name, change := range map[string]func(*sftp.Config){
		"neither":  func(*sftp.Config) {},
		"verify":   func(c *sftp.Config) { c.Verify = sftp.VerifySHA256 },
		"receipt":  func(c *sftp.Config) { c.Receipt = true },
		"checksum": func(c *sftp.Config) { c.ChecksumFile = true },
		"all":      func(c *sftp.Config) { c.Verify, c.Receipt, c.ChecksumFile = sftp.VerifySHA256, true, true },
	} {
		cfg := config(s)
		cfg.Path = s.Mkdir(t, name, 0o755)
		change(&cfg)
		c := dial(t, cfg)
		for _, again := range []bool{false, true} {
			result := upload(t, c, "a.zip", data)
			if result.ReadBack != (cfg.Receipt || again) || result.Existed != again || result.HostKey != s.Fingerprint || (result.Checksum != "") != cfg.ChecksumFile {
				t.Errorf("%s: %+v", name, result)
			}
		}
		want := map[string][]byte{"a.zip": data}
		if cfg.ChecksumFile {
			want["a.zip.sha256"] = fmt.Appendf(nil, "%s  a.zip\n", upload(t, c, "a.zip", data).SHA256)
			check := exec.Command("sha256sum", "--check", "--strict", "a.zip.sha256")
			check.Dir = cfg.Path
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
		holds(t, cfg.Path, want)
	}
	// A checksum of something else under that name is not replaced.
	cfg := config(s)
	cfg.Path, cfg.ChecksumFile = s.Mkdir(t, "taken", 0o755), true
	if err := os.WriteFile(filepath.Join(cfg.Path, "a.zip.sha256"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := dial(t, cfg).Upload(t.Context(), "a.zip", int64(len(data)), bytes.NewReader(data), nil)
	check(t, err, sftp.ErrExists, true, cfg, `upload "a.zip.sha256"`)
	holds(t, cfg.Path, map[string][]byte{"a.zip": data, "a.zip.sha256": []byte("mine")})
	if _, err := dial(t, cfg).Upload(t.Context(), strings.Repeat("x", 230), 0, strings.NewReader(""), nil); !errors.Is(err, sftp.ErrConfig) {
		t.Errorf("no room for the checksum's name: %v", err)
	}
}

// A server that renames by link and unlink may be stopped between the two: the part goes, the file stays.
func TestPartBesideWholeFile(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	data := random(12, 1000)
	for _, name := range []string{"a.zip", ".a.zip.0123456789abcdef.part"} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if result := upload(t, dial(t, config(s)), "a.zip", data); !result.Existed {
		t.Errorf("%+v", result)
	}
	holds(t, s.Dir, map[string][]byte{"a.zip": data})
}

// Requirements I10, I11, I12: every key exchange, cipher and MAC that both sides know carries a file whole, the weak
// ones too if they are named, and the report says which it was.
func TestEveryAlgorithm(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	base := config(s)
	base.Password, base.PrivateKey = "", s.KeyPEM
	offers := sftp.Probe(t.Context(), base, discard).Offers
	if offers == nil {
		t.Fatal("no offers")
	}
	known := sftp.KnownAlgorithms()
	data := random(13, 100_000)
	for _, list := range []struct {
		requirement string
		known       []sftp.Algorithm
		offered     []string
		must        []string
		set         func(*sftp.Config, []string)
		chosen      func(*sftp.Report) string
	}{
		{
			"I10", known.KeyExchanges, offers.KeyExchanges,
			[]string{"diffie-hellman-group-exchange-sha1", "diffie-hellman-group14-sha1", "curve25519-sha256", "diffie-hellman-group-exchange-sha256"},
			func(c *sftp.Config, l []string) { c.KeyExchanges = l }, func(r *sftp.Report) string { return r.KeyExchange },
		},
		{
			"I11", known.Ciphers, offers.Ciphers,
			[]string{"aes128-ctr", "aes192-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"},
			func(c *sftp.Config, l []string) { c.Ciphers = l }, func(r *sftp.Report) string { return r.Cipher },
		},
		{
			"I12", known.MACs, offers.MACs,
			[]string{"hmac-sha1", "hmac-sha2-256", "hmac-sha2-512", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"},
			func(c *sftp.Config, l []string) { c.MACs, c.Ciphers = l, []string{"aes256-ctr"} }, func(r *sftp.Report) string { return r.MAC },
		},
		{
			"I10, host keys", known.HostKeyAlgorithms, offers.HostKeyAlgorithms,
			[]string{"ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"},
			func(c *sftp.Config, l []string) { c.HostKeyAlgorithms = l }, func(r *sftp.Report) string { return r.HostKey },
		},
	} {
		t.Run(list.requirement, func(t *testing.T) {
			t.Parallel()
			tried := map[string]bool{}
			dir := s.Mkdir(t, strings.ReplaceAll(list.requirement, " ", "-"), 0o755)
			for _, a := range list.known {
				if !contains(list.offered, a.Name) {
					t.Logf("the server lacks %s", a.Name)
					continue
				}
				tried[a.Name] = true
				cfg := base
				cfg.Path = dir
				list.set(&cfg, []string{a.Name})
				c, err := sftp.Dial(t.Context(), cfg, discard)
				var key *sftp.HostKeyError
				if errors.As(err, &key) { // its RSA key was not asked for before
					cfg.HostKeys = []string{key.Fingerprint}
					c, err = sftp.Dial(t.Context(), cfg, discard)
				}
				if err != nil {
					t.Errorf("%s: %v", a.Name, err)
					continue
				}
				upload(t, c, "a.zip", data)
				report, err := c.Check(t.Context())
				if got := list.chosen(&report); err != nil || got != a.Name || a.Legacy != contains(report.Legacy, a.Name) {
					t.Errorf("%s: chosen %s, weak %q, %v", a.Name, got, report.Legacy, err)
				}
				holds(t, dir, map[string][]byte{"a.zip": data})
				if err := errors.Join(c.Close(), os.Remove(filepath.Join(dir, "a.zip"))); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range list.must {
				if !tried[name] {
					t.Errorf("%s was not tried: the server offers %q", name, list.offered)
				}
			}
		})
	}
}

// What is weak is chosen only where it is named, and the test warns of it.
func TestWeakAlgorithmsAreShown(t *testing.T) {
	t.Parallel()
	s := sftptest.Shared(t)
	cfg := config(s)
	if r := sftp.Probe(t.Context(), cfg, discard); !r.OK() || len(r.Legacy) > 0 || stateOf(r, "algorithms") != sftp.StepOK {
		t.Errorf("%+v", r)
	}
	cfg.KeyExchanges, cfg.Ciphers, cfg.MACs = []string{"diffie-hellman-group14-sha1"}, []string{"aes128-ctr"}, []string{"hmac-sha1"}
	r := sftp.Probe(t.Context(), cfg, discard)
	if !r.OK() || stateOf(r, "algorithms") != sftp.StepWarning || strings.Join(r.Legacy, " ") != "diffie-hellman-group14-sha1 hmac-sha1" {
		t.Errorf("%+v", r)
	}
}
