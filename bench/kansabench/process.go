package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running part, as its parent sees it.
type process struct {
	name   string
	cmd    *exec.Cmd
	orders *json.Encoder
	stdin  io.Closer
	stderr bytes.Buffer
	exited chan struct{} // closed when the process has ended and last holds its last word
	err    error         // valid once exited is closed

	mu     sync.Mutex
	last   report
	spoken bool          // last is a report
	news   chan struct{} // closed, and made anew, by each report
}

// start runs a part with its settings and returns when it has said that it is ready.
func (b *bench) start(ctx context.Context, measurement, name string, settings any) (*process, error) {
	args := []string{"part", name}
	if b.Pprof != "" {
		args = append(args, "--profile", filepath.Join(b.Pprof, measurement+"-"+name))
	}
	// Not ended with ctx: parts end in an order, and each is waited for.
	p := &process{name: name, cmd: exec.CommandContext(context.WithoutCancel(ctx), b.self, args...), exited: make(chan struct{}), news: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	// The parts end by their input's end; the group keeps the terminal's interrupt from them.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.stdin, p.orders = stdin, json.NewEncoder(stdin)
	go p.listen(stdout)
	_ = p.orders.Encode(settings) // if it has died, that is what is told below
	if _, err := p.until(ctx, func(report) bool { return true }); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *process) listen(stdout io.Reader) {
	defer close(p.exited)
	in := json.NewDecoder(stdout)
	for {
		var r report
		if in.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		p.last, p.spoken = r, true
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, stdout)
	err := p.cmd.Wait()
	if err != nil {
		p.err = fmt.Errorf("%s ended: %w: %s", p.name, err, strings.TrimSpace(p.stderr.String()))
	}
}

// now is the last report.
func (p *process) now() report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// until waits for a report that will do.
func (p *process) until(ctx context.Context, enough func(report) bool) (report, error) {
	for {
		p.mu.Lock()
		r, spoken, news := p.last, p.spoken, p.news
		p.mu.Unlock()
		switch {
		case r.Error != "":
			return r, fmt.Errorf("%s: %s", p.name, r.Error)
		case spoken && enough(r):
			return r, nil
		}
		select {
		case <-news:
		case <-p.exited:
			if now := p.now(); now != r {
				continue // its last word came just now
			}
			return r, errors.Join(fmt.Errorf("%s ended too early", p.name), p.err)
		case <-ctx.Done():
			return r, fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
		}
	}
}

// tell gives the part an order.
func (p *process) tell(o order) { _ = p.orders.Encode(o) }

// finish tells the part to end and waits for its last word.
func (p *process) finish(ctx context.Context) (report, error) {
	_ = p.stdin.Close()
	select {
	case <-p.exited:
	case <-ctx.Done():
		return p.now(), errors.Join(fmt.Errorf("wait for %s: %w", p.name, ctx.Err()), p.stop())
	}
	return p.now(), p.err
}

// stop ends the part, by force if it takes too long.
func (p *process) stop() error {
	_ = p.stdin.Close()
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	return p.err
}

// usage is what the kernel says of a process.
type usage struct {
	CPU     time.Duration // user and system, so far
	PeakMiB float64       // of resident memory
}

// clockTick is the unit of /proc/PID/stat, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func usageOf(pid int) usage {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u // it has ended, or this is no Linux
	}
	// The name, in parentheses, may hold anything; what follows it are numbers.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 12 {
		for _, i := range []int{11, 12} {
			n, _ := strconv.ParseInt(fields[i], 10, 64)
			u.CPU += time.Duration(n) * clockTick
		}
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			u.PeakMiB = kb / 1024
		}
	}
	return u
}

func (p *process) usage() usage { return usageOf(p.cmd.Process.Pid) }

// busyCores is the CPU time that everybody on the machine has used since it was started.
func busyCores() time.Duration {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	var busy time.Duration
	for i, f := range strings.Fields(line) {
		// The name; then user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i != 4 && i != 5 && i <= 8 {
			busy += time.Duration(n) * clockTick
		}
	}
	return busy
}
