//go:build linux

package chaos

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// call is a system call about a file, a directory or a socket.
type call struct {
	name string
	path string // of its descriptor, or its first argument
	text string // the other arguments
}

func (c *call) syncs() bool { return c.name == "fsync" || c.name == "fdatasync" }

func (c *call) sends() bool {
	return strings.HasPrefix(c.path, "TCP") || strings.HasPrefix(c.path, "socket")
}

// watcher is told of calls in the order in which they began and ended. What is sent counts from when the call
// begins, what is written or synced from when it has ended.
type watcher interface {
	begins(thread string, c *call)
	ends(thread string, c *call)
}

// traced runs this test binary as a process with its system calls traced, and returns what ends it and the
// file of the trace.
func traced(t *testing.T, env string) (end func(), trace string) {
	t.Helper()
	if err := canTrace(); err != nil {
		require(t, fmt.Sprintf("the order of system calls needs strace: %v", err))
	}
	dir := t.TempDir()
	trace = filepath.Join(dir, "trace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// A string of a write is long enough for a burst of messages.
	cmd := exec.Command("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "1000000", "-o", trace,
		"-e", "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2", self)
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if said, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("it said:\n%.5000s", said)
		}
	})
	return func() { // the process ends, and strace with it
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}, trace
}

var (
	tracedCall    = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<(.*?)>(.*)$`)
	tracedRename  = regexp.MustCompile(`^(\d+) +(rename\w*)\((?:AT_FDCWD\S*, )?"(.*?)"(.*)$`)
	tracedPieces  = regexp.MustCompile(`", iov_len=\d+}, {iov_base="`) // between the pieces of one write
	tracedResumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
)

// watch reads a trace.
func watch(t *testing.T, trace string, w watcher) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begun := map[string]*call{} // by thread
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		line := lines.Text()
		failed := strings.Contains(line[max(0, len(line)-200):], ") = -1 ")
		if m := tracedResumed.FindStringSubmatch(line); m != nil {
			if c := begun[m[1]]; c != nil && !failed {
				w.ends(m[1], c)
			}
			delete(begun, m[1])
			continue
		}
		m := tracedCall.FindStringSubmatch(line)
		if m == nil {
			if m = tracedRename.FindStringSubmatch(line); m == nil {
				continue
			}
		}
		c := &call{m[2], m[3], tracedPieces.ReplaceAllString(m[4], "")}
		w.begins(m[1], c)
		switch {
		case strings.HasSuffix(line, "<unfinished ...>"):
			begun[m[1]] = c
		case !failed:
			w.ends(m[1], c)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

// require skips a test for want of something, unless everything is required.
func require(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
