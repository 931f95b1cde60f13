package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/kansa-audit/kansa/pipeline/broker"
)

func serve(t *testing.T, o *server.Options) string {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) (pair nkeys.KeyPair, public, seed string) {
	t.Helper()
	pair, err := create()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	secret, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return pair, public, string(secret)
}

// Each way to log in, with its secret in a file; nobody gets in without.
func TestWaysToLogIn(t *testing.T) {
	t.Parallel()
	_, public, seed := newKey(t, nkeys.CreateUser)
	operator, operatorKey, _ := newKey(t, nkeys.CreateOperator)
	account, accountKey, _ := newKey(t, nkeys.CreateAccount)
	_, user, userSeed := newKey(t, nkeys.CreateUser)
	signed, err := jwt.NewAccountClaims(accountKey).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(accountKey, signed); err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.NewUserClaims(user).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(claims, []byte(userSeed))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		server server.Options
		client broker.Options
	}{
		"user and password": {server.Options{Username: "kansa", Password: "secret"}, broker.Options{Username: "kansa", PasswordFile: write(t, "p", "secret\n")}},
		"token":             {server.Options{Authorization: "token"}, broker.Options{TokenFile: write(t, "t", "token\n")}},
		"NKey":              {server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}, broker.Options{NKeyFile: write(t, "k", seed+"\n")}},
		"JWT": {
			server.Options{TrustedKeys: []string{operatorKey}, AccountResolver: resolver}, broker.Options{CredentialsFile: write(t, "c", string(creds))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, &c.server)
			if nobody, err := broker.Connect(t.Context(), broker.Options{URL: url}); err == nil {
				nobody.Close()
				t.Error("somebody without a login was let in")
			}
			c.client.URL = url
			client, err := broker.Connect(t.Context(), c.client)
			if err != nil {
				t.Fatal(err)
			}
			client.Close()
		})
	}
}

func TestLoginsThatAreNone(t *testing.T) {
	t.Parallel()
	there := write(t, "secret", "secret")
	for _, c := range []struct {
		o    broker.Options
		says string
	}{
		{broker.Options{Username: "kansa"}, "nats.username has no password: set nats.password_file"},
		{broker.Options{PasswordFile: there}, "set nats.username"},
		{broker.Options{Username: "kansa", PasswordFile: there, TokenFile: there}, "several ways to log in"},
		{broker.Options{TokenFile: there + ".gone"}, "read nats.token_file: open "},
		{broker.Options{NKeyFile: there}, "read nats.nkey_file: "},
		{broker.Options{CertFile: there}, "belong together"},
		{broker.Options{KeyFile: there}, "belong together"},
		{broker.Options{CertFile: there, KeyFile: there}, "read nats.cert_file and nats.key_file: "},
	} {
		if _, err := broker.Connect(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: got %v, want %q", c.o, err, c.says)
		}
	}
}

// certificate makes a certificate that signs itself.
func certificate(t *testing.T, name string) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", secret)
}

// A server that wants a certificate gets ours, and ours as it is now: it may be replaced while we run.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	serverCert, serverKey := certificate(t, "server")
	clientCert, clientKey := certificate(t, "client")
	pair, err := tls.X509KeyPair([]byte(serverCert), []byte(serverKey))
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AppendCertsFromPEM([]byte(clientCert))
	url := serve(t, &server.Options{TLS: true, TLSVerify: true, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: known, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}})
	ca := write(t, "ca.pem", serverCert)
	if nobody, err := broker.Connect(t.Context(), broker.Options{URL: url, CAFile: ca}); err == nil {
		nobody.Close()
		t.Error("somebody without a certificate was let in")
	}
	stranger, strangerKey := certificate(t, "stranger")
	o := broker.Options{URL: url, CAFile: ca, CertFile: write(t, "c.pem", stranger), KeyFile: write(t, "k.pem", strangerKey)}
	if nobody, err := broker.Connect(t.Context(), o); err == nil {
		nobody.Close()
		t.Error("a stranger was let in")
	}
	for path, text := range map[string]string{o.CertFile: clientCert, o.KeyFile: clientKey} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client, err := broker.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
}
