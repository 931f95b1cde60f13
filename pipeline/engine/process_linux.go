package engine

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes make the kernel kill the child with its parent, and keep the terminal's interrupt from
// it: the parent decides when it stops.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// newSpoolFile makes a file that lives in memory only.
func newSpoolFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("kansa-body", unix.MFD_CLOEXEC)
	if err != nil {
		return newTemporaryFile()
	}
	return os.NewFile(uintptr(fd), "kansa-body"), nil
}
