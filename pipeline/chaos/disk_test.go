//go:build linux

package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// disk is a small file system of its own.
type disk struct {
	dir     string
	ballast string
}

func mount(dir string, size int64) (*disk, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		return nil, fmt.Errorf("mount a small disk: %w", err)
	}
	return &disk{dir, filepath.Join(dir, ".ballast")}, nil
}

func (d *disk) unmount() error { return syscall.Unmount(d.dir, syscall.MNT_DETACH) }

// fill leaves so many bytes free, or none if it has fewer.
func (d *disk) fill(leave int64) error {
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		return err
	}
	n := int64(s.Bavail)*s.Bsize - leave
	if n <= 0 {
		return nil
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, n); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	return nil
}

func (d *disk) empty() error {
	if err := os.Remove(d.ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tracer is an strace at a process whose calls it lets fail.
type tracer struct {
	cmd *exec.Cmd
}

// failSyncs has the syncs of a process fail, from the nth on or, with once, the nth alone, until stop.
func failSyncs(pid, nth int, once bool) (*tracer, error) {
	when := strconv.Itoa(nth)
	if !once {
		when += "+"
	}
	t := &tracer{}
	t.cmd = exec.Command("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when="+when,
		"-o", "/dev/null", "-p", strconv.Itoa(pid))
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("attach strace: %w", err)
	}
	return t, nil
}

// stop detaches.
func (t *tracer) stop() {
	_ = t.cmd.Process.Signal(syscall.SIGTERM) // it may have ended with its process
	ended := make(chan struct{})
	go func() { _ = t.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = t.cmd.Process.Kill()
		<-ended
	}
}

// canMount tries it once.
var canMount = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "kansa-mount-")
	if err != nil {
		return false
	}
	defer func() { _ = os.Remove(dir) }() // it is empty
	d, err := mount(dir, 1<<20)
	return err == nil && d.unmount() == nil
})

// canTrace attaches strace to a process of ours.
var canTrace = sync.OnceValue(func() error {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		return err
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	cmd := exec.Command("strace", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "-p", strconv.Itoa(other.Process.Pid))
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start strace: %w", err)
	}
	defer func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }()
	line, err := bufio.NewReader(said).ReadString('\n')
	if !strings.Contains(line, "attached") {
		return fmt.Errorf("strace can not attach: %s (%w)", strings.TrimSpace(line), err)
	}
	return nil
})
