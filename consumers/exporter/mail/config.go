package mail

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The ways to a server. There is no "if it happens to offer": a man in the middle decides that.
const (
	StartTLS    = "starttls" // mandatory: without it, nothing is sent
	ImplicitTLS = "tls"
	NoTLS       = "none" // on loopback only
)

// DefaultTimeout is for a whole mail, from connecting to the server's last word.
const DefaultTimeout = 30 * time.Second

// Config is the mail server to send by.
type Config struct {
	// Host is a name or an address, without a port. Required.
	Host string `yaml:"host" json:"host"`
	// Port is 587 by default, 465 with tls "tls", 25 with tls "none".
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// Username logs in, with Password or the contents of PasswordFile. Empty: no login.
	Username     string `yaml:"username,omitempty" json:"username,omitempty"`
	Password     string `yaml:"password,omitempty" json:"password,omitempty"`
	PasswordFile string `yaml:"password_file,omitempty" json:"password_file,omitempty"`
	// Token is an OAuth access token to log in with in place of a password (XOAUTH2). TokenFile is read for each
	// mail: something else renews the token in it.
	Token     string `yaml:"token,omitempty" json:"token,omitempty"`
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	// TLS is "starttls" (default), "tls", or, on loopback only, "none".
	TLS string `yaml:"tls,omitempty" json:"tls,omitempty"`
	// CAFile has PEM certificates to trust besides the system's.
	CAFile string `yaml:"ca_file,omitempty" json:"ca_file,omitempty"`
	// Helo is the name by which Kansa introduces itself. Default: the name of this machine if it is fully
	// qualified, else the domain of from.
	Helo string `yaml:"helo,omitempty" json:"helo,omitempty"`
	// From is the sender, like "Kansa <audit@example.com>". Required. ReplyTo is optional.
	From    string `yaml:"from" json:"from"`
	ReplyTo string `yaml:"reply_to,omitempty" json:"reply_to,omitempty"`
	// Timeout is for a whole mail. 30s by default.
	Timeout time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"`
}

func (c Config) mode() string {
	if c.TLS == "" {
		return StartTLS
	}
	return c.TLS
}

func (c Config) port() int {
	switch {
	case c.Port != 0:
		return c.Port
	case c.mode() == ImplicitTLS:
		return 465
	case c.mode() == NoTLS:
		return 25
	}
	return 587
}

func (c Config) timeout() time.Duration {
	if c.Timeout == 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

// Address is host:port.
func (c Config) Address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.port())) }

// Redacted is the configuration without its secrets, for people and logs.
func (c Config) Redacted() Config {
	for _, secret := range []*string{&c.Password, &c.Token} {
		if *secret != "" {
			*secret = "(hidden)"
		}
	}
	return c
}

// LogValue keeps secrets out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("address", c.Address()), slog.String("tls", c.mode()), slog.String("from", c.From))
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
		fault("host", `""`, "give the mail server's name or address")
	case strings.ContainsAny(c.Host, " \t\r\n/@") || strings.Contains(c.Host, ":") && net.ParseIP(c.Host) == nil:
		fault("host", strconv.Quote(c.Host), "give only a name or an address, like smtp.example.com")
	}
	if c.Port < 0 || c.Port > 65535 {
		fault("port", c.Port, "give a number from 1 to 65535, or none for the usual one")
	}
	switch mode := c.mode(); {
	case mode != StartTLS && mode != ImplicitTLS && mode != NoTLS:
		fault("tls", strconv.Quote(c.TLS), "choose starttls, tls or none")
	case mode == NoTLS && !loopback(c.Host):
		fault("tls", strconv.Quote(c.TLS), "a link must not travel in the clear: choose starttls or tls; none is for a server on loopback")
	case mode == NoTLS && c.Username != "":
		fault("tls", strconv.Quote(c.TLS), "a password must not travel in the clear: choose starttls or tls")
	}
	if c.Password != "" && c.PasswordFile != "" {
		fault("password_file", strconv.Quote(c.PasswordFile), "give either password or password_file")
	}
	if c.Token != "" && c.TokenFile != "" {
		fault("token_file", strconv.Quote(c.TokenFile), "give either token or token_file")
	}
	password, token := c.Password != "" || c.PasswordFile != "", c.Token != "" || c.TokenFile != ""
	if password && token {
		fault("token", "given", "give either a token or a password")
	}
	if c.Username != "" && !password && !token {
		fault("password", "none", "give the password of the username, or token_file, or leave all out")
	}
	if c.Username == "" && (password || token) {
		fault("username", `""`, "give the name to log in with, or leave the password or the token out")
	}
	if c.Helo != "" && !heloPattern.MatchString(c.Helo) {
		fault("helo", strconv.Quote(c.Helo), "give a host name such as kansa.example.com, or an address in brackets")
	}
	if strings.ContainsAny(c.Username, "\x00\r\n") {
		fault("username", strconv.Quote(c.Username), "remove the control characters")
	}
	if _, err := mail.ParseAddress(c.From); err != nil {
		fault("from", strconv.Quote(c.From), "give an address, like Kansa <audit@example.com>")
	}
	if _, err := mail.ParseAddress(c.ReplyTo); c.ReplyTo != "" && err != nil {
		fault("reply_to", strconv.Quote(c.ReplyTo), "give an address, or none")
	}
	if c.Timeout < 0 {
		fault("timeout", c.Timeout, "give a positive duration like 30s")
	}
	return errors.Join(faults...)
}

// heloPattern is a host name, or an address literal.
var heloPattern = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f.:IPv]+\])$`)

// helo is the name by which Kansa introduces itself. Many servers refuse one without a domain, as containers have.
func (c Config) helo() string {
	if c.Helo != "" {
		return c.Helo
	}
	if host, err := os.Hostname(); err == nil && strings.Contains(host, ".") && heloPattern.MatchString(host) {
		return host
	}
	from, err := mail.ParseAddress(c.From)
	if err != nil {
		return "localhost"
	}
	if domain := from.Address[strings.LastIndexByte(from.Address, '@')+1:]; heloPattern.MatchString(domain) {
		return domain
	}
	return "localhost"
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// password is read at the last moment, from a file that may have been renewed.
func (c Config) password() (string, error) {
	return secret("password", c.Password, c.PasswordFile)
}

// token is read like the password; empty without one.
func (c Config) token() (string, error) { return secret("token", c.Token, c.TokenFile) }

func secret(field, value, file string) (string, error) {
	if file == "" {
		return value, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%w: %s_file: %w: make it readable to kansa", ErrConfig, field, err)
	}
	if value = strings.TrimRight(string(data), "\r\n"); value == "" {
		return "", fmt.Errorf("%w: %s_file: %q: it is empty, put the %s into it", ErrConfig, field, file, field)
	}
	return value, nil
}

func (c Config) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{ServerName: c.Host, MinVersion: tls.VersionTLS12}
	if c.CAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("%w: ca_file: %w: make it readable to kansa", ErrConfig, err)
	}
	if config.RootCAs, err = x509.SystemCertPool(); err != nil {
		config.RootCAs = x509.NewCertPool()
	}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: ca_file: %q: it has no certificate in PEM form", ErrConfig, c.CAFile)
	}
	return config, nil
}
