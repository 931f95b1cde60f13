package mail_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	kansamail "github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var download = kansamail.Download{
	Organization: "acme",
	Trails:       []string{"activity", "access"},
	From:         time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
	To:           time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC),
	Events:       1_234_567,
	Files:        1016,
	Size:         98_765_432,
	FileName:     "acme-2026-11-01-2026-11-22.zip",
	Link:         "https://audit.example.com/d/Zx81?token=a%2Bb&v=1",
	Expires:      time.Date(2026, 11, 29, 5, 30, 0, 0, time.FixedZone("CET", 3600)),
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestDownloadIsRendered(t *testing.T) {
	m, err := download.Message("you@example.com")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "download.txt", m.Text)
	golden(t, "download.html", m.HTML)
	if want := "Audit archive of acme is ready (activity and access, 2026-11-01 00:00 to 2026-11-22 04:00 UTC)"; m.Subject != want {
		t.Errorf("got %q, want %q", m.Subject, want)
	}
	// Nothing is loaded from anywhere, and every style is inline, for mail programs drop the rest.
	for _, word := range []string{"<img", "<style", "<script", "src=", "url(", "@import", "<link"} {
		if strings.Contains(m.HTML, word) {
			t.Errorf("%s is in the HTML", word)
		}
	}
	for line := range strings.Lines(m.Text) {
		if len(line) > 79 {
			t.Errorf("long line: %q", line)
		}
	}
	days := download
	days.To = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	days.Trails = days.Trails[:1]
	if m, err = days.Message("you@example.com"); err != nil || !strings.Contains(m.Subject, "(activity, 2026-11-01 to 2026-11-21)") {
		t.Errorf("%q, %v", m.Subject, err)
	}
}

func TestDownloadIsEscapedAndChecked(t *testing.T) {
	d := download
	d.Organization, d.FileName = `<b>"acme"</b>`, `a"><script>.zip`
	m, err := d.Message("you@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(m.HTML, "<b>") || strings.Contains(m.HTML, "<script") {
		t.Error("not escaped")
	}
	for name, change := range map[string]func(*kansamail.Download){
		"javascript": func(d *kansamail.Download) { d.Link = "javascript:alert(1)" },
		"relative":   func(d *kansamail.Download) { d.Link = "/d/1" },
		"broken":     func(d *kansamail.Download) { d.Link = "https://a/ b" },
		"range":      func(d *kansamail.Download) { d.To = d.From },
		"nobody":     func(d *kansamail.Download) { d.Organization = "" },
		"forever":    func(d *kansamail.Download) { d.Expires = time.Time{} },
	} {
		d := download
		change(&d)
		if _, err := d.Message("you@example.com"); !errors.Is(err, kansamail.ErrMessage) || strings.Contains(err.Error(), "token") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1_500_000_000: "1.5 GB", 1 << 62: "4.6 EB"} {
		d := download
		d.Size = n
		m, err := d.Message("a@example.com")
		if err != nil || !strings.Contains(m.Text, "  "+want+" (") {
			t.Errorf("%d: %s is missing: %v", n, want, err)
		}
	}
}

func server(t *testing.T, o smtpd.Options) (*smtpd.Server, kansamail.Config) {
	t.Helper()
	o.Dir = t.TempDir()
	s, err := smtpd.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, s.CertificatePEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, kansamail.Config{
		Host: "localhost", Port: s.Port(), CAFile: ca, Username: o.Username, Password: o.Password,
		From: "Kansa 監査 <audit@example.com>", ReplyTo: "help@example.com", Timeout: 10 * time.Second,
	}
}

func send(t *testing.T, cfg kansamail.Config, m kansamail.Message) error {
	t.Helper()
	s, err := kansamail.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s.Send(t.Context(), m)
}

