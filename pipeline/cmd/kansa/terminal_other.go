//go:build !linux && !darwin

package main

import (
	"io"
	"os"
)

// Elsewhere kansa top prints one look.
func terminalSize(*os.File) (columns, rows int) { return 0, 0 }

func readKeys(io.Reader, chan<- byte) (restore func(), err error) { return func() {}, nil }
