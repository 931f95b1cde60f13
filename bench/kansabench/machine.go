package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"
)

// machine says what the figures were had on.
type machine struct {
	CPU        string  `json:"cpu"`
	Cores      int     `json:"cores"`
	MemoryGiB  float64 `json:"memory_gib"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	NATSServer string  `json:"nats_server"`
	ClickHouse string  `json:"clickhouse"` // asked of the engine when one runs
	OpenSSH    string  `json:"openssh,omitempty"`
	Commit     string  `json:"commit,omitempty"`
	// Load is the machine's load average when the run began: above a fraction, others were at work.
	Load string `json:"load"`
}

func (m machine) String() string {
	return fmt.Sprintf("%d × %s, %.0f GiB, %s; %s; nats-server %s; ClickHouse %s; %s; commit %s; load at the start %s.",
		m.Cores, m.CPU, m.MemoryGiB, m.Kernel, m.Go, m.NATSServer, m.ClickHouse, m.OpenSSH, m.Commit, m.Load)
}

func thisMachine(ctx context.Context) machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version(), NATSServer: server.VERSION}
	m.CPU = procLine("/proc/cpuinfo", "model name")
	kb, _ := strconv.ParseFloat(strings.TrimSuffix(procLine("/proc/meminfo", "MemTotal"), " kB"), 64)
	m.MemoryGiB = kb / (1 << 20)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	m.OpenSSH = said(ctx, "ssh", "-V")
	m.Commit = said(ctx, "git", "describe", "--always", "--dirty")
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load, _, _ = strings.Cut(string(load), " ")
	return m
}

func procLine(path, key string) string {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// said is what a program says of itself, or nothing.
func said(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
