//go:build linux

package chaos

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
)

// TestAckNeverPrecedesFsync watches the system calls of a broker that is set up as every one of ours: before it
// writes the acknowledgement of a message to a socket, it has written the message to a file of the stream, and
// that file was synced in between.
func TestAckNeverPrecedesFsync(t *testing.T) {
	t.Parallel()
	if err := canTrace(); err != nil {
		require(t, fmt.Sprintf("the order of system calls needs strace: %v", err))
	}
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort(rand.New(rand.NewPCG(uint64(os.Getpid()), 0)))
	if err != nil {
		t.Fatal(err)
	}
	// A string of a write is long enough for a burst of messages.
	cmd := exec.Command("strace", "-f", "-qq", "-y", "-s", "1000000", "-e", "trace=write,writev,pwrite64,pwritev,fsync,fdatasync", "-o", trace, self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", envBroker, filepath.Join(dir, "data"), port))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	c, err := connect(t, fmt.Sprintf("nats://127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	err = c.Setup(t.Context(), broker.Settings{DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	marks := publishMarked(t, c.JS)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil { // the broker ends, and strace with it
		t.Fatal(err)
	}
	_ = cmd.Wait()
	checkOrder(t, trace, marks)
}

// publishMarked publishes one by one, and then many at once, and returns what is in each message by its sequence.
func publishMarked(t *testing.T, js jetstream.JetStream) map[uint64]string {
	t.Helper()
	marks := map[uint64]string{}
	var mu sync.Mutex
	publish := func(mark string) {
		ack, err := js.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte(mark))
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		marks[ack.Sequence] = mark
	}
	for i := range 30 {
		publish(fmt.Sprintf("<one by one %d>", i))
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { publish(fmt.Sprintf("<all at once %d>", i)) })
	}
	all.Wait()
	return marks
}

var (
	tracedCall    = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<(.*?)>(.*)$`)
	tracedResumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
	tracedAck     = regexp.MustCompile(`\\"stream\\": ?\\"` + broker.StreamAudit + `\\", ?\\"seq\\": ?(\d+)`)
)

// checkOrder reads a trace in the order in which calls began and ended. A sync counts from its end, a write to
// a file from its end, one to a socket from its beginning.
func checkOrder(t *testing.T, trace string, marks map[uint64]string) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type call struct{ name, path, text string }
	begun := map[string]call{}       // by thread
	written := map[string]string{}   // mark: the file it lies in and is not synced
	durable := map[string]bool{}     // marks
	acked := map[uint64]bool{}       // sequences
	waiting := map[string]uint64{}   // marks that were not seen in a file yet
	pending := map[string][]string{} // marks that a sync under way is of, by thread
	for seq, mark := range marks {
		waiting[mark] = seq
	}
	begin := func(thread string, c call) {
		switch {
		case c.name == "fsync" || c.name == "fdatasync":
			for mark, path := range written {
				if path == c.path {
					pending[thread] = append(pending[thread], mark)
				}
			}
		case strings.HasPrefix(c.path, "TCP") || strings.HasPrefix(c.path, "socket"):
			for _, m := range tracedAck.FindAllStringSubmatch(c.text, -1) {
				seq, err := strconv.ParseUint(m[1], 10, 64)
				if err != nil || marks[seq] == "" {
					continue
				}
				acked[seq] = true
				if !durable[marks[seq]] {
					t.Errorf("message %d was acknowledged, and it was not synced: written to %q", seq, written[marks[seq]])
				}
			}
		}
	}
	end := func(thread string, c call, ok bool) {
		switch {
		case c.name == "fsync" || c.name == "fdatasync":
			if ok {
				for _, mark := range pending[thread] {
					durable[mark] = true
					delete(written, mark)
				}
			}
			delete(pending, thread)
		case strings.Contains(c.path, "/streams/"+broker.StreamAudit+"/msgs/"):
			for mark := range waiting {
				if strings.Contains(c.text, mark) {
					written[mark] = c.path
					delete(waiting, mark)
				}
			}
		}
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	n := 0
	for ; lines.Scan(); n++ {
		line := lines.Text()
		if m := tracedResumed.FindStringSubmatch(line); m != nil {
			if c, ok := begun[m[1]]; ok {
				end(m[1], c, !strings.Contains(line, "= -1"))
				delete(begun, m[1])
			}
			continue
		}
		m := tracedCall.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		c := call{m[2], m[3], m[4]}
		begin(m[1], c)
		if strings.HasSuffix(line, "<unfinished ...>") {
			begun[m[1]] = c
			continue
		}
		end(m[1], c, !strings.Contains(line, "= -1"))
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(acked) != len(marks) || len(waiting) > 0 {
		t.Errorf("of %d messages, the trace of %d lines has %d acknowledgements and lacks %d records", len(marks), n, len(acked), len(waiting))
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
