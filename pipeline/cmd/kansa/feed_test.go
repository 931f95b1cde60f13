package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

const feedPatience = time.Minute

// startBroker starts a broker with the streams; limit is the bytes of AUDIT, 0 for none.
func startBroker(t *testing.T, limit int64) *brokertest.Restartable {
	t.Helper()
	return brokertest.StartRestartable(t, &broker.Settings{
		Replicas: 1, AuditMaxBytes: limit, DuplicateWindow: 10 * time.Minute, AckWait: feedPatience, Hour: time.Hour,
	})
}

// manyLines makes lines of several organizations, without ids.
func manyLines(from, to int) []byte {
	var b bytes.Buffer
	for i := from; i < to; i++ {
		organization := []string{"acme", "acme", "acme", "globex", "initech"}[i%5]
		fmt.Fprintf(&b, `{"occurred_at":"2026-11-28T10:00:00Z","organization":%q,"trail":"activity","source":"s%d","event":"e","action":"a","description":"some words"}`+"\n", organization, i)
	}
	return b.Bytes()
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantEach checks that the stream has n events, each of them once.
func wantEach(t *testing.T, b *brokertest.Restartable, n int) {
	t.Helper()
	times, twice := b.Stored(t).Times, 0
	for _, k := range times {
		if k != 1 {
			twice++
		}
	}
	if len(times) != n || twice > 0 {
		t.Errorf("%d events are stored, %d of them more than once, want %d", len(times), twice, n)
	}
}

// untilMessages waits until the stream has n messages.
func untilMessages(t *testing.T, b *brokertest.Restartable, n uint64) {
	t.Helper()
	js := b.Connect(t).JS
	pipelinetest.Until(t, feedPatience, func() (bool, any) {
		st, err := js.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			return false, err
		}
		return st.CachedInfo().State.Msgs >= n, fmt.Sprintf("%d messages, want %d", st.CachedInfo().State.Msgs, n)
	})
}

type published struct {
	Published, Acked, Rejected int
	NextLine                   int `json:"next_line"`
}

// publishFile publishes a file until ctx ends.
func publishFile(ctx context.Context, t *testing.T, b *brokertest.Restartable, args ...string) (code int, p published, errs string) {
	t.Helper()
	var out, said bytes.Buffer
	code = run(ctx, append([]string{"publish", "--json", "--nats", b.URL()}, args...), strings.NewReader(""), &out, &said)
	if err := json.Unmarshal(out.Bytes(), &p); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), said.String())
	}
	return code, p, said.String()
}

// A file whose publishing was interrupted reports where it stopped. Publishing it again, from its
// beginning, from that place, or when it was only read in part, stores nothing twice.
func TestInterruptedFileStoresNothingTwice(t *testing.T) {
	t.Parallel()
	const lines = 100_000
	text := manyLines(0, lines)
	whole := writeFile(t, "whole.ndjson", text)
	for name, again := range map[string]func(next int) []string{
		"from the beginning": func(int) []string { return []string{whole} },
		"from the place":     func(next int) []string { return []string{"--from-line", fmt.Sprint(next), whole} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			code, first, errs := publishFile(&signalled{Context: ctx, after: lines / 2, cancel: cancel}, t, b, whole)
			if code != exitFailed || !strings.Contains(errs, fmt.Sprintf("stopped at line %d (byte ", first.NextLine)) || !strings.Contains(errs, "by a signal") {
				t.Fatalf("exit code %d, %+v: %s", code, first, errs)
			}
			if first.Acked == 0 || first.Acked >= lines || first.NextLine > lines || first.NextLine%windowLines != 1 {
				t.Errorf("stopped with %+v", first)
			}
			code, second, errs := publishFile(t.Context(), t, b, again(first.NextLine)...)
			if code != 0 || second.NextLine != lines+1 {
				t.Errorf("exit code %d, %+v: %s", code, second, errs)
			}
			wantEach(t, b, lines)
		})
	}
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, 0)
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		code, first, errs := publishFile(t.Context(), t, b, writeFile(t, "cut.ndjson.gz", zipped.Bytes()[:zipped.Len()/2]))
		if code != exitFailed || !strings.Contains(errs, "unexpected EOF") || !strings.Contains(errs, fmt.Sprintf("--from-line %d", first.NextLine)) {
			t.Errorf("exit code %d: %s", code, errs)
		}
		if code, _, errs := publishFile(t.Context(), t, b, writeFile(t, "whole.ndjson.gz", zipped.Bytes())); code != 0 {
			t.Errorf("exit code %d: %s", code, errs)
		}
		wantEach(t, b, lines)
	})
	t.Run("grown", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, 0)
		_, first, _ := publishFile(t.Context(), t, b, writeFile(t, "short.ndjson", manyLines(0, 30_000)))
		if code, _, errs := publishFile(t.Context(), t, b, "--from-line", fmt.Sprint(first.NextLine), whole); code != 0 {
			t.Errorf("exit code %d: %s", code, errs)
		}
		wantEach(t, b, lines)
	})
}

