package smtpd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const body = "From: Kansa <kansa@example.com>\r\nTo: you@example.com\r\nSubject: =?utf-8?q?=E7=9B=A3=E6=9F=BB?=\r\n" +
	"MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n" +
	"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=3Db\r\n" +
	"--b\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+YTwvYj4=\r\n--b--\r\n"

func client(t *testing.T, s *smtpd.Server) *smtp.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.CertificatePEM()) {
		t.Fatal("no certificate")
	}
	c, err := smtp.DialStartTLS(s.Addr(), &tls.Config{RootCAs: pool, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestMailIsKeptAndTakenApart(t *testing.T) {
	s, err := smtpd.Start(t.Context(), smtpd.Options{Dir: t.TempDir(), Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	c := client(t, s)
	if err := c.Mail("kansa@example.com", nil); err == nil {
		t.Fatal("sent without login")
	}
	if err := c.Auth(sasl.NewPlainClient("", "u", "wrong")); err == nil {
		t.Fatal("a wrong password was accepted")
	}
	if err := c.Auth(sasl.NewPlainClient("", "u", "p")); err != nil {
		t.Fatal(err)
	}
	if err := c.SendMail("kansa@example.com", []string{"you@example.com"}, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	mails, err := s.Wait(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	m := mails[0]
	if m.Subject != "監査" || m.Text != "a=b" || m.HTML != "<b>a</b>" || m.EnvelopeTo[0] != "you@example.com" {
		t.Errorf("%+v", m)
	}
	if raw, err := os.ReadFile(m.Path); err != nil || string(raw) != body {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestCloseEndsIdleConnectionsAndWait(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s, err := smtpd.Start(ctx, smtpd.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = client(t, s)
	done := errors.New("done")
	cancel(done)
	if _, err := s.Wait(ctx, 1); !errors.Is(err, done) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("it still listens")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(body))
	f.Add([]byte("Subject: x\r\n\r\ntext"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := smtpd.Parse(raw); err == nil && m == nil {
			t.Fatal("nothing and no error")
		}
	})
}
