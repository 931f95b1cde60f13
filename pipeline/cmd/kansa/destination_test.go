package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/pipeline/operator"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

// The fields of a file are added to those that there are, and --set has the last word.
func TestDestinationFieldsFromFile(t *testing.T) {
	t.Parallel()
	fields := map[string]any{"sftp": map[string]any{"user": "kansa", "port": 22}, "format": "csv"}
	f := fieldFlags{File: "-", Set: []string{"sftp.path=/incoming"}}
	const file = "sftp: {host: sftp.example.com, port: 2222}\nnotify: [ops@acme.example]\n"
	if err := f.apply(&env{stdin: strings.NewReader(file)}, fields); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(fields)
	const want = `{"format":"csv","notify":["ops@acme.example"],"sftp":{"host":"sftp.example.com","path":"/incoming","port":2222,"user":"kansa"}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

// Requirements I1, I4, I13, I14: a destination is made, tried, changed, paused and removed by commands, and gets
// its archives.
func TestDestinationCommands(t *testing.T) {
	s := startServers(t)
	dir := filepath.Join(t.TempDir(), "sftp")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := sshd.Start(t.Context(), sshd.Options{Dir: dir, User: "kansa", Password: "open sesame"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	start(t, "run", "-c", s.config, "writer", "rollup", "exporter", "api")
	at := "--nats=" + s.broker.URL()
	do := func(want int, args ...string) string {
		t.Helper()
		code, out, errs := kansa(t, "", append(args, at)...)
		if code != want {
			t.Errorf("kansa %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, errs)
		}
		return out + errs
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, _, _ := kansa(t, "", "destination", "list", at)
		return code == 0, nil
	})

	host, port, _ := strings.Cut(server.Addr(), ":")
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	add := []string{
		"destination", "add", "acme/archive", "-s", "sftp.host=" + host, "-s", "sftp.port=" + port, "-s", "sftp.user=kansa", "-s", "sftp.password=@" + secret,
		"-s", "schedule={every: 1s, period: 2s}",
	}
	// The server's key is not known yet: nothing is kept, and the report says what to accept.
	if out := do(1, add...); !strings.Contains(out, server.KnownHosts()) || !strings.Contains(out, "Nothing was kept") || !strings.Contains(out, "not tried") {
		t.Errorf("an unknown host key:\n%s", out)
	}
	add = append(add, "-s", "sftp.host_keys=["+server.HostKeyFingerprint()+"]", "-s", "sftp.path=/", "-s", "sftp.receipt=true", "-s", "sftp.verify=sha256",
		"-s", "sftp.checksum_file=true")
	if out := do(0, add...); !strings.Contains(out, "is kept") {
		t.Errorf("got:\n%s", out)
	}
	if out := do(1, add...); !strings.Contains(out, "there already") {
		t.Errorf("a second one:\n%s", out)
	}
	if out := do(1, "destination", "add", "acme/wrong", "-s", "sftp.hst=x"); !strings.Contains(out, `"hst"`) {
		t.Errorf("a field that there is not:\n%s", out)
	}
	if out := do(0, "destination", "show", "acme/archive"); strings.Contains(out, "sesame") || !strings.Contains(out, "(hidden)") {
		t.Errorf("shown:\n%s", out)
	}
	if out := do(0, "destination", "test", "acme/archive"); strings.Contains(out, "FAILED") || strings.Contains(out, "not tried") ||
		!strings.Contains(out, "*mlkem768x25519-sha256") {
		t.Errorf("a test:\n%s", out)
	}
	var report exporter.TestReport
	if out := do(0, "destination", "test", "acme/archive", "--json"); json.Unmarshal([]byte(out), &report) != nil || !report.OK || report.SFTP.Offers == nil || len(report.Steps) != 15 {
		t.Errorf("a test in JSON:\n%s", out)
	}
	if out := do(1, "destination", "edit", "acme/archive", "-s", "sftp.path=/none"); !strings.Contains(out, "/none") {
		t.Errorf("an edit that does not work:\n%s", out)
	}
	do(0, "destination", "edit", "acme/archive", "-s", "sftp.keepalive=20s")
	do(0, "destination", "pause", "acme/archive")
	if state := listed(t, do(0, "destination", "list", "--json")).State; state != "paused" {
		t.Errorf("state %s", state)
	}
	do(0, "destination", "resume", "acme/archive")
	s.publish(t, 1000, nil)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		files, err := filepath.Glob(filepath.Join(dir, "*.zip"))
		return len(files) > 0 && listed(t, do(0, "destination", "list", "--json")).State == "ok", err
	})
	do(0, "organization", "set", "acme", "--exports-per-day=1")
	if out := do(0, "export", "estimate", "-o", "acme", "--to", time.Now().UTC().Add(-2*time.Second).Format(time.RFC3339)); !strings.Contains(out, "events") {
		t.Errorf("an estimate:\n%s", out)
	}
	from, to := time.Now().UTC().Add(-time.Hour).Format(time.RFC3339), time.Now().UTC().Add(-2*time.Second).Format(time.RFC3339)
	var done exporter.Export
	if out := do(0, "export", "start", "-o", "acme", "-d", "archive", "--from", from, "--to", to, "--wait", "--json"); json.Unmarshal([]byte(out), &done) != nil || !done.Receipt {
		t.Errorf("no receipt:\n%s", out)
	}
	receipt, public := filepath.Join(t.TempDir(), "receipt"), filepath.Join(t.TempDir(), "seal.pub")
	if err := os.WriteFile(receipt, []byte(do(0, "export", "receipt", done.ID)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, key, _ := kansa(t, "", "key", "show", "-c", s.config)
	if err := os.WriteFile(public, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := kansa(t, "", "verify", receipt, "--key", public); code != 0 || !strings.Contains(out, done.File) || !strings.Contains(out, server.HostKeyFingerprint()) {
		t.Errorf("verify the receipt: %d\n%s%s", code, out, errs)
	}
	if out := do(1, "export", "receipt", "none"); !strings.Contains(out, "has no receipt") {
		t.Errorf("got:\n%s", out)
	}
	if out := do(0, "export", "start", "-o", "acme", "-d", "archive", "--from", from, "--to", to); !strings.Contains(out, "costs nothing") {
		t.Errorf("the same again:\n%s", out)
	}
	if out := do(1, "export", "start", "-o", "acme", "-t", "access", "-d", "archive", "--from", from, "--to", to); !strings.Contains(out, "no more exports today") {
		t.Errorf("beyond the quota:\n%s", out)
	}
	do(0, "destination", "remove", "acme/archive")
	if out := do(1, "destination", "test", "acme/archive"); !strings.Contains(out, "no such destination") {
		t.Errorf("removed:\n%s", out)
	}
}

func listed(t *testing.T, out string) operator.DestinationStatus {
	t.Helper()
	var d operator.DestinationStatus
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("%v in %s", err, strconv.Quote(out))
	}
	return d
}
