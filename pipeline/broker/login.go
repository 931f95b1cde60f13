package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// login says who we are. Files are read here once, so that one that is not there is told at the start, and again
// whenever a connection is made, so that what they hold can be changed without a restart.
func login(o Options, log *slog.Logger) ([]nats.Option, error) {
	var ways []string
	for name, set := range map[string]bool{
		"nats.credentials_file": o.CredentialsFile != "", "nats.nkey_file": o.NKeyFile != "", "nats.username": o.Username != "", "nats.token_file": o.TokenFile != "",
	} {
		if set {
			ways = append(ways, name)
		}
	}
	if len(ways) > 1 {
		return nil, fmt.Errorf("there are several ways to log in to NATS, %s: leave one", strings.Join(ways, " and "))
	}
	secret := func(key, path string) func() string {
		return func() string {
			text, err := readSecret(key, path)
			if err != nil {
				log.Error("no connection to NATS can be made", slog.Any("error", err))
			}
			return text
		}
	}
	switch {
	case o.CredentialsFile != "":
		if _, err := readSecret("nats.credentials_file", o.CredentialsFile); err != nil {
			return nil, err
		}
		return []nats.Option{nats.UserCredentials(o.CredentialsFile)}, nil
	case o.NKeyFile != "":
		option, err := nats.NkeyOptionFromSeed(o.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read nats.nkey_file: %w", err)
		}
		return []nats.Option{option}, nil
	case o.Username != "" && o.PasswordFile == "":
		return nil, errors.New("nats.username has no password: set nats.password_file")
	case o.Username != "":
		if _, err := readSecret("nats.password_file", o.PasswordFile); err != nil {
			return nil, err
		}
		password := secret("nats.password_file", o.PasswordFile)
		return []nats.Option{nats.UserInfoHandler(func() (string, string) { return o.Username, password() })}, nil
	case o.PasswordFile != "":
		return nil, errors.New("nats.password_file is nobody's: set nats.username")
	case o.TokenFile != "":
		if _, err := readSecret("nats.token_file", o.TokenFile); err != nil {
			return nil, err
		}
		return []nats.Option{nats.TokenHandler(secret("nats.token_file", o.TokenFile))}, nil
	}
	return nil, nil
}

func readSecret(key, path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

func tlsConfig(o Options) (*tls.Config, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read nats.ca_file: %w", err)
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("nats.ca_file %s holds no certificate: give a PEM file", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("nats.cert_file and nats.key_file belong together: set both")
	}
	if o.CertFile == "" {
		return tc, nil
	}
	own := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read nats.cert_file and nats.key_file: %w", err)
		}
		return &cert, nil
	}
	if _, err := own(); err != nil {
		return nil, err
	}
	tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	return tc, nil
}
