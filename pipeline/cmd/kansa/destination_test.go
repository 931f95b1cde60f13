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
	if out := do(1, "export", "start", "-o", "acme", "-t", "access", "-d", "archive", "--from", from, "--to", to); !strings.Contains(out, "export quota reached") {
		t.Errorf("beyond the quota:\n%s", out)
	}
	do(0, "destination", "remove", "acme/archive")
	if out := do(1, "destination", "test", "acme/archive"); !strings.Contains(out, "no such destination") {
		t.Errorf("removed:\n%s", out)
	}
}

// The commands of README.md about destinations are executed as they are written, with a server of the test in place of
// sftp.example.com. Fields of a file are used by add and by edit.
func TestReadmeDestinationCommands(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	dir := t.TempDir()
	for _, name := range []string{"incoming", "archives"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	server, err := sshd.Start(t.Context(), sshd.Options{Dir: dir, User: "kansa", Password: "open sesame"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	start(t, "run", "-c", s.config, "exporter")
	s.untilSetUp(t)
	at := "--nats=" + s.broker.URL()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, out, errs := kansa(t, "", "destination", "list", at)
		return code == 0, out + errs
	})
	readme, err := os.ReadFile(filepath.Join("..", "..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n## Destinations\n")
	if !ok {
		t.Fatal("README.md has no section Destinations")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	_, sftpSection, _ := strings.Cut(string(readme), "\n### Delivering by SFTP\n")
	sftpSection, _, _ = strings.Cut(sftpSection, "\n## ")
	_, fields, _ := strings.Cut(section, "```yaml\n# nightly.yaml\n")
	fields, _, _ = strings.Cut(fields, "```")
	host, port, _ := strings.Cut(server.Addr(), ":")
	fields = strings.NewReplacer("sftp.example.com", host, "port: 22", "port: "+port, "SHA256:…", server.HostKeyFingerprint()).Replace(fields)
	files := t.TempDir()
	for name, text := range map[string]string{"nightly.yaml": fields, "password": "open sesame\n", "pw": "open sesame\n"} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	inFiles := strings.NewReplacer("nightly.yaml", filepath.Join(files, "nightly.yaml"), "@", "@"+files+"/")
	executed := 0
	do := func(line string) string {
		t.Helper()
		line, _, _ = strings.Cut(line, " # ")
		args := append(strings.Fields(inFiles.Replace(line))[1:], at)
		code, out, errs := kansa(t, "", args...)
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", line, code, out, errs)
		}
		executed++
		return out
	}
	edit := filepath.Join(files, "edit.yaml")
	if err := os.WriteFile(edit, []byte("notify: [other@acme.example]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(section + sftpSection) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "kansa destination ") {
			continue
		}
		do(line)
		switch {
		case strings.Contains(line, " add "):
			shown := listed(t, do("kansa destination list --json"))
			if shown.SFTP == nil || shown.SFTP.Host != host || shown.Schedule == nil || shown.Schedule.TimeZone != "Asia/Tokyo" || len(shown.Notify) != 1 {
				t.Errorf("%s: the fields of the file are not used: %+v", line, shown)
			}
		case strings.Contains(line, " edit "):
			do("kansa destination edit acme/nightly -f " + edit)
			shown := listed(t, do("kansa destination list --json"))
			if shown.SFTP.Path != "/archives" || len(shown.Notify) != 1 || shown.Notify[0] != "other@acme.example" {
				t.Errorf("after an edit: %+v", shown)
			}
		}
	}
	if executed < 9 {
		t.Errorf("%d commands were executed", executed)
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
