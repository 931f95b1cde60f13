//go:build linux

package exporter_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/pipeline/demo/smtpd"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/verify"
)

// Requirements I2, N4: deliveries whose connection is cut at random places end each with one whole file, its checksum
// and a receipt that anybody with the public key can check.
func TestReceiptOfCutDeliveries(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	dir := t.TempDir()
	cfg := localSFTP(t, dir)
	address, fingerprint := cfg.Address(), cfg.HostKeys[0]
	proxy := sftptest.NewProxy(t, address)
	cfg.Port, cfg.Verify, cfg.ChecksumFile, cfg.Receipt = proxy.Port(), sftp.VerifySHA256, true, true
	f.run(t, exporter.Destination{Name: "box", Organization: "acme", SFTP: cfg})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	const exports = 12
	cut := 0
	for i := range exports {
		r := day(fmt.Sprintf("cut-%d", i))
		r.MailTo, r.Destination = nil, "box"
		if i%2 == 0 {
			proxy.CutAfter(dice.Int64N(40_000))
		} else {
			proxy.CutRepliesAfter(dice.Int64N(40_000))
		}
		f.submit(t, r)
		e := f.until(t, r.ID, func(e exporter.Export) bool { return e.State == exporter.Retrying || e.State == exporter.Done })
		proxy.Heal()
		if e.State == exporter.Retrying {
			cut++
			e = f.until(t, r.ID, is(exporter.Done))
		}
		data, err := os.ReadFile(filepath.Join(dir, e.File))
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.states.Receipt(t.Context(), e.ID)
		if err != nil || file == nil || !e.Receipt {
			t.Fatalf("%s: %q, %v", e.ID, file, err)
		}
		got, err := f.keys.Ring().OpenReceipt(file)
		if err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		if got.Export != e.ID || got.Organization != "acme" || got.Destination != "box" || got.Address != cfg.Address() || got.User != "u" ||
			got.HostKey != fingerprint || got.Path != "/"+e.File || got.Name != e.File || got.Size != int64(len(data)) || got.SHA256 != sum {
			t.Errorf("%s: %+v", e.ID, got)
		}
		if text, err := os.ReadFile(filepath.Join(dir, e.File+".sha256")); err != nil || string(text) != sum+"  "+e.File+"\n" {
			t.Errorf("checksum %q, %v", text, err)
		}
	}
	if names := list(t, dir); len(names) != 2*exports {
		t.Errorf("the folder has %q", names)
	}
	t.Logf("%d of %d were cut", cut, exports)

	// What an auditor does.
	file, err := f.states.Receipt(t.Context(), "cut-0")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "receipt")
	for _, c := range []struct {
		text []byte
		ok   bool
	}{{file, true}, {[]byte(strings.Replace(string(file), `"size": `, `"size": 1`, 1)), false}} {
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := verify.Path(t.Context(), path, verify.Options{Key: f.keys.Public()})
		if err != nil || report.Kind != verify.Receipt || report.OK != c.ok || (report.Receipt != nil) != c.ok {
			t.Errorf("%+v, %v", report, err)
		}
	}
	// An old receipt holds after a rotation, and there are new ones.
	if _, err := keys.Rotate(t.Context(), f.keyDir, f.bucket, f.clock()); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.now = f.now.Add(time.Minute)
	f.mu.Unlock()
	r := day("rotated")
	r.MailTo, r.Destination = nil, "box"
	f.submit(t, r)
	f.until(t, r.ID, is(exporter.Done))
	ring, err := keys.Load(t.Context(), f.bucket)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"cut-0", "rotated"} {
		file, err := f.states.Receipt(t.Context(), id)
		if err == nil {
			_, err = ring.OpenReceipt(file)
		}
		if err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// Where there is no key to sign with, nothing is sent that should have a receipt, and the test of the destination says so.
func TestNoReceiptWithoutKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	dir := t.TempDir()
	cfg := localSFTP(t, dir)
	cfg.Receipt = true
	d := exporter.Destination{Name: "box", Organization: "acme", SFTP: cfg}
	if err := os.Remove(filepath.Join(f.keyDir, keys.PrivateFile)); err != nil {
		t.Fatal(err)
	}
	f.run(t, d)
	r := day("none")
	r.MailTo, r.Destination = nil, "box"
	f.submit(t, r)
	if e := f.until(t, "none", is(exporter.Failed)); !strings.Contains(e.Error, "sftp.receipt is on") || !strings.Contains(e.Error, "seal.key") {
		t.Errorf("got %q", e.Error)
	}
	if names := list(t, dir); len(names) != 0 {
		t.Errorf("the folder has %q", names)
	}
	report, err := f.exporter.Test(t.Context(), d)
	if err != nil || report.OK || report.Steps[len(report.Steps)-1].State != sftp.StepFailed || !strings.Contains(report.Error, "seal.key") {
		t.Errorf("%+v, %v", report, err)
	}
}

// Requirement I13: the test of a destination by mail asks the server, and sends nothing.
func TestMailDestinationIsTried(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	d := exporter.Destination{Name: "people", Organization: "acme", Mail: []string{"a@example.com", "b@example.com"}}
	for name, c := range map[string]struct {
		options smtpd.Options
		port    int
		says    string // with $AT for the server's address
	}{
		"takes it": {smtpd.Options{NoTLS: true}, 0, ""},
		"refuses": {
			smtpd.Options{NoTLS: true, Refuse: func(to string) error {
				if strings.HasPrefix(to, "b@") {
					return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such person"}
				}
				return nil
			}},
			0,
			"mail: recipient refused: send to b@example.com by $AT: 550 \"5.1.1 no such person\": check the address",
		},
		"nobody there": {smtpd.Options{NoTLS: true}, 1, "mail: connection failed: send to a@example.com, b@example.com by $AT: "},
	} {
		c.options.Dir = t.TempDir()
		server, err := smtpd.Start(context.WithoutCancel(t.Context()), c.options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		cfg := mail.Config{Host: "127.0.0.1", Port: server.Port(), TLS: mail.NoTLS, From: "audit@example.com", Timeout: 5 * time.Second}
		if c.port != 0 {
			cfg.Port = c.port
		}
		sender, err := mail.New(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		x := exporter.New(f.bucket, f.states, f.links, sender, f.client.JS, exporter.Config{Settings: f.settings, PublicURL: "https://audit.example.com/"})
		report, err := x.Test(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(c.says, "$AT", cfg.Address())
		if report.OK != (want == "") || !strings.HasPrefix(report.Error, want) || c.port == 0 && report.Error != want {
			t.Errorf("%s: it says %q and should %q", name, report.Error, want)
		}
		if n := len(server.Mails()); n != 0 {
			t.Errorf("%s: %d mails were sent", name, n)
		}
	}
	// Without a mail server, that it can't be asked is not tried.
	x := exporter.New(f.bucket, f.states, f.links, nil, f.client.JS, exporter.Config{Settings: f.settings})
	report, err := x.Test(t.Context(), d)
	if err != nil || report.OK || len(report.Steps) != 2 || report.Steps[1].State != sftp.StepNotTried {
		t.Errorf("%+v, %v", report, err)
	}
}