// signalled ends after so many lines, each of which asks for its error.
type signalled struct {
	context.Context
	lines  atomic.Int64
	after  int64
	cancel func()
}

func (s *signalled) Err() error {
	if s.lines.Add(1) == s.after {
		s.cancel()
	}
	return s.Context.Err()
}

// From a pipe, events are sent while it stays open. SIGTERM has what was read sent, and ends the
// command with 0.
func TestPipeIsPublishedWithoutItsEnd(t *testing.T) {
	t.Parallel()
	b := startBroker(t, 0)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "publish", "--nats", b.URL(), "-")
	cmd.Env = append(os.Environ(), asKansa+"=1")
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	pipe, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for i := range 3 {
		if _, err := pipe.Write(manyLines(i, i+1)); err != nil {
			t.Fatal(err)
		}
		untilMessages(t, b, uint64(i+1)) // the pipe is open, and nothing follows
	}
	line := manyLines(3, 4)
	if _, err := pipe.Write(line[:20]); err != nil { // a line that is not whole is not an event
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
	case <-time.After(feedPatience):
		t.Fatalf("it is still alive %s after SIGTERM: %s", feedPatience, out)
	}
	if want := fmt.Sprintf("-: stopped at line 4 (byte %d) by a signal", len(manyLines(0, 3))); !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "3 events published, 3 acknowledged, 0 refused") {
		t.Errorf("it does not say %q:\n%s", want, out)
	}
	wantEach(t, b, 3)
}

// A signal has lines sent that were read from a pipe and wait for others.
func TestPipeFlushesOnSignal(t *testing.T) {
	t.Parallel()
	b := startBroker(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs lockedBuffer
	code := run(ctx, []string{"publish", "--nats", b.URL(), "-"}, &cancelling{data: manyLines(0, 7000), cancel: cancel, blocked: t.Context().Done()}, &out, &errs)
	if code != 0 || !strings.Contains(errs.String(), "stopped at line 7001") {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
	wantEach(t, b, 7000)
}

// cancelling is a pipe that is silent after its data, and causes a signal then.
type cancelling struct {
	data    []byte
	cancel  func()
	blocked <-chan struct{}
}

func (c *cancelling) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		c.cancel()
		<-c.blocked
		return 0, context.Canceled
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// A full stream is reported at once, and publishing goes on when there is room.
func TestPublishReportsFullStream(t *testing.T) {
	t.Parallel()
	b := startBroker(t, 20_000)
	file := writeFile(t, "events", manyLines(0, 30_000))
	var out, errs lockedBuffer
	done := make(chan int, 1)
	go func() { done <- run(t.Context(), []string{"publish", "--nats", b.URL(), file}, nil, &out, &errs) }()
	pipelinetest.Until(t, feedPatience, func() (bool, any) {
		return strings.Contains(errs.String(), "the stream of events is full (maximum bytes exceeded): raise streams.audit_max_bytes"), errs.String()
	})
	if n := strings.Count(errs.String(), "is full"); n > 3 {
		t.Errorf("it is reported %d times:\n%s", n, errs.String())
	}
	b.Settings.AuditMaxBytes = 0
	b.SetUp(t)
	if code := await.Receive(t, await.Limit, "kansa publish to end when the stream has room", done); code != 0 {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
	wantEach(t, b, 30_000)
}
