package sftp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"
)

// Defaults of [Config].
const (
	DefaultPort           = 22
	DefaultConnectTimeout = 15 * time.Second
	DefaultIdleTimeout    = 60 * time.Second
	DefaultKeepalive      = 15 * time.Second
	DefaultConcurrency    = 64
)

// cleanupTimeout is how long a failed or cancelled upload may take to remove its own file.
const cleanupTimeout = 5 * time.Second

// Verification is how a file on the server is compared with what was sent.
type Verification string

// The ways to compare.
const (
	VerifySize   Verification = "size"
	VerifySHA256 Verification = "sha256"
)

// Config is one SFTP server, as a person describes it. The zero value of a field means its default.
type Config struct {
	// Host is a name or an address, without a port. Required.
	Host string `yaml:"host" json:"host"`
	// Port is 22 by default.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// User is the name to log in with. Required.
	User string `yaml:"user" json:"user"`

	// Password, or a file that has it, answers password and keyboard-interactive logins.
	Password     string `yaml:"password,omitempty" json:"password,omitempty"`
	PasswordFile string `yaml:"password_file,omitempty" json:"password_file,omitempty"`
	// PrivateKey is a PEM or OpenSSH private key, or PrivateKeyFile a file that has it. Passphrase
	// opens it if it is encrypted. Key and password may both be given; the key is tried first.
	PrivateKey     string `yaml:"private_key,omitempty" json:"private_key,omitempty"`
	PrivateKeyFile string `yaml:"private_key_file,omitempty" json:"private_key_file,omitempty"`
	Passphrase     string `yaml:"passphrase,omitempty" json:"passphrase,omitempty"`

	// HostKeys are the keys the server may have, each a fingerprint (SHA256:…), a public key
	// (ssh-ed25519 AAAA…) or a line of known_hosts. Without any, every server is refused, with an
	// error that shows the fingerprint to accept.
	HostKeys []string `yaml:"host_keys,omitempty" json:"host_keys,omitempty"`

	// Path is the directory on the server. It must exist. It is passed on as it is, so that
	// /C:/Users/kansa/in reaches a Windows server unchanged. Empty is the directory after login.
	Path string `yaml:"path,omitempty" json:"path,omitempty"`

	// Naming is how a file gets its name: hidden (default), it is written as .NAME.RANDOM.part and renamed; suffix, as
	// NAME.RANDOM.part; folder, in the folder kansa-tmp of the directory; none, under its name, for servers that do not
	// rename, or that take a file as soon as it is closed.
	Naming Naming `yaml:"naming,omitempty" json:"naming,omitempty"`
	// Verify says how a file is compared with what was sent before it gets its name: by its size, the
	// default, or by its SHA-256, for which it is read back.
	Verify Verification `yaml:"verify,omitempty" json:"verify,omitempty"`
	// ChecksumFile puts NAME.sha256 beside each file, as sha256sum writes and reads it.
	ChecksumFile bool `yaml:"checksum_file,omitempty" json:"checksum_file,omitempty"`
	// Receipt has each file read back under its name once it is delivered, for the receipt that is
	// signed then.
	Receipt bool `yaml:"receipt,omitempty" json:"receipt,omitempty"`

	// KeyExchanges, Ciphers, MACs and HostKeyAlgorithms are offered, best first. Empty lists mean the modern
	// ones; a name that is not known is refused with those that are. Naming ssh-rsa among the host keys also lets an RSA private key sign with SHA-1.
	KeyExchanges      []string `yaml:"key_exchanges,omitempty" json:"key_exchanges,omitempty"`
	Ciphers           []string `yaml:"ciphers,omitempty" json:"ciphers,omitempty"`
	MACs              []string `yaml:"macs,omitempty" json:"macs,omitempty"`
	HostKeyAlgorithms []string `yaml:"host_key_algorithms,omitempty" json:"host_key_algorithms,omitempty"`

	// ConnectTimeout bounds everything up to a session that is ready. 15s by default.
	ConnectTimeout Duration `yaml:"connect_timeout,omitempty" json:"connect_timeout,omitempty"`
	// IdleTimeout is how long the server may be silent, or take nothing, before it counts as gone.
	// 60s by default. It must be longer than Keepalive, by which a server is asked to say something;
	// 15s by default.
	IdleTimeout Duration `yaml:"idle_timeout,omitempty" json:"idle_timeout,omitempty"`
	Keepalive   Duration `yaml:"keepalive,omitempty" json:"keepalive,omitempty"`
	// Dial connects to the server, in place of net.Dialer; it may refuse to.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `yaml:"-" json:"-"`
	// Concurrency is how many writes of 32 KiB are under way at once. 64 by default, which fills the
	// window of SSH.
	Concurrency int `yaml:"concurrency,omitempty" json:"concurrency,omitempty"`
}

