package sftp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// guardedConn gives every read and write a deadline, so that a cut network ends an upload after the
// idle timeout and not after the quarter of an hour that TCP takes. The reader of the SSH session is
// always in Read; keepalives make a living server say something within the timeout.
type guardedConn struct {
	net.Conn
	idle time.Duration
	// heard is what the server says before there are keys.
	heard greeting

	mu    sync.Mutex
	limit time.Time // no read or write may last beyond; zero: none
	cause error     // the first failure, which the layers above do not tell
}

func (c *guardedConn) Read(p []byte) (int, error) {
	if err := c.arm(c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if c.heard.hear(p[:n]) {
		return 0, errForeign // what speaks another protocol would be waited for in vain
	}
	c.note("read", err)
	return n, err
}

func (c *guardedConn) Write(p []byte) (int, error) {
	if err := c.arm(c.Conn.SetWriteDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.note("write", err)
	return n, err
}

// arm is under the lock, lest a deadline computed before a new limit be set after it.
func (c *guardedConn) arm(set func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return set(c.deadline())
}

func (c *guardedConn) deadline() time.Time {
	d := time.Now().Add(c.idle)
	if !c.limit.IsZero() && c.limit.Before(d) {
		return c.limit
	}
	return d
}

// setLimit lets nothing last beyond t, what is under way included. The zero time takes that back.
func (c *guardedConn) setLimit(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = t
	// A failure here is of a closed connection, and the next read or write tells.
	_ = c.Conn.SetDeadline(c.deadline())
}

func (c *guardedConn) note(action string, err error) {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return // closing is our own doing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	switch {
	case errors.Is(err, io.EOF):
		c.cause = fmt.Errorf("the server closed the connection: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded) && c.limit.IsZero():
		c.cause = fmt.Errorf("nothing happened for %v: %w", c.idle, err)
	default:
		c.cause = fmt.Errorf("%s: %w", action, err)
	}
}

// failure is what ended the connection, or nil while it is good.
func (c *guardedConn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}
