//go:build linux || darwin

package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// terminalSize returns 0, 0 for what is no terminal.
func terminalSize(f *os.File) (columns, rows int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// readKeys sends the keys that are pressed, if in is a terminal, until the process ends: what waits for a key can't be
// interrupted. restore has the terminal be as it was.
func readKeys(in io.Reader, keys chan<- byte) (restore func(), err error) {
	f, ok := in.(*os.File)
	if !ok {
		return func() {}, nil
	}
	before, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	if err != nil { // no terminal
		return func() {}, nil //nolint:nilerr // see above
	}
	raw := *before
	raw.Lflag &^= unix.ICANON | unix.ECHO // signals stay: Ctrl-C ends it as always
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), setTermios, &raw); err != nil {
		return nil, fmt.Errorf("set the terminal up: %w", err)
	}
	go func() {
		b := make([]byte, 1)
		for {
			if n, err := f.Read(b); err != nil || n == 0 {
				return
			}
			keys <- b[0]
		}
	}()
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), setTermios, before) }, nil
}
