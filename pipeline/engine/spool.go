package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// spoolMemory is how much of a body stays in Go's memory; larger ones go to a file without a name.
const spoolMemory = 256 << 10

// spool keeps a body outside of Go's heap: in memory that only a file descriptor names, where the system
// has such a thing, else in an unlinked temporary file. It is written once, and then read.
type spool struct {
	limit  int64
	size   int64
	head   []byte // everything, while file is nil
	file   *os.File
	mapped []byte
}

func (s *spool) Write(p []byte) (int, error) {
	if s.limit > 0 && s.size+int64(len(p)) > s.limit {
		return 0, exceptionf(codeLimitExceeded, "The body is larger than %d bytes, the limit of the embedded engine (LIMIT_EXCEEDED)", s.limit)
	}
	if s.file == nil && len(s.head)+len(p) <= spoolMemory {
		s.head = append(s.head, p...)
		s.size += int64(len(p))
		return len(p), nil
	}
	if s.file == nil {
		file, err := newSpoolFile()
		if err != nil {
			return 0, fmt.Errorf("make room for a body: %w", err)
		}
		s.file = file
		if _, err := file.Write(s.head); err != nil {
			return 0, fmt.Errorf("keep a body: %w", err)
		}
		s.head = nil
	}
	n, err := s.file.Write(p)
	s.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("keep a body: %w", err)
	}
	return n, nil
}

// bytes returns all that was written; it stays valid until close.
func (s *spool) bytes() ([]byte, error) {
	if s.file == nil {
		return s.head, nil
	}
	if s.mapped == nil {
		mapped, err := syscall.Mmap(int(s.file.Fd()), 0, int(s.size), syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("read a body: %w", err)
		}
		s.mapped = mapped
	}
	return s.mapped, nil
}

// copyTo sends everything on.
func (s *spool) copyTo(w io.Writer) error {
	data, err := s.bytes()
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func (s *spool) close() {
	if s.mapped != nil {
		_ = syscall.Munmap(s.mapped) // fails only for addresses that are not ours
		s.mapped = nil
	}
	if s.file != nil {
		_ = s.file.Close() // nothing of it is to be kept
		s.file = nil
	}
	s.head = nil
}

// newTemporaryFile is the way of systems without anonymous files.
func newTemporaryFile() (*os.File, error) {
	file, err := os.CreateTemp("", "kansa-body-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
