package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// asKansa makes the test binary the program itself.
const asKansa = "KANSA_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asKansa) != "" {
		main()
	}
	pipelinetest.Main()
	m.Run()
}

// start runs kansa as a process of its own; it ends with the test.
func start(t *testing.T, args ...string) (*exec.Cmd, *lockedBuffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asKansa+"=1")
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		await.Return(t, await.Limit, "the killed process to end", func() { _ = cmd.Wait() })
		if t.Failed() {
			t.Logf("kansa %s said:\n%s", strings.Join(args, " "), out)
		}
	})
	return cmd, out
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// kansa runs a command within the test and returns its exit code and output.
func kansa(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code = run(ctx, args, io.Reader(strings.NewReader(stdin)), &out, &errs)
	return code, out.String(), errs.String()
}
