// Package spool keeps messages in a directory while the broker can't be reached, so that they outlive the
// application.
//
// It owns the directory and what is in it; it never publishes. A message is a file of its own: it is there whole
// when its name is, so that a crash leaves no half message, and a damaged one is nobody else's trouble.
package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

var (
	// ErrFull means that a message would take the spool beyond its bound.
	ErrFull = errors.New("the spool is full")
	// ErrInUse means that somebody else has the directory.
	ErrInUse = errors.New("the spool is in use")
	// ErrDamaged means that a file is not what was written.
	ErrDamaged = errors.New("a spooled message is damaged")
)

const (
	suffix     = ".msg"
	unfinished = ".tmp"
	aside      = ".damaged"
)

// Spool is an open directory. It is safe for concurrent use.
type Spool struct {
	dir  string
	max  int64
	lock *os.File

	mu    sync.Mutex
	bytes int64            // of all files, those that are set aside too
	names []string         // oldest first, and then what was postponed
	sizes map[string]int64 // of those
	last  int64            // number of the newest
	// One of these is closed: see Ready and Empty.
	ready, empty chan struct{}
}

// Open takes a directory, which is made if it is not there, and finds what was left in it. At most max bytes are
// kept. The error answers to ErrInUse if another process has it.
func Open(dir string, max int64) (*Spool, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("make the spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	if err := lockFile(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%w by another publisher: %s (%w)", ErrInUse, dir, err), lock.Close())
	}
	s := &Spool{
		dir: dir, max: max, lock: lock, sizes: map[string]int64{},
		ready: make(chan struct{}), empty: make(chan struct{}),
	}
	if err := s.find(); err != nil {
		return nil, errors.Join(fmt.Errorf("read the spool: %w", err), lock.Close())
	}
	if len(s.names) > 0 {
		close(s.ready)
	} else {
		close(s.empty)
	}
	return s, nil
}

// makeDir makes a directory whose name survives a power cut.
func makeDir(dir string) error {
	dir = filepath.Clean(dir)
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// find lists what was left.
func (s *Spool) find() error {
	files, err := os.ReadDir(s.dir) // sorted by name, which begins with a number of fixed width
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		if strings.HasSuffix(name, unfinished) { // nobody was told that it is kept
			if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
				return err
			}
			continue
		}
		if !strings.HasSuffix(name, suffix) && !strings.HasSuffix(name, aside) {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		s.bytes += info.Size()
		if strings.HasSuffix(name, suffix) {
			s.names = append(s.names, name)
			s.sizes[name] = info.Size()
			_, _ = fmt.Sscanf(name, "%d", &s.last) // of another form it is still read in its turn
		}
	}
	return nil
}

// Close gives the directory back. What is in it stays.
func (s *Spool) Close() error {
	if err := s.lock.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("close the spool: %w", err)
	}
	return nil
}

// Stats returns how many messages wait, and the bytes of all files, which include damaged ones.
func (s *Spool) Stats() (messages int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names), s.bytes
}

// Ready is closed while a message waits.
func (s *Spool) Ready() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Empty is closed while none does.
func (s *Spool) Empty() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.empty
}

// Put keeps a message; when it returns nil, it is on disk.
func (s *Spool) Put(msg *nats.Msg) error {
	head, err := encodeHead(msg)
	if err != nil {
		return fmt.Errorf("spool a message: %w", err)
	}
	size := int64(len(head)) + int64(len(msg.Data))
	name, err := s.reserve(size)
	if err != nil {
		return err
	}
	err = write(s.dir, filepath.Join(s.dir, name), head, msg.Data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.bytes -= size
		return fmt.Errorf("spool a message: %w", err)
	}
	// Behind all that are older, for several are written at once.
	at := len(s.names)
	for at > 0 && s.names[at-1] > name {
		at--
	}
	s.names = slices.Insert(s.names, at, name)
	s.sizes[name] = size
	if len(s.names) == 1 {
		close(s.ready)
		s.empty = make(chan struct{})
	}
	return nil
}

// reserve takes room for a file, and gives it a name after all others.
func (s *Spool) reserve(size int64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+size > s.max {
		return "", fmt.Errorf("%w: it has %d bytes, a message of %d more would make it more than %d", ErrFull, s.bytes, size, s.max)
	}
	s.bytes += size
	s.last = max(s.last+1, time.Now().UnixNano())
	return fmt.Sprintf("%020d%s", s.last, suffix), nil
}

// Oldest names the messages that were kept first, at most n.
func (s *Spool) Oldest(n int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.names[:min(n, len(s.names))])
}

// Read returns a message. One that is damaged is set aside under another name, where it takes room until somebody
// has looked at it and removed it; the error answers to ErrDamaged then, and the message waits no more.
func (s *Spool) Read(name string) (*nats.Msg, error) {
	path := filepath.Join(s.dir, name)
	file, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		s.forget(name, true)
		return nil, fmt.Errorf("%w: somebody removed %s", ErrDamaged, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read a spooled message: %w", err)
	}
	msg, err := decode(file)
	if err == nil {
		return msg, nil
	}
	if moveErr := os.Rename(path, path+aside); moveErr != nil {
		return nil, fmt.Errorf("set %s aside, for %s: %w", path, err.Error(), moveErr)
	}
	s.forget(name, false)
	return nil, fmt.Errorf("%w: it is set aside as %s", err, path+aside)
}

// Postpone puts a message behind all others.
func (s *Spool) Postpone(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.Index(s.names, name); at >= 0 {
		s.names = append(slices.Delete(s.names, at, at+1), name)
	}
}

// Remove forgets a message, which is safe elsewhere. Its name may come back with a power cut.
func (s *Spool) Remove(name string) error {
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a spooled message: %w", err)
	}
	s.forget(name, true)
	return nil
}

// forget takes a message off those that wait; gone says that its file takes no room any more.
func (s *Spool) forget(name string, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.Index(s.names, name)
	if at < 0 {
		return
	}
	s.names = slices.Delete(s.names, at, at+1)
	if gone {
		s.bytes -= s.sizes[name]
	}
	delete(s.sizes, name)
	if len(s.names) == 0 {
		close(s.empty)
		s.ready = make(chan struct{})
	}
}
