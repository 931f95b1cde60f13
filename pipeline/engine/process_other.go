//go:build !linux

package engine

import (
	"os"
	"syscall"
)

// childAttributes keep the terminal's interrupt from the child. That it ends with its parent is left to
// the end of its standard input.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func newSpoolFile() (*os.File, error) { return newTemporaryFile() }
