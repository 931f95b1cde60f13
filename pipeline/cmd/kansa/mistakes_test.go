package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// upIn starts kansa up with a configuration and a data_dir, and waits until it is up.
func upIn(t *testing.T, dir, more string) (cmd *exec.Cmd, out *lockedBuffer, config, nats string) {
	t.Helper()
	config = filepath.Join(dir, "kansa.yaml")
	text := fmt.Sprintf("data_dir: %s\nnats: {port: 0}\napi: {listen: '127.0.0.1:0'}\nrollup: {hour: 1s}\n%s", filepath.Join(dir, "data"), more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out = start(t, "up", "-c", config)
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return strings.Contains(out.String(), "is up"), out })
	found := regexp.MustCompile(`nats://\S+`).FindString(out.String())
	if found == "" {
		t.Fatalf("no address of NATS in:\n%s", out)
	}
	return cmd, out, config, found
}

// A data_dir in which every user may write is reported; one that cannot be made is refused with the remedy.
func TestDataDirOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(data, 0o777); err != nil { //nolint:gosec // that is the mistake
		t.Fatal(err)
	}
	if _, out, _, _ := upIn(t, dir, ""); !strings.Contains(out.String(), "every user of this machine can replace the files of data_dir") {
		t.Errorf("no warning in:\n%s", out)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "create data_dir "+file, "up", "--data-dir", file)
	fails(t, "name a directory that this user may make", "up", "--data-dir", file)
}

// fails runs kansa as a process of its own, which has to end by itself and say something.
func fails(t *testing.T, says string, args ...string) time.Duration {
	t.Helper()
	began := time.Now()
	cmd, out := start(t, args...)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(out.String(), says) {
			t.Errorf("kansa %s: %v, want %q:\n%s", strings.Join(args, " "), err, says, out)
		}
	case <-time.After(time.Minute):
		t.Errorf("kansa %s does not end:\n%s", strings.Join(args, " "), out)
	}
	return time.Since(began)
}

// Row 11: a second process on the same data_dir ends with the reason, and the first goes on, under load too. KANSA_ROUNDS is how often it is tried.
func TestSecondProcessLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, out, config, nats := upIn(t, dir, "")
	data, rounds := filepath.Join(dir, "data"), 3
	if n, err := strconv.Atoi(os.Getenv("KANSA_ROUNDS")); err == nil {
		rounds = n
	}
	reach := []string{"--nats", nats, "--data-dir", data}
	ctx, stop := context.WithCancel(t.Context())
	published := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			var lines strings.Builder
			for range 100 {
				fmt.Fprintf(&lines, `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"s","event":"e","action":"a","description":"%d"}`+"\n", n)
				n++
			}
			if code, _, errs := kansa(t, lines.String(), append([]string{"publish"}, reach...)...); code != 0 {
				t.Errorf("publish: %s", errs)
				break
			}
		}
		published <- n
	}()
	slowest := time.Duration(0)
	for range rounds {
		slowest = max(slowest, fails(t, fmt.Sprintf("use data_dir %s: %s is in use by process %d", data, filepath.Join(data, "lock"), first.Process.Pid), "up", "-c", config))
	}
	stop()
	n := await.Receive(t, await.Limit, "the publisher to end", published)
	t.Logf("%d attempts, the slowest ended after %s; %d events were published meanwhile", rounds, slowest, n)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, text, errs := kansa(t, "", append([]string{"repair"}, reach...)...)
		return code == 0 && strings.Contains(text, "agree"), text + errs
	})
	if code, text, errs := kansa(t, "", append([]string{"doctor"}, reach...)...); code != 0 {
		t.Errorf("doctor: %s%s", text, errs)
	}
	if strings.Contains(out.String(), "level=ERROR") {
		t.Errorf("the first process has errors:\n%s", out)
	}
}

// Row 12: a port that is taken, or is none, is reported with the remedy.
func TestPortsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, taken, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for text, says := range map[string]string{
		"nats: {port: " + taken + "}":                                           "or set nats.listen and nats.port",
		"nats: {port: 99999}":                                                   "nats.port is 99999",
		"nats: {port: 0}\napi: {listen: '127.0.0.1:" + taken + "'}":             "or set api.listen",
		"nats: {port: 0, listen: '203.0.113.1'}\napi: {listen: '127.0.0.1:0'}":  "or set nats.listen",
		"nats: {port: 0}\napi: {listen: '127.0.0.1:0'}\nstreams: {replicas: 2}": "streams.replicas is 2",
	} {
		config := filepath.Join(t.TempDir(), "kansa.yaml")
		if err := os.WriteFile(config, []byte("data_dir: "+filepath.Join(t.TempDir(), "data")+"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		fails(t, says, "up", "-c", config)
	}
}

// Row 10: a local user without the key reaches nothing, and learns which credential is missing; with the key of a publisher, too, nothing but
// publishing works.
func TestToolsRequireTheOperatorKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, _, _, nats := upIn(t, dir, "")
	key := filepath.Join(dir, "data", "operator.key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	empty := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(empty, []byte("kansa_wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with, without := []string{"--nats", nats, "--token-file", key}, []string{"--nats", nats, "--token-file", empty}
	code, secret, errs := kansa(t, "", append([]string{"apikey", "add", "acme/reports"}, with...)...)
	if code != 0 || !strings.HasPrefix(secret, "kansa_") || !strings.Contains(errs, "publisher of acme") {
		t.Fatalf("%d %s %s", code, secret, errs)
	}
	publisher := filepath.Join(t.TempDir(), "publisher")
	if err := os.WriteFile(publisher, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"trail", "off", "acme", "access", "--reason", "to hide"},
		{"organization", "set", "acme", "--retention-days", "1"},
		{"export", "start", "-o", "acme", "-m", "me@elsewhere.example"},
		{"apikey", "list"},
		{"destination", "list"},
		{"deadletter", "list"},
		{"repair"},
		{"replay", "--yes"},
		{"shards", "2"},
		{"top", "--once"},
	} {
		if code, _, errs := kansa(t, "", append(args, without...)...); code == 0 || !strings.Contains(errs, "--token-file") {
			t.Errorf("kansa %s without the key: %d %s", strings.Join(args, " "), code, errs)
		}
	}
	if code, _, errs := kansa(t, "", append([]string{"trail", "off", "acme", "access", "--reason", "to hide"}, "--nats", nats, "--token-file", publisher)...); code == 0 {
		t.Errorf("with the key of a publisher a trail was switched off: %s", errs)
	}
	event := `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"s","event":"e","action":"a"}`
	if code, _, errs := kansa(t, event, "publish", "--nats", nats, "--token-file", publisher); code != 0 {
		t.Errorf("with the key of a publisher: %s", errs)
	}
	if code, _, errs := kansa(t, "", append([]string{"apikey", "revoke", "reports"}, with...)...); code != 0 {
		t.Error(errs)
	}
	if code, _, errs := kansa(t, event, "publish", "--nats", nats, "--token-file", publisher); code == 0 || !strings.Contains(errs, "--token-file") {
		t.Errorf("with a revoked key: %d %s", code, errs)
	}
}
