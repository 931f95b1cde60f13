package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// ErrSecret means that a secret could not be read.
var ErrSecret = errors.New("a secret can not be read")

// Bounds of what is taken for a secret, and for the time that a command has.
const (
	maxSecret      = 64 << 10
	commandTimeout = 30 * time.Second
)

// Set says whether there is one.
func (s Secret) Set() bool { return s.File != "" || len(s.Command) > 0 }

// Read returns the secret without the white space around it; nothing if none is set.
func (s Secret) Read(ctx context.Context) ([]byte, error) {
	var text []byte
	var err error
	switch {
	case !s.Set():
		return nil, nil
	case s.File != "":
		text, err = readPrivate(s.File)
	default:
		text, err = run(ctx, s.Command)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxSecret {
		return nil, fmt.Errorf("%w: %s gave %d bytes: 1 to %d are right", ErrSecret, s.where(), len(text), maxSecret)
	}
	return text, nil
}

// where says where it is read from.
func (s Secret) where() string {
	if s.File != "" {
		return s.File
	}
	return strings.Join(s.Command, " ")
}

func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); info.Mode().IsRegular() && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %o, others may read it: chmod 600 it, and make another secret", path, mode)
	}
	return io.ReadAll(io.LimitReader(f, maxSecret+1))
}

func run(ctx context.Context, command []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // the operator's own
	var said bytes.Buffer
	cmd.Stderr = &said
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w: %.200s", command[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return text, nil
}
