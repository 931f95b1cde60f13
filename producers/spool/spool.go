// Package spool keeps messages in a directory while the broker can't be reached, so that they outlive the
// application.
//
// It owns the directory and what is in it; it never publishes.
package spool

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// ErrInUse means that another process has the directory.
	ErrInUse = errors.New("the spool is in use by another process")
	// ErrDamaged means that a file is not what was written. It is set aside under another name.
	ErrDamaged = errors.New("a spooled message is damaged")
)

const (
	suffix     = ".msg"
	unfinished = ".tmp"
	aside      = ".damaged"
	refused    = ".refused"
)

// Spool is an open directory. It is safe for concurrent use.
type Spool struct {
	dir  string
	max  int64
	lock *os.File

	mu    sync.Mutex
	bytes int64
	names []string // oldest first
	sizes map[string]int64
	last  int64 // number of the newest
}

// Open takes a directory, which is made if it is not there, and finds what was left in it. At most max bytes are
// kept.
func Open(dir string, max int64) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	if err := lockFile(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrInUse, dir), lock.Close())
	}
	s := &Spool{dir: dir, max: max, lock: lock, sizes: map[string]int64{}}
	files, err := os.ReadDir(dir) // sorted by name, which begins with a number of fixed width
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the spool: %w", err), lock.Close())
	}
	for _, f := range files {
		switch {
		case strings.HasSuffix(f.Name(), unfinished): // nobody was told that it is kept
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, errors.Join(fmt.Errorf("tidy the spool: %w", err), lock.Close())
			}
		case strings.HasSuffix(f.Name(), suffix):
			info, err := f.Info()
			if err != nil {
				return nil, errors.Join(fmt.Errorf("read the spool: %w", err), lock.Close())
			}
			s.names = append(s.names, f.Name())
			s.sizes[f.Name()] = info.Size()
			s.bytes += info.Size()
			_, _ = fmt.Sscanf(f.Name(), "%d", &s.last)
		}
	}
	return s, nil
}

// Close gives the directory back. What is in it stays.
func (s *Spool) Close() error { return s.lock.Close() }

// Stats returns how many messages and bytes are kept.
func (s *Spool) Stats() (messages int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names), s.bytes
}

// head is the first line of a file.
type head struct {
	Subject string              `json:"subject"`
	Header  map[string][]string `json:"header"`
	Size    int                 `json:"size"`
	SHA256  string              `json:"sha256"`
}

// Put keeps a message; when it returns nil, it is on disk.
func (s *Spool) Put(msg *nats.Msg) error {
	sum := sha256.Sum256(msg.Data)
	line, err := json.Marshal(head{msg.Subject, msg.Header, len(msg.Data), hex.EncodeToString(sum[:])})
	if err != nil {
		return fmt.Errorf("spool a message: %w", err)
	}
	size := int64(len(line)) + 1 + int64(len(msg.Data))
	s.mu.Lock()
	if s.bytes+size > s.max {
		s.mu.Unlock()
		return fmt.Errorf("%w: %d bytes are kept, at most %d", ErrFull, s.bytes, s.max)
	}
	s.bytes += size
	s.last = max(s.last+1, time.Now().UnixNano())
	name := fmt.Sprintf("%020d%s", s.last, suffix)
	s.mu.Unlock()
	if err := s.write(name, line, msg.Data); err != nil {
		s.mu.Lock()
		s.bytes -= size
		s.mu.Unlock()
		return fmt.Errorf("spool a message: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _ := slices.BinarySearch(s.names, name)
	s.names = slices.Insert(s.names, at, name)
	s.sizes[name] = size
	return nil
}

func (s *Spool) write(name string, line, data []byte) error {
	path := filepath.Join(s.dir, name)
	f, err := os.OpenFile(path+unfinished, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		if err = os.Rename(path+unfinished, path); err == nil {
			return syncDir(s.dir)
		}
	}
	return errors.Join(err, os.Remove(path+unfinished))
}

// Oldest returns the message that was kept first and its name, or nothing. One that is damaged is set aside, and
// the error says so; ask again for the next.
func (s *Spool) Oldest() (name string, msg *nats.Msg, err error) {
	s.mu.Lock()
	if len(s.names) == 0 {
		s.mu.Unlock()
		return "", nil, nil
	}
	name = s.names[0]
	s.mu.Unlock()
	msg, err = read(filepath.Join(s.dir, name))
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(fmt.Errorf("%w: it is set aside as %s", err, name+aside), s.setAside(name, aside))
	}
	return name, msg, err
}

func read(path string) (*nats.Msg, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a spooled message: %w", err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	line, err := r.ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read a spooled message: %w", err)
	}
	var h head
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read a spooled message: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != h.SHA256 {
		return nil, fmt.Errorf("%w: %d bytes of %d, or others", ErrDamaged, len(data), h.Size)
	}
	return &nats.Msg{Subject: h.Subject, Header: h.Header, Data: data}, nil
}

// Remove forgets a message, which is safe elsewhere.
func (s *Spool) Remove(name string) error {
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
		return fmt.Errorf("remove a spooled message: %w", err)
	}
	s.forget(name)
	return nil
}

// Refuse sets a message aside that the broker will never take.
func (s *Spool) Refuse(name string) error { return s.setAside(name, refused) }

func (s *Spool) setAside(name, as string) error {
	if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(s.dir, name+as)); err != nil {
		return fmt.Errorf("set a spooled message aside: %w", err)
	}
	s.forget(name)
	return nil
}

func (s *Spool) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := slices.BinarySearch(s.names, name); ok {
		s.names = slices.Delete(s.names, at, at+1)
		s.bytes -= s.sizes[name]
		delete(s.sizes, name)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
