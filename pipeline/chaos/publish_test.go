//go:build linux

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// account is what the publisher knows: every id it handed over, and whether it was acknowledged.
type account struct {
	acked map[uuid.UUID]bool
	n     int // of those
	// published are the last of them, to be published again now and then.
	published   []schema.Event
	republished int
}

// outcome is nil if the event was acknowledged, once that is decided.
type outcome func(ctx context.Context) error

// The ways in.
const (
	byLibrary = "the library"
	byHTTP    = "HTTP"
	bySpool   = "an application with a spool"
)

// intake is a way in.
type intake interface {
	publish(ctx context.Context, e schema.Event) (outcome, error)
	// close sends what waits, and returns when every outcome is decided.
	close(ctx context.Context) error
}

func (s *stack) intake(ctx context.Context, p *plan) (intake, error) {
	switch p.way {
	case bySpool:
		var err error
		s.app, err = s.startApplication(p)
		return s.app, err
	case byHTTP:
		return &poster{url: s.gateway, key: s.publisherKey, each: p.perMessage, patience: 2 * time.Second, retryFor: p.retryFor, client: &http.Client{Transport: &http.Transport{}}}, nil
	}
	client, err := broker.Connect(ctx, broker.Options{URL: "nats://" + s.net.links["publisher-broker"].Listen, Name: "publisher", Logger: s.log})
	if err != nil {
		return nil, err
	}
	publisher, err := producers.New(client.JS, producers.Config{
		MaxEvents: p.perMessage, RetryFor: p.retryFor, AckTimeout: 2 * time.Second, Logger: s.log,
	})
	return &library{client, publisher}, err
}

type library struct {
	client    *broker.Client
	publisher *producers.Publisher
}

func (l *library) publish(ctx context.Context, e schema.Event) (outcome, error) {
	ack, err := l.publisher.PublishAsync(ctx, e)
	return ack.Wait, err
}

func (l *library) close(ctx context.Context) error {
	_ = l.publisher.Close(ctx) // each event's outcome is looked at
	l.client.NC.Close()        // without a flush: nothing of it matters any more
	return nil
}

// poster sends requests of some events each, and each again under its key until it is answered with 202.
type poster struct {
	key      string // of a publisher
	url      string
	each     int
	patience time.Duration // with one try
	retryFor time.Duration
	client   *http.Client

	open  *request // is being filled
	n     int      // events in it
	under sync.WaitGroup
}

type request struct {
	body bytes.Buffer
	done chan struct{}
	err  error // when done
}

func (p *poster) publish(ctx context.Context, e schema.Event) (outcome, error) {
	if p.open == nil {
		p.open, p.n = &request{done: make(chan struct{})}, 0
	}
	r := p.open
	line, err := codec.AppendJSON(nil, &e)
	if err != nil {
		return nil, err
	}
	r.body.Write(append(line, '\n'))
	if p.n++; p.n == p.each {
		p.send(ctx)
	}
	return func(ctx context.Context) error {
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}

func (p *poster) send(ctx context.Context) {
	r := p.open
	p.open = nil
	key := uuid.NewString()
	p.under.Go(func() {
		defer close(r.done)
		ctx, cancel := context.WithTimeout(ctx, p.retryFor)
		defer cancel()
		r.err = until(ctx, p.retryFor, func() error { return p.post(ctx, key, r.body.Bytes()) })
	})
}

// post is one try. Only 202 says that all of it is on disk; 207 that some is.
func (p *poster) post(ctx context.Context, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", codec.ContentNDJSON)
	req.Header.Set("Idempotency-Key", key)
	req.Header.Set("Authorization", "Bearer "+p.key)
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(res.Body) // cut or not: the status says it
	if res.StatusCode != http.StatusAccepted {
		return fmt.Errorf("%s: %.300s", res.Status, answer)
	}
	return nil
}

func (p *poster) close(ctx context.Context) error {
	if p.open != nil {
		p.send(ctx)
	}
	p.under.Wait()
	p.client.CloseIdleConnections()
	return nil
}

// until tries something again and again, and returns its last error if it has one for so long.
func until(ctx context.Context, limit time.Duration, try func() error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, last: %w", ctx.Err(), err)
		case <-deadline.C:
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-tick.C:
		}
	}
}
