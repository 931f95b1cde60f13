package api_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/request"
)

// text is a log that can be read while it is written.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serve(t *testing.T, o api.Options) *api.Server {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := api.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// certify writes a certificate of a name and its key, in place of those that are there.
func certify(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// The API speaks TLS, shows a certificate that was replaced while it runs, and keeps the former one while a new one cannot be read.
func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certify(t, dir, "one.example")
	s := serve(t, api.Options{CertFile: cert, KeyFile: key})
	u, err := url.Parse(s.URL())
	if err != nil || u.Scheme != "https" {
		t.Fatal(s.URL(), err)
	}
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := shown(); got != "one.example" {
		t.Errorf("shows %s", got)
	}
	certify(t, dir, "two.example")
	pipelinetest.Until(t, time.Minute, func() (bool, any) { got := shown(); return got == "two.example", got })
	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != "two.example" {
		t.Errorf("shows %s", got)
	}
	certify(t, dir, "three.example")
	pipelinetest.Until(t, time.Minute, func() (bool, any) { got := shown(); return got == "three.example", got })
	if _, err := api.Start(t.Context(), api.Options{Listen: "127.0.0.1:0", CertFile: cert, KeyFile: filepath.Join(dir, "none.pem"), Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "api.tls_key_file") {
		t.Errorf("started without a key: %v", err)
	}
}

// A fault of the program ends one request: it is answered, logged under the request's id and counted, and the process goes on.
func TestPanicEndsOneRequest(t *testing.T) {
	t.Parallel()
	log := &text{}
	s := serve(t, api.Options{Logger: slog.New(slog.NewTextHandler(log, nil)), Routes: map[string]http.Handler{
		"GET /early": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a fault") }),
		"GET /late": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("the beginning"))
			w.(http.Flusher).Flush()
			panic("a fault")
		}),
	}})
	before := request.Panics()
	get := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Request-Id", "id-of-"+path[1:])
		return http.DefaultClient.Do(req)
	}
	res, err := get("/early")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), "id-of-early") || strings.Contains(string(body), "a fault\"") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, err := get("/late"); err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err == nil {
			t.Error("an answer that is not complete looks complete")
		}
	}
	if n := request.Panics() - before; n != 2 {
		t.Errorf("%d are counted", n)
	}
	for _, want := range []string{"request_id=id-of-early", "request_id=id-of-late", "server_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in the log %s", want, log)
		}
	}
	if res, err := get("/healthz"); err != nil || res.StatusCode != http.StatusOK {
		t.Error(err)
	} else {
		_ = res.Body.Close()
	}
}

// A response that the client does not read is closed, and one that it reads slowly, but reads, is not.
func TestUnreadResponseIsClosed(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	ended := make(chan error, 10)
	route := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, size))
		ended <- err
	})
	for _, tls := range []bool{false, true} {
		o := api.Options{WriteTimeout: time.Second, Routes: map[string]http.Handler{"GET /much": route}}
		if tls {
			o.CertFile, o.KeyFile = certify(t, t.TempDir(), "x.example")
		}
		s := serve(t, o)
		conn := dial(t, s.URL())
		if _, err := io.WriteString(conn, "GET /much HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it was written")
			}
		case <-time.After(time.Minute):
			t.Error("it is open after a minute")
		}
	}
	s := serve(t, api.Options{WriteTimeout: time.Second, Routes: map[string]http.Handler{"GET /much": route}})
	conn := dial(t, s.URL())
	if _, err := io.WriteString(conn, "GET /much HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// It takes some seconds in all, and never one for a part.
	buffer := make([]byte, size/16)
	for {
		n, err := io.ReadFull(conn, buffer)
		if err != nil {
			break
		}
		if n == len(buffer) {
			<-time.After(200 * time.Millisecond)
		}
	}
	if err := await.Receive(t, await.Limit, "the slow client's request to end", ended); err != nil {
		t.Errorf("a slow client: %v", err)
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if u.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	}
	return conn
}