// Duration is a time.Duration that is written as "15s" in YAML and JSON.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration: write it like 15s or 2m", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d Duration) or(fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return time.Duration(d)
}

// Address is host:port.
func (c Config) Address() string {
	port := c.Port
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(port))
}

// Hidden stands where a secret is that is not shown.
const Hidden = "(hidden)"

// Redacted is the configuration without its secrets, for people and logs.
func (c Config) Redacted() Config {
	for _, secret := range []*string{&c.Password, &c.PrivateKey, &c.Passphrase} {
		if *secret != "" {
			*secret = Hidden
		}
	}
	return c
}

// LogValue keeps secrets out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("address", c.Address()), slog.String("user", c.User), slog.String("path", c.Path))
}

// Validate reports every fault at once. Each one names the field, the value and the remedy, and
// wraps ErrConfig. It reads no file and opens no connection.
func (c Config) Validate() error {
	var faults []error
	fault := func(field string, value any, remedy string) {
		faults = append(faults, fmt.Errorf("%w: %s: %v: %s", ErrConfig, field, value, remedy))
	}
	switch {
	case c.Host == "":
		fault("host", `""`, "give the server's name or address")
	case strings.ContainsAny(c.Host, " \t\r\n/@") || strings.Contains(c.Host, "://"):
		fault("host", strconv.Quote(c.Host), "give only a name or an address, like sftp.example.com")
	case strings.Contains(c.Host, ":") && net.ParseIP(c.Host) == nil:
		fault("host", strconv.Quote(c.Host), "give the port in the field port")
	}
	if c.Port < 0 || c.Port > 65535 {
		fault("port", c.Port, "give a number from 1 to 65535, or none for 22")
	}
	if c.User == "" || strings.ContainsAny(c.User, "\x00\r\n") {
		fault("user", strconv.Quote(c.User), "give the name to log in with")
	}
	if c.Password != "" && c.PasswordFile != "" {
		fault("password_file", strconv.Quote(c.PasswordFile), "give either password or password_file")
	}
	if c.PrivateKey != "" && c.PrivateKeyFile != "" {
		fault("private_key_file", strconv.Quote(c.PrivateKeyFile), "give either private_key or private_key_file")
	}
	if c.Password == "" && c.PasswordFile == "" && c.PrivateKey == "" && c.PrivateKeyFile == "" {
		fault("password", "none", "give a password or a private key to log in with")
	}
	if c.PrivateKey != "" {
		if _, err := parseKey([]byte(c.PrivateKey), c.Passphrase); err != nil {
			fault("private_key", "(hidden)", err.Error())
		}
	}
	for i, line := range c.HostKeys {
		if _, err := parsePins([]string{line}); err != nil {
			fault(fmt.Sprintf("host_keys[%d]", i), strconv.Quote(line), err.Error())
		}
	}
	if remedy := pathFault(c.Path); remedy != "" {
		fault("path", strings.ReplaceAll(strconv.Quote(c.Path), `\\`, `\`), remedy)
	}
	if c.Naming != "" && !slices.Contains(namings, c.Naming) {
		fault("naming", strconv.Quote(string(c.Naming)), "choose hidden, suffix, folder or none; a test of the destination says which the server can do")
	}
	switch c.Verify {
	case "", VerifySize, VerifySHA256:
	default:
		fault("verify", strconv.Quote(string(c.Verify)), "choose size, or sha256, which reads every file back")
	}
	known := KnownAlgorithms()
	for _, list := range []struct {
		field  string
		chosen []string
		known  []Algorithm
	}{
		{"key_exchanges", c.KeyExchanges, known.KeyExchanges},
		{"ciphers", c.Ciphers, known.Ciphers},
		{"macs", c.MACs, known.MACs},
		{"host_key_algorithms", c.HostKeyAlgorithms, known.HostKeyAlgorithms},
	} {
		names := make([]string, len(list.known))
		for i, a := range list.known {
			names[i] = a.Name
		}
		for i, name := range list.chosen {
			if !slices.Contains(names, name) {
				fault(fmt.Sprintf("%s[%d]", list.field, i), strconv.Quote(name), "choose from "+strings.Join(names, ", "))
			}
		}
	}
	for _, d := range []struct {
		field string
		value Duration
	}{{"connect_timeout", c.ConnectTimeout}, {"idle_timeout", c.IdleTimeout}, {"keepalive", c.Keepalive}} {
		if d.value < 0 {
			fault(d.field, time.Duration(d.value), "give a positive duration like 15s")
		}
	}
	if idle, alive := c.IdleTimeout.or(DefaultIdleTimeout), c.Keepalive.or(DefaultKeepalive); idle <= alive {
		fault("idle_timeout", idle, fmt.Sprintf("it must be longer than keepalive, which is %v", alive))
	}
	if c.Concurrency < 0 || c.Concurrency > 256 {
		fault("concurrency", c.Concurrency, "give a number from 1 to 256, or none for 64")
	}
	return errors.Join(faults...)
}

// pathFault says what would be right instead of a path that people write by mistake.
func pathFault(path string) string {
	switch {
	case strings.ContainsFunc(path, unicode.IsControl):
		return "give a directory on the server, like /incoming or /C:/incoming"
	case strings.Contains(path, `\`):
		path = strings.ReplaceAll(path, `\`, "/")
		if drive(path) {
			path = "/" + path
		}
		return "SFTP has slashes, on Windows too: write " + path
	case drive(path):
		return "SFTP has a slash before the drive: write /" + path
	case path == "~" || strings.HasPrefix(path, "~/"):
		return "SFTP does not know ~: leave it away, a path without a slash in front begins where sign-in leads"
	case strings.HasPrefix(strings.ToLower(path), "sftp://"):
		return "give only the directory; the server goes into host, port and user"
	}
	return ""
}

// drive tells whether a path begins with the letter of a Windows drive.
func drive(path string) bool {
	return len(path) >= 2 && path[1] == ':' && (path[0]|0x20) >= 'a' && (path[0]|0x20) <= 'z'
}

// credentials are what a sign-in has to offer.
type credentials struct {
	methods  []ssh.AuthMethod
	key      ssh.PublicKey // nil: none
	password bool
	answered bool   // the password was given as the answer to a question
	code     string // the question that a password does not answer, if there was one
}

// isPassword reports whether the password answers a question of the server: the first one, unless it speaks of a code,
// and each that speaks of a password. A password is never given as the answer to another question.
func (c *credentials) isPassword(question string) bool {
	text := strings.ToLower(question)
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	secret := says("password", "passwort", "passphrase", "パスワード")
	if says("code", "token", "otp", "one-time", "verification", "factor") && !(secret && !c.answered && !says("one-time", "otp")) || c.answered && !secret {
		c.code = strings.TrimSpace(strings.Trim(strings.TrimSpace(question), ":"))
		return false
	}
	c.answered = true
	return true
}

// credentials reads the secrets, at the last moment and from files that may have been renewed.
func (c Config) credentials() (*credentials, error) {
	have := &credentials{}
	pem := []byte(c.PrivateKey)
	if c.PrivateKeyFile != "" {
		var err error
		if pem, err = os.ReadFile(c.PrivateKeyFile); err != nil {
			return nil, fmt.Errorf("%w: private_key_file: %w: make it readable to kansa", ErrConfig, err)
		}
	}
	if len(pem) > 0 {
		signer, err := parseKey(pem, c.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("%w: private_key: %w", ErrConfig, err)
		}
		if signer, err = modernSigner(signer, slices.Contains(c.HostKeyAlgorithms, ssh.KeyAlgoRSA)); err != nil {
			return nil, fmt.Errorf("%w: private_key: %w", ErrConfig, err)
		}
		have.key = signer.PublicKey()
		have.methods = append(have.methods, ssh.PublicKeys(signer))
	}
	password := c.Password
	if c.PasswordFile != "" {
		data, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("%w: password_file: %w: make it readable to kansa", ErrConfig, err)
		}
		if password = strings.TrimRight(string(data), "\r\n"); password == "" {
			return nil, fmt.Errorf("%w: password_file: %q: it is empty, put the password into it", ErrConfig, c.PasswordFile)
		}
	}
	if password != "" {
		have.password = true
		have.methods = append(have.methods, ssh.Password(password), ssh.KeyboardInteractive(
			// Servers that log in by PAM ask for the password as a question of their own.
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i, question := range questions {
					if !have.isPassword(question) {
						return nil, fmt.Errorf("the server asks for %q", question)
					}
					answers[i] = password
				}
				return answers, nil
			}))
	}
	return have, nil
}

func parseKey(pem []byte, passphrase string) (ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey(pem)
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) {
		if passphrase == "" {
			return nil, errors.New("it is encrypted: give its passphrase in the field passphrase")
		}
		if signer, err = ssh.ParsePrivateKeyWithPassphrase(pem, []byte(passphrase)); err != nil {
			return nil, errors.New("the passphrase does not open it")
		}
		return signer, nil
	}
	if err != nil {
		// The parser's own words may quote the key.
		return nil, errors.New("it is not a private key in PEM or OpenSSH form")
	}
	return signer, nil
}

// modernSigner keeps an RSA key from signing with SHA-1, to which x/crypto falls back if a server
// does not say what it takes.
func modernSigner(signer ssh.Signer, sha1 bool) (ssh.Signer, error) {
	multi, ok := signer.(ssh.AlgorithmSigner)
	if !ok || signer.PublicKey().Type() != ssh.KeyAlgoRSA || sha1 {
		return signer, nil
	}
	return ssh.NewSignerWithAlgorithms(multi, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
}