func message(t *testing.T) kansamail.Message {
	t.Helper()
	m, err := download.Message("Jo Doe <jo@example.com>")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDelivered(t *testing.T) {
	for name, o := range map[string]smtpd.Options{
		"starttls": {Username: "kansa", Password: "pass wörd"},
		"tls":      {Username: "kansa", Password: "secret", ImplicitTLS: true},
		"none":     {NoTLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, cfg := server(t, o)
			cfg.TLS = name
			want := message(t)
			want.ID = "export-1.try"
			if err := send(t, cfg, want); err != nil {
				t.Fatal(err)
			}
			mails, err := s.Wait(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			m := mails[0]
			// A mail ends with a line end, wanted or not.
			if strings.TrimRight(m.Text, "\n") != strings.TrimRight(want.Text, "\n") || strings.TrimRight(m.HTML, "\n") != strings.TrimRight(want.HTML, "\n") {
				t.Errorf("parts differ: %s", cmp.Diff(want.Text, m.Text))
			}
			if m.Subject != want.Subject || !strings.Contains(m.To, "jo@example.com") || !strings.Contains(m.From, "Kansa 監査") ||
				m.EnvelopeFrom != "audit@example.com" || len(m.EnvelopeTo) != 1 || m.EnvelopeTo[0] != "jo@example.com" {
				t.Errorf("%+v", m)
			}
			for header, value := range map[string]string{
				"Message-ID": "<export-1.try@example.com>", "Auto-Submitted": "auto-generated", "Reply-To": "<help@example.com>",
			} {
				if got := m.Header.Get(header); got != value {
					t.Errorf("%s: %q, want %q", header, got, value)
				}
			}
			if at, err := m.Header.Date(); err != nil || time.Since(at) > time.Minute {
				t.Errorf("Date: %v, %v", at, err)
			}
			if !strings.HasPrefix(m.Header.Get("Content-Type"), "multipart/alternative") {
				t.Errorf("%v", m.Header)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	reply := func(code int) func(string) error {
		return func(string) error { return &smtp.SMTPError{Code: code, Message: "not today"} }
	}
	withLogin := smtpd.Options{Username: "kansa", Password: "secret-1"}
	for _, c := range []struct {
		name      string
		o         smtpd.Options
		change    func(*kansamail.Config)
		class     error
		permanent bool
	}{
		{"no such mailbox", smtpd.Options{Refuse: reply(550)}, nil, kansamail.ErrRecipient, true},
		{"mailbox busy", smtpd.Options{Refuse: reply(450)}, nil, kansamail.ErrTemporary, false},
		{"no STARTTLS", smtpd.Options{NoTLS: true}, nil, kansamail.ErrTLS, true},
		{"unknown authority", smtpd.Options{}, func(c *kansamail.Config) { c.CAFile = "" }, kansamail.ErrTLS, true},
		{"unknown authority, implicit", smtpd.Options{ImplicitTLS: true}, func(c *kansamail.Config) { c.CAFile, c.TLS = "", "tls" }, kansamail.ErrTLS, true},
		{"plain port", smtpd.Options{}, func(c *kansamail.Config) { c.TLS = "tls" }, kansamail.ErrTLS, true},
		{"wrong password", withLogin, func(c *kansamail.Config) { c.Password = "secret-2" }, kansamail.ErrAuth, true},
		{"login not offered", smtpd.Options{}, func(c *kansamail.Config) { c.Username, c.Password = "u", "secret-3" }, kansamail.ErrAuth, true},
		{"login required", withLogin, func(c *kansamail.Config) { c.Username, c.Password = "", "" }, kansamail.ErrRefused, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, cfg := server(t, c.o)
			if c.change != nil {
				c.change(&cfg)
			}
			err := send(t, cfg, message(t))
			expect(t, err, c.class, c.permanent, cfg)
			sender, err := kansamail.New(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, sender.Check(t.Context(), []string{"Jo Doe <jo@example.com>"}), c.class, c.permanent, cfg)
			if n := len(s.Mails()); n != 0 {
				t.Errorf("%d mails were delivered", n)
			}
		})
	}
}

func expect(t *testing.T, err, class error, permanent bool, cfg kansamail.Config) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
	t.Log(err)
	if kansamail.Permanent(err) != permanent {
		t.Errorf("Permanent is %v: %v", !permanent, err)
	}
	for _, secret := range []string{"token=", "secret-"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("a secret is in: %v", err)
		}
	}
	if !strings.Contains(err.Error(), cfg.Address()) || !strings.Contains(err.Error(), "jo@example.com") {
		t.Errorf("who and where is missing: %v", err)
	}
}

func listen(t *testing.T, serve func(net.Conn)) kansamail.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		serve(conn)
	}()
	t.Cleanup(func() {
		_ = l.Close()
		await.Receive(t, await.Limit, "the mail server to end", done)
	})
	return kansamail.Config{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, TLS: "none", From: "a@example.com", Timeout: time.Second}
}

