package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// distance stands between clients and a server, and is far away: whatever is sent arrives a while later, at
// whatever rate it was sent.
type distance struct {
	listener net.Listener
	target   string
	delay    time.Duration // in each direction
	owned    sync.WaitGroup
	cancel   context.CancelFunc
}

func newDistance(ctx context.Context, target string, delay time.Duration) (*distance, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	d := &distance{listener: l, target: target, delay: delay, cancel: cancel}
	d.owned.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			d.owned.Go(func() { d.carry(ctx, client) })
		}
	})
	return d, nil
}

func (d *distance) port() int { return d.listener.Addr().(*net.TCPAddr).Port }

func (d *distance) close() error {
	err := d.listener.Close()
	d.cancel()
	d.owned.Wait()
	return err
}

func (d *distance) carry(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.target)
	if err != nil {
		return
	}
	defer server.Close()
	defer context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})()
	var both sync.WaitGroup
	both.Go(func() { d.oneWay(server, client) })
	both.Go(func() { d.oneWay(client, server) })
	both.Wait()
}

type parcel struct {
	data []byte
	due  time.Time
}

// parcels on the way at once; of 64 KiB each they are far more than any window of SSH.
const parcels = 1024

func (d *distance) oneWay(to, from net.Conn) {
	way := make(chan parcel, parcels)
	free := make(chan []byte, parcels)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			var buf []byte
			select {
			case buf = <-free:
			default:
				buf = make([]byte, 64<<10)
			}
			n, err := from.Read(buf)
			if n > 0 {
				way <- parcel{buf[:n], time.Now().Add(d.delay)}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for p := range way {
		time.Sleep(time.Until(p.due))
		if !broken {
			_, err := to.Write(p.data)
			broken = err != nil
		}
		select {
		case free <- p.data[:cap(p.data)]:
		default:
		}
	}
	reader.Wait()
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}
