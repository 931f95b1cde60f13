package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// kindGateway is NDJSON posted to the gateway.
const kindGateway = "gateway"

const (
	// requestEvents is how many events a request has, of all organizations and trails as they come.
	requestEvents = 200
	// connections are enough that the gateway always has requests at hand, and none waits long.
	connections = 64
)

type gatewaySettings struct {
	Broker string `json:"broker"`
}

// gatewayPart is the gateway, put together as package pipeline does.
func gatewayPart(ctx context.Context, s *session) (r report, err error) {
	var set gatewaySettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	client, err := broker.Connect(ctx, broker.Options{URL: set.Broker, Name: "bench gateway", Logger: warnings()})
	if err != nil {
		return r, err
	}
	defer client.Close()
	d := config.Default()
	c := d.Gateway
	publisher, err := producers.New(client.JS, producers.Config{RetryFor: c.RetryFor, Logger: warnings()})
	if err != nil {
		return r, err
	}
	g, err := gateway.New(publisher, gateway.Config{
		Access:  gateway.Loopback{},
		MaxBody: c.MaxBody, MaxEvents: c.MaxEvents, Memory: c.Memory, ClientMemory: c.ClientMemory, MaxRequests: c.MaxRequests,
		Timeout: c.Timeout, Window: d.Streams.DuplicateWindow, Logger: warnings(),
	})
	if err != nil {
		return r, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return r, fmt.Errorf("listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle(gateway.Path, g)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	count := func() report {
		st := g.Stats()
		return report{URL: "http://" + l.Addr().String(), Acked: st.Accepted, Rejected: st.Rejected}
	}
	ctx = s.untilTold(ctx, nil)
	s.say(count())
	wait := s.tell(ctx, count)
	<-ctx.Done()
	wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err = errors.Join(server.Shutdown(closing), publisher.Close(closing))
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return count(), err
}

// prepareBodies makes n events of the pool into bodies of requests.
func prepareBodies(n int) (bodies [][]byte, err error) {
	var body []byte
	events := 0
	eachEvent(n, func(e *schema.Event) {
		e.ID = [16]byte{} // as in the other kinds, ids are made on the way
		var failed error
		if body, failed = codec.AppendJSON(body, e); failed != nil {
			err = fmt.Errorf("encode an event: %w", failed)
		}
		body = append(body, '\n')
		if events++; events == requestEvents {
			bodies = append(bodies, body)
			body, events = nil, 0
		}
	})
	return bodies, err
}

// gatewayLoad posts bodies made beforehand. What is counted as acknowledged is what the answers say.
func gatewayLoad(url string, p *pace) (load func(context.Context) error, count func() report, err error) {
	bodies, err := prepareBodies(poolEvents)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, WriteBufferSize: 64 << 10, DisableCompression: true}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	var acked, sent atomic.Uint64
	count = func() report { return report{Published: p.next.Load(), Acked: acked.Load(), Bytes: sent.Load()} }
	load = func(ctx context.Context) error {
		defer transport.CloseIdleConnections()
		var g errgroup.Group
		for range connections {
			g.Go(func() error {
				for {
					first, ok := p.take(ctx, requestEvents)
					if !ok {
						return nil
					}
					body := bodies[first/requestEvents%uint64(len(bodies))]
					n, err := post(context.WithoutCancel(ctx), client, url, body)
					acked.Add(n)
					sent.Add(uint64(len(body)))
					if err != nil {
						return err
					}
				}
			})
		}
		return g.Wait()
	}
	return load, count, nil
}

// post returns how many events were accepted.
func post(ctx context.Context, client *http.Client, url string, body []byte) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("post: %w", err)
	}
	req.Header.Set("Content-Type", codec.ContentNDJSON)
	res, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("post: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	var a struct {
		Accepted uint64 `json:"accepted"`
	}
	if err := json.Unmarshal(answer, &a); err != nil || res.StatusCode != http.StatusAccepted || a.Accepted != requestEvents {
		return a.Accepted, fmt.Errorf("post %d events: %s: %.500s", requestEvents, res.Status, answer)
	}
	return a.Accepted, nil
}
