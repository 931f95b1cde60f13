// Package clickhousetest runs the ClickHouse server that is installed on the machine, for tests of the
// native protocol and of what only a server has. It listens on loopback, keeps everything in the test's
// directory, and never downloads anything.
package clickhousetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BinaryEnv names the environment variable that points to another server than the one in the path.
const BinaryEnv = "KANSA_CLICKHOUSE_SERVER"

// Find returns the server's binary, or an error that says how to get it.
func Find() (string, error) {
	if path := os.Getenv(BinaryEnv); path != "" {
		return path, nil
	}
	for _, name := range []string{"clickhouse-server", "/usr/sbin/clickhouse-server", "/usr/bin/clickhouse-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find a ClickHouse server: none installed; run \"apt-get install clickhouse-server\", or set %s", BinaryEnv)
}

// StartServer runs a server until the test ends and returns its addresses, host and port, for the native
// protocol and for HTTP. User "default" has no password.
func StartServer(t testing.TB) (nativeAddr, httpAddr string) {
	t.Helper()
	binary, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Another process may take a free port before the server does; then it ends, and others are tried.
	for attempt := range 5 {
		native, http := freePort(t), freePort(t)
		config := filepath.Join(dir, fmt.Sprintf("config%d.xml", attempt))
		write(t, config, fmt.Sprintf(configXML, native, http, dir, dir, dir, dir, filepath.Join(dir, "users.xml")))
		write(t, filepath.Join(dir, "users.xml"), usersXML)
		nativeAddr, httpAddr = fmt.Sprintf("127.0.0.1:%d", native), fmt.Sprintf("127.0.0.1:%d", http)
		if run(t, binary, config, httpAddr) {
			return nativeAddr, httpAddr
		}
	}
	t.Fatal("start a ClickHouse server: it ended at once, five times")
	return "", ""
}

// run starts a server, reports whether it answers, and leaves its end to the test's cleanup.
func run(t testing.TB, binary, config, addr string) bool {
	t.Helper()
	output := &syncBuffer{}
	cmd := exec.Command(binary, "--config-file="+config)
	cmd.Dir = filepath.Dir(config)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a ClickHouse server: %v", err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // ends by a signal
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ping", nil)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if err == nil && res.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-exited:
			t.Logf("the ClickHouse server ended: %s", output)
			return false
		case <-ctx.Done():
			t.Fatalf("start a ClickHouse server: no answer: %s", output)
		case <-poll.C:
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The root element has this name in versions before 21, and later ones still take it.
const configXML = `<?xml version="1.0"?>
<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <tcp_port>%d</tcp_port>
  <http_port>%d</http_port>
  <path>%s/data/</path>
  <tmp_path>%s/tmp/</tmp_path>
  <user_files_path>%s/files/</user_files_path>
  <format_schema_path>%s/schemas/</format_schema_path>
  <users_config>%s</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <timezone>UTC</timezone>
  <mark_cache_size>67108864</mark_cache_size>
</yandex>
`

const usersXML = `<?xml version="1.0"?>
<yandex>
  <profiles><default><max_memory_usage>2000000000</max_memory_usage></default></profiles>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </default>
  </users>
  <quotas><default></default></quotas>
</yandex>
`
