package sftp_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
)

func encryptedKey(t *testing.T) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func TestConfigIsChecked(t *testing.T) {
	key := encryptedKey(t)
	good := sftp.Config{Host: "sftp.example.com", User: "kansa", Password: "secret"}
	if err := good.Validate(); err != nil || good.Address() != "sftp.example.com:22" {
		t.Fatalf("%s, %v", good.Address(), err)
	}
	for name, c := range map[string]struct {
		change func(*sftp.Config)
		words  []string // field, value, remedy
	}{
		"no host":      {func(c *sftp.Config) { c.Host = "" }, []string{"host: ", "name or address"}},
		"url":          {func(c *sftp.Config) { c.Host = "sftp://x" }, []string{"host: ", "sftp://x", "only a name"}},
		"port in host": {func(c *sftp.Config) { c.Host = "x:22" }, []string{"host: ", "x:22", "field port"}},
		"port":         {func(c *sftp.Config) { c.Port = 70000 }, []string{"port: ", "70000", "65535"}},
		"user":         {func(c *sftp.Config) { c.User = "" }, []string{"user: "}},
		"no secret":    {func(c *sftp.Config) { c.Password = "" }, []string{"password: ", "private key"}},
		"two secrets":  {func(c *sftp.Config) { c.PasswordFile = "/p" }, []string{"password_file: ", "/p", "either"}},
		"two keys":     {func(c *sftp.Config) { c.PrivateKey, c.PrivateKeyFile = key, "/k" }, []string{"private_key_file: ", "/k"}},
		"no key":       {func(c *sftp.Config) { c.PrivateKey = "hello" }, []string{"private_key: ", "PEM"}},
		"locked key":   {func(c *sftp.Config) { c.PrivateKey = key }, []string{"private_key: ", "passphrase"}},
		"wrong phrase": {func(c *sftp.Config) { c.PrivateKey, c.Passphrase = key, "x" }, []string{"private_key: ", "does not open"}},
		"fingerprint":  {func(c *sftp.Config) { c.HostKeys = []string{"SHA256:abc"} }, []string{"host_keys[0]: ", "SHA256:abc", "43"}},
		"host key":     {func(c *sftp.Config) { c.HostKeys = []string{"", "hello"} }, []string{"host_keys[1]: ", "hello", "fingerprint"}},
		"path":         {func(c *sftp.Config) { c.Path = "/a\nb" }, []string{"path: ", "/C:/incoming"}},
		"verify":       {func(c *sftp.Config) { c.Verify = "md5" }, []string{"verify: ", "md5", "sha256"}},
		"backslashes":  {func(c *sftp.Config) { c.Path = `C:\in` }, []string{"path: ", `"C:\in"`, "/C:/in"}},
		"drive":        {func(c *sftp.Config) { c.Path = "D:/in" }, []string{"path: ", "/D:/in"}},
		"home":         {func(c *sftp.Config) { c.Path = "~/in" }, []string{"path: ", "~"}},
		"path as url":  {func(c *sftp.Config) { c.Path = "sftp://h/in" }, []string{"path: ", "only the directory"}},
		"key exchange": {func(c *sftp.Config) { c.KeyExchanges = []string{"rot13"} }, []string{"key_exchanges[0]: ", "rot13", "mlkem768x25519-sha256"}},
		"cipher":       {func(c *sftp.Config) { c.Ciphers = []string{"none"} }, []string{"ciphers[0]: ", "aes128-gcm@openssh.com"}},
		"mac":          {func(c *sftp.Config) { c.MACs = []string{"md5"} }, []string{"macs[0]: ", "hmac-sha1"}},
		"host key alg": {func(c *sftp.Config) { c.HostKeyAlgorithms = []string{"ssh-dss"} }, []string{"host_key_algorithms[0]: ", "ssh-ed25519"}},
		"negative":     {func(c *sftp.Config) { c.ConnectTimeout = -1 }, []string{"connect_timeout: ", "positive"}},
		"idle":         {func(c *sftp.Config) { c.IdleTimeout = sftp.Duration(time.Second) }, []string{"idle_timeout: ", "1s", "keepalive"}},
		"concurrency":  {func(c *sftp.Config) { c.Concurrency = 1000 }, []string{"concurrency: ", "1000", "256"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			err := cfg.Validate()
			if !errors.Is(err, sftp.ErrConfig) || !sftp.Permanent(err) {
				t.Fatalf("got %v", err)
			}
			for _, word := range c.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("a secret is in: %v", err)
			}
			if _, err := sftp.Dial(t.Context(), cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, sftp.ErrConfig) {
				t.Errorf("Dial: %v", err)
			}
		})
	}
	cfg := good
	cfg.PrivateKey, cfg.Passphrase = key, "open sesame"
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestDefaultsAreModern(t *testing.T) {
	known := sftp.KnownAlgorithms()
	for _, list := range [][]sftp.Algorithm{known.KeyExchanges, known.Ciphers, known.MACs, known.HostKeyAlgorithms} {
		for _, a := range list {
			weak := strings.HasSuffix(a.Name, "sha1") || strings.Contains(a.Name, "sha1-") || strings.Contains(a.Name, "cbc") ||
				strings.Contains(a.Name, "arcfour") || a.Name == "ssh-rsa" || a.Name == "ssh-dss"
			if a.Default == weak || a.Legacy != weak {
				t.Errorf("%+v", a)
			}
		}
	}
	if first := known.KeyExchanges[0].Name; first != "mlkem768x25519-sha256" {
		t.Errorf("first key exchange is %s", first)
	}
}

func TestConfigFormsAndSecrets(t *testing.T) {
	want := sftp.Config{
		Host: "h", Port: 2222, User: "u", Password: "p4ssw0rd", Path: "/C:/in", HostKeys: []string{"SHA256:x"},
		Verify: sftp.VerifySHA256, ChecksumFile: true, Receipt: true,
		IdleTimeout: sftp.Duration(90 * time.Second), KeyExchanges: []string{"curve25519-sha256"},
	}
	asJSON, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON, fromYAML sftp.Config
	if err := errors.Join(json.Unmarshal(asJSON, &fromJSON), yaml.UnmarshalWithOptions(asYAML, &fromYAML, yaml.Strict())); err != nil {
		t.Fatalf("%v\n%s\n%s", err, asJSON, asYAML)
	}
	if diff := cmp.Diff(want, fromJSON) + cmp.Diff(want, fromYAML); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{string(asJSON), string(asYAML)} {
		if !strings.Contains(text, "1m30s") || !strings.Contains(text, "idle_timeout") || !strings.Contains(text, "checksum_file") {
			t.Errorf("%s", text)
		}
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "config", want, "redacted", want.Redacted())
	if strings.Contains(log.String(), "p4ssw0rd") {
		t.Error("the password is in the log")
	}
	if want.Redacted().Password == want.Password || want.Password != "p4ssw0rd" {
		t.Error("not redacted, or too much")
	}
	if err := json.Unmarshal([]byte(`{"idle_timeout":"soon"}`), &fromJSON); err == nil || !strings.Contains(err.Error(), "15s") {
		t.Errorf("got %v", err)
	}
}

func FuzzHostKeys(f *testing.F) {
	for _, s := range []string{"SHA256:abc", "ssh-ed25519 AAAA", "@revoked * ssh-rsa AAAA", "|1|a|b ssh-rsa AAAA", "#", "[a]:22 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		cfg := sftp.Config{Host: "h", User: "u", Password: "p", HostKeys: []string{line}}
		if err := cfg.Validate(); err != nil && !errors.Is(err, sftp.ErrConfig) {
			t.Fatal(err)
		}
	})
}