func TestServerThatFallsSilentOrAway(t *testing.T) {
	silent := func(greeting string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = io.WriteString(c, greeting)
			_, _ = io.Copy(io.Discard, c) // until the client gives up
		}
	}
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
		class error
	}{
		{"says nothing", silent(""), kansamail.ErrTimeout},
		{"only greets", silent("220 hello\r\n"), kansamail.ErrTimeout},
		{"hangs up", func(net.Conn) {}, kansamail.ErrConnection},
		{"hangs up later", func(c net.Conn) { _, _ = io.WriteString(c, "220 hello\r\n") }, kansamail.ErrConnection},
		{"is busy", silent("421 busy\r\n"), kansamail.ErrTemporary},
		{"wants nobody", silent("554 go away\r\n"), kansamail.ErrRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := listen(t, c.serve)
			start := time.Now()
			err := send(t, cfg, message(t))
			expect(t, err, c.class, kansamail.Permanent(c.class), cfg)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	gone := listen(t, func(net.Conn) {})
	gone.Port = 1 // tcpmux: nobody has that on loopback
	expect(t, send(t, gone, message(t)), kansamail.ErrConnection, false, gone)
}

// The server has the mail and then forgets its manners: that is a success.
func TestDeliveredThenCut(t *testing.T) {
	got := make(chan string, 1)
	cfg := listen(t, func(c net.Conn) {
		buf := make([]byte, 64<<10)
		_, _ = io.WriteString(c, "220 hello\r\n")
		for _, answer := range []string{"250 hi\r\n", "250 ok\r\n", "250 ok\r\n", "354 go\r\n"} {
			_, _ = c.Read(buf)
			_, _ = io.WriteString(c, answer)
		}
		var data strings.Builder
		for !strings.HasSuffix(data.String(), "\r\n.\r\n") {
			n, err := c.Read(buf)
			data.Write(buf[:n])
			if err != nil {
				break
			}
		}
		got <- data.String()
		_, _ = io.WriteString(c, "250 taken\r\n")
	})
	if err := send(t, cfg, message(t)); err != nil {
		t.Fatal(err)
	}
	if m, err := mail.ReadMessage(strings.NewReader(await.Receive(t, await.Limit, "the mail to arrive", got))); err != nil || m.Header.Get("Auto-Submitted") != "auto-generated" {
		t.Errorf("%v", err)
	}
}

func TestCancelled(t *testing.T) {
	reached := make(chan struct{})
	cfg := listen(t, func(c net.Conn) {
		close(reached)
		_, _ = io.Copy(io.Discard, c)
	})
	cfg.Timeout = time.Minute
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("the export was revoked")
	go func() { <-reached; cancel(stopped) }()
	s, err := kansamail.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(ctx, message(t)); !errors.Is(err, kansamail.ErrCancelled) || !errors.Is(err, stopped) {
		t.Fatalf("got %v", err)
	}
}

func TestHeadersCanNotBeInjected(t *testing.T) {
	s, cfg := server(t, smtpd.Options{})
	for name, change := range map[string]func(*kansamail.Message){
		"subject":  func(m *kansamail.Message) { m.Subject = "a\r\nBcc: evil@example.com" },
		"newline":  func(m *kansamail.Message) { m.Subject = "a\nb" },
		"to":       func(m *kansamail.Message) { m.To = "a@example.com\r\nBcc: evil@example.com" },
		"to name":  func(m *kansamail.Message) { m.To = "\"a\r\nBcc: evil@example.com\" <a@example.com>" },
		"two":      func(m *kansamail.Message) { m.To = "a@example.com, b@example.com" },
		"envelope": func(m *kansamail.Message) { m.To = "<a@example.com> RCPT TO:<evil@example.com>" },
		"id":       func(m *kansamail.Message) { m.ID = "a>\r\nBcc: evil@example.com" },
		"empty":    func(m *kansamail.Message) { m.Text = "" },
	} {
		m := message(t)
		change(&m)
		if err := send(t, cfg, m); !errors.Is(err, kansamail.ErrMessage) || !kansamail.Permanent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, from := range []string{"", "nobody", "a@example.com\r\nBcc: evil@example.com"} {
		cfg.From = from
		if _, err := kansamail.New(cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, kansamail.ErrConfig) {
			t.Errorf("%q: %v", from, err)
		}
	}
	if n := len(s.Mails()); n != 0 {
		t.Errorf("%d mails were sent", n)
	}
}

func TestConfig(t *testing.T) {
	good := kansamail.Config{Host: "smtp.example.com", From: "a@example.com"}
	if err := good.Validate(); err != nil || good.Address() != "smtp.example.com:587" {
		t.Errorf("%s, %v", good.Address(), err)
	}
	for field, change := range map[string]func(*kansamail.Config){
		"host":          func(c *kansamail.Config) { c.Host = "smtp.example.com:25" },
		"port":          func(c *kansamail.Config) { c.Port = 70000 },
		"tls":           func(c *kansamail.Config) { c.TLS = "none" },
		"username":      func(c *kansamail.Config) { c.Password = "p" },
		"password":      func(c *kansamail.Config) { c.Username = "u" },
		"password_file": func(c *kansamail.Config) { c.Username, c.Password, c.PasswordFile = "u", "p", "f" },
		"from":          func(c *kansamail.Config) { c.From = "x" },
		"reply_to":      func(c *kansamail.Config) { c.ReplyTo = "x" },
		"timeout":       func(c *kansamail.Config) { c.Timeout = -1 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); !errors.Is(err, kansamail.ErrConfig) || !strings.Contains(err.Error(), field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	c := good
	c.Username, c.PasswordFile = "u", filepath.Join(t.TempDir(), "missing")
	s, err := kansamail.New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), message(t)); !errors.Is(err, kansamail.ErrConfig) {
		t.Errorf("got %v", err)
	}
}

// A server that wants a fully qualified name gets one: that of mail.helo, or the domain of from. What it says of a name
// that it refuses leads to the setting, not to the recipient.
func TestNameOfTheClient(t *testing.T) {
	t.Parallel()
	names := make(chan string, 1)
	refuse := func(name string) error {
		names <- name
		if !strings.Contains(name, ".") {
			return &smtp.SMTPError{Code: 504, EnhancedCode: smtp.EnhancedCode{5, 5, 2}, Message: "<" + name + ">: Helo command rejected: need fully-qualified hostname"}
		}
		return nil
	}
	_, cfg := server(t, smtpd.Options{RefuseName: refuse})
	cfg.Helo = "kansa.internal.example"
	if err := send(t, cfg, message(t)); err != nil {
		t.Error(err)
	}
	if name := await.Receive(t, await.Limit, "the name of the client", names); name != cfg.Helo {
		t.Errorf("introduced as %q, want %q", name, cfg.Helo)
	}
	cfg.Helo = ""
	if err := send(t, cfg, message(t)); err != nil {
		t.Errorf("without a setting: %v", err)
	}
	name := await.Receive(t, await.Limit, "the name of the client", names)
	if host, err := os.Hostname(); err == nil && !strings.Contains(host, ".") && name != "example.com" {
		t.Errorf("introduced as %q, want the domain of from", name)
	}
	cfg.Helo = "vm"
	err := send(t, cfg, message(t))
	expect(t, err, kansamail.ErrRefused, true, cfg)
	if errors.Is(err, kansamail.ErrRecipient) || !strings.Contains(err.Error(), "mail.helo") || !strings.Contains(err.Error(), "it was vm") {
		t.Errorf("the remedy does not fit: %v", err)
	}
	cfg.Helo = "a b"
	if err := cfg.Validate(); !errors.Is(err, kansamail.ErrConfig) || !strings.Contains(err.Error(), "helo: ") {
		t.Errorf("got %v", err)
	}
}

// A server that takes OAuth tokens alone gets one; with a password, the error names what it has and what Kansa has.
func TestLoginByToken(t *testing.T) {
	t.Parallel()
	s, cfg := server(t, smtpd.Options{Username: "kansa", Token: "secret-token"})
	cfg.Password = "secret-password"
	err := send(t, cfg, message(t))
	expect(t, err, kansamail.ErrAuth, true, cfg)
	for _, want := range []string{"the server offers XOAUTH2", "SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, LOGIN", "token_file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in: %v", want, err)
		}
	}
	cfg.Password, cfg.TokenFile = "", filepath.Join(t.TempDir(), "token")
	for token, ok := range map[string]bool{"secret-expired": false, "secret-token": true} {
		if err := os.WriteFile(cfg.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := send(t, cfg, message(t))
		if ok && err != nil {
			t.Errorf("with a token that holds: %v", err)
		}
		if !ok {
			expect(t, err, kansamail.ErrAuth, true, cfg)
			if !strings.Contains(err.Error(), "has not expired") {
				t.Errorf("the remedy does not fit: %v", err)
			}
		}
	}
	if n := len(s.Mails()); n != 1 {
		t.Errorf("%d mails were delivered, want 1", n)
	}
	if c := (kansamail.Config{Token: "secret-1"}).Redacted(); strings.Contains(c.Token, "secret") {
		t.Error("the token is shown")
	}
}

// What a server says decides the remedy: most servers give their reasons at the recipient, even those that concern the host.
func TestRemediesFitTheAnswer(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"5.1.1 no such user":                              "check the address",
		"5.7.1 Relay access denied":                       "relay",
		"5.1.8 Sender address rejected: domain not found": "mail.from",
		"5.2.2 mailbox full":                              "make room",
		"5.7.1 Service unavailable; client host [1.2.3.4] blocked using a list": "administrator",
	} {
		_, cfg := server(t, smtpd.Options{Refuse: func(string) error {
			return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.NoEnhancedCode, Message: answer}
		}})
		if err := send(t, cfg, message(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: no word of %q in: %v", answer, want, err)
		}
	}
}
