//go:build linux

package sftptest

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy stands between a client and a server and is the network that fails.
type Proxy struct {
	listener net.Listener
	target   string
	// after is how many bytes pass before something happens; negative: never. They are counted on the
	// way to the server, or, with replies, on the way back.
	after   atomic.Int64
	replies atomic.Bool
	hole    atomic.Bool

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
	done   chan struct{}
	owned  sync.WaitGroup
}

// NewProxy forwards to addr until the test ends, at first faithfully.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &Proxy{listener: l, target: addr, done: make(chan struct{})}
	p.after.Store(-1)
	p.owned.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.cut()
		close(p.done)
		p.owned.Wait()
	})
	return p
}

// Port is where clients connect on loopback.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// CutAfter cuts all connections once n more bytes went to the server.
func (p *Proxy) CutAfter(n int64) { p.fail(n, false, false) }

// CutRepliesAfter cuts all connections once n more bytes came from the server: what it was asked is
// done, and nobody hears of it.
func (p *Proxy) CutRepliesAfter(n int64) { p.fail(n, false, true) }

// HoleAfter lets nothing pass any more, in either direction, once n more bytes went to the server. No
// connection is closed: that is a network that was unplugged.
func (p *Proxy) HoleAfter(n int64) { p.fail(n, true, false) }

func (p *Proxy) fail(n int64, hole, replies bool) {
	p.hole.Store(hole)
	p.replies.Store(replies)
	p.after.Store(n)
}

// Heal makes the proxy faithful again, to new connections.
func (p *Proxy) Heal() { p.fail(-1, false, false) }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.owned.Go(func() { p.forward(client) })
	}
}

func (p *Proxy) forward(client net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	late := p.closed
	p.mu.Unlock()
	if late {
		p.cut()
	}
	var both sync.WaitGroup
	lost := &atomic.Bool{} // this connection fell into a hole, for good
	both.Go(func() { p.copy(server, client, lost, true) })
	both.Go(func() { p.copy(client, server, lost, false) })
	both.Wait()
	_ = client.Close()
	_ = server.Close()
}

func (p *Proxy) copy(dst, src net.Conn, lost *atomic.Bool, up bool) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && up != p.replies.Load() && p.spend(int64(n)) {
			if !p.hole.Load() {
				p.cut()
				return
			}
			lost.Store(true)
		}
		if lost.Load() {
			// Neither read nor written any more, until the test ends.
			<-p.done
			return
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if c, ok := dst.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, src)
}

// spend counts n bytes and reports whether the allowance is used up.
func (p *Proxy) spend(n int64) bool {
	for {
		left := p.after.Load()
		if left < 0 {
			return false
		}
		if p.after.CompareAndSwap(left, max(0, left-n)) {
			return left-n <= 0
		}
	}
}

func (p *Proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, as of a cable cut and a router that noticed
		}
		_ = c.Close()
	}
	p.conns = nil
}
