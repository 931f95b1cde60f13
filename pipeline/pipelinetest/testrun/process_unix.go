//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// alone starts cmd in a process group of its own.
func alone(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// dump makes the tests of cmd print where they are, and end. go test itself ignores the signal.
func dump(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }

// end kills cmd and what it started.
func end(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
