package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/demo"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func TestHelpIsWorthReading(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"", "up", "run", "publish", "export start", "export list", "export status", "deadletter list", "deadletter replay", "deadletter discard", "check-config", "demo", "verify", "prove", "key show", "key rotate", "doctor", "top", "trail list", "trail on", "trail off"} {
		code, out, errs := kansa(t, "", append(strings.Fields(args), "--help")...)
		if code != 0 || !strings.Contains(out, "Usage: kansa") || errs != "" || len(strings.Split(out, "\n")) < 8 {
			t.Errorf("kansa %s --help: exit code %d\n%s%s", args, code, out, errs)
		}
	}
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"nonsense"}, exitUsage, []string{"nonsense"}},
		{[]string{"run", "cook", "-c", file("a.yaml", "data_dir: x\n")}, exitFailed, []string{`role "cook" is not known`, "writer, rollup, exporter, api"}},
		{[]string{"run", "writer", "-c", file("b.yaml", "data_dir: x\n")}, exitUsage, []string{"nats.url is empty", "clickhouse.url is empty"}},
		{[]string{"check-config", file("c.yaml", "rollup:\n  hours: 1h\n")}, exitUsage, []string{"c.yaml", "hours", ":2:"}},
		{[]string{"check-config", file("d.yaml", "rollup: {hour: 7m}\nwriter: {inserts: -1}\n")}, exitUsage, []string{"rollup.hour is 7m0s", "writer.inserts is -1"}},
		{[]string{"check-config", file("e.yaml", "destinations:\n- {name: a, organization: o, sftp: {host: h, user: u, host_keys: [nonsense]}}\n")}, exitUsage, []string{"destinations[0]", "host_keys[0]", "password"}},
		{[]string{"check-config", filepath.Join(dir, "none.yaml")}, exitFailed, []string{"none.yaml", "no such file"}},
		{[]string{"publish", "--nats", "nats://127.0.0.1:1", "-"}, exitFailed, []string{"127.0.0.1:1", "kansa up"}},
		{[]string{"publish", "--mapping", "cloudtrial", "-"}, exitFailed, []string{`"cloudtrial" is neither built in (auditd, cloudtrail, `}},
		{[]string{"demo", "--input", file("x.ndjson", "{}\n"), "--exit"}, exitFailed, []string{"holds no event", "--mapping"}},
		{[]string{"export", "start", "-o", "acme", "--from", "yesterday", "-d", "x"}, exitFailed, []string{"--from", "2026-11-22"}},
		{[]string{"export", "start", "-o", "acme", "--from", "2026-11-22", "--to", "2026-11-21", "-d", "x"}, exitFailed, []string{"is not before"}},
		{[]string{"deadletter", "replay"}, exitFailed, []string{"their numbers, --all, or --like"}},
	} {
		code, out, errs := kansa(t, "", c.args...)
		if code != c.code {
			t.Errorf("kansa %s: exit code %d, want %d", strings.Join(c.args, " "), code, c.code)
		}
		for _, s := range c.says {
			if !strings.Contains(errs, s) {
				t.Errorf("kansa %s does not say %q:\n%s%s", strings.Join(c.args, " "), s, out, errs)
			}
		}
	}
}

func TestCheckConfigPrintsAllAndHidesSecrets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kansa.yaml")
	text := `rollup: {hour: 30m}
mail: {host: smtp.example.com, username: u, password: hunter2, from: a@b.example}
exports: {public_url: "https://audit.example.com"}
destinations:
- name: nightly
  organization: acme
  sftp: {host: sftp.example.com, user: u, password: hunter3, path: /in}
  schedule: {cron: "0 30 2 * * *", time_zone: Asia/Tokyo}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := kansa(t, "", "check-config", path)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, want := range []string{"hour: 30m0s", "insert_timeout: 20s", "days: 730", "time_zone: Asia/Tokyo", "nightly"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "hunter") {
		t.Errorf("a secret is shown:\n%s", out)
	}
}

// kansa publish refuses bad lines with file, line and reason, publishes the rest, and stores a file that is
// published twice once. Dead letters are listed and replayed.
func TestPublish(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	start(t, "run", "writer", "--config", s.config)
	s.untilSetUp(t)
	good := func(n int) string {
		return fmt.Sprintf(`{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"s","event":"e","action":"a","description":"%d"}`, n)
	}
	input := good(1) + "\n{]\n\n" + good(2) + "\n" + strings.Replace(good(3), `"source":"s",`, "", 1) + "\n" + good(4)
	rejects, file := filepath.Join(t.TempDir(), "rejects"), filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		code, out, errs := kansa(t, "", "publish", "--nats", s.broker.URL(), "--json", "--rejects", rejects, file)
		if code != exitFailed || !strings.Contains(out, `"published":3,"acked":3,"rejected":2`) {
			t.Errorf("exit code %d: %s%s", code, out, errs)
		}
		for _, want := range []string{file + ":2: refused: the event is not JSON at byte 2", file + ":5: refused: source is missing"} {
			if !strings.Contains(errs, want) {
				t.Errorf("it does not say %q:\n%s", want, errs)
			}
		}
	}
	pipelinetest.UntilStored(t, s.store, 3, time.Minute)
	kept, err := os.ReadFile(rejects)
	if err != nil || strings.Count(string(kept), "{]\n") != 2 {
		t.Errorf("rejects are %q, %v", kept, err)
	}
	if _, err := s.client.JS.Publish(t.Context(), "audit.events.acme.activity", []byte("{]")); err != nil {
		t.Fatal(err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, out, errs := kansa(t, "", "deadletter", "list", "--nats", s.broker.URL())
		return code == 0 && strings.Contains(out, "not JSON") && strings.Contains(out, `"{]"`), out + errs
	})
	mended := filepath.Join(t.TempDir(), "mended")
	if err := os.WriteFile(mended, []byte(good(5)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := kansa(t, "", "deadletter", "replay", "1", "--data", mended, "--nats", s.broker.URL()); code != 0 {
		t.Error(errs)
	}
	pipelinetest.UntilStored(t, s.store, 4, time.Minute)
}

// Requirement N7: the demo, as a person and as a program runs it, with the real engines inside.
func TestDemo(t *testing.T) {
	t.Parallel()
	cmd, out := start(t, "demo", "--exit", "--json", "--events", "5000", "--hour", "1s", "--dir", t.TempDir())
	var err error
	await.Return(t, 5*time.Minute, "the demo to end", func() { err = cmd.Wait() })
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var r demo.Result
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Fatalf("the last line is no JSON: %v\n%s", err, out)
	}
	for name, n := range map[string]uint64{
		"published": r.Published, "acked": r.Acked, "stored": r.Stored, "distinct": r.Distinct,
		"partition_rows": r.PartitionRows, "sftp_rows": r.SFTPRows, "link_rows": r.LinkRows,
	} {
		if n != 5000 {
			t.Errorf("%s is %d", name, n)
		}
	}
	if !r.Verified || r.Rejected != 0 || r.Partitions == 0 {
		t.Errorf("got %+v", r)
	}
	if !strings.Contains(out.String(), "Every count agrees") {
		t.Errorf("no word for people:\n%s", out)
	}
}
