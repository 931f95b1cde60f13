package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/store"
)

// warnings go to standard error, which the parent shows when the part fails.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type brokerSettings struct {
	Dir string `json:"dir"`
}

// anyPart lets the other parts of the benchmark, which know no key, connect as operators. The broker listens on loopback.
func anyPart(context.Context, string, string) (*broker.Login, error) {
	return &broker.Login{Name: "bench", Operator: true}, nil
}

// brokerPart is the embedded broker with the streams of the pipeline, each set up as kansa up does.
func brokerPart(ctx context.Context, s *session) (r report, err error) {
	var set brokerSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	server, err := broker.StartServer(ctx, broker.ServerOptions{Dir: set.Dir, LogIn: anyPart, Logger: warnings()})
	if err != nil {
		return r, err
	}
	defer server.Close()
	client, err := broker.Connect(ctx, broker.Options{URL: server.URL(), Name: "bench broker"})
	if err != nil {
		return r, err
	}
	defer client.Close()
	c := config.Default()
	err = client.Setup(ctx, broker.Settings{
		Replicas: c.Streams.Replicas, AuditMaxAge: c.Streams.AuditMaxAge, AuditMaxBytes: c.Streams.AuditMaxBytes,
		DuplicateWindow: c.Streams.DuplicateWindow, AckWait: c.Writer.AckWait, Hour: c.Rollup.Hour,
	})
	if err != nil {
		return r, err
	}
	r.URL = server.URL()
	s.say(r)
	<-s.untilTold(ctx, nil).Done()
	return r, nil
}

// storeSettings say where the engine is.
type storeSettings struct {
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

func (s storeSettings) open(ctx context.Context) (*store.Store, error) {
	return store.Open(ctx, store.Options{URL: s.URL, Username: s.Username, Password: s.Password, Logger: warnings()})
}

type writerSettings struct {
	Broker string        `json:"broker"`
	Store  storeSettings `json:"store"`
}

// writerPart is the writer, put together as package pipeline does.
func writerPart(ctx context.Context, s *session) (r report, err error) {
	var set writerSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	client, err := broker.Connect(ctx, broker.Options{URL: set.Broker, Name: "bench writer", Logger: warnings()})
	if err != nil {
		return r, err
	}
	defer client.Close()
	table, err := set.Store.open(ctx)
	if err != nil {
		return r, err
	}
	defer table.Close()
	stream, err := client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return r, fmt.Errorf("look up the stream: %w", err)
	}
	consumer, err := stream.Consumer(ctx, broker.ConsumerWriter)
	if err != nil {
		return r, fmt.Errorf("look up the consumer: %w", err)
	}
	d := config.Default()
	c := d.Writer
	w, err := writer.New([]writer.Stream{consumer}, client.NC, table, tally.Ledger{JS: client.JS}, consumers.DeadLetters{JS: client.JS}, writer.Config{
		MaxRows: c.MaxRows, MaxBytes: c.MaxBytes, Linger: c.Linger, Inserts: c.Inserts, Memory: c.Memory,
		AckWait: c.AckWait, InsertTimeout: c.InsertTimeout, Retention: d.Retention.Expires, Logger: warnings(),
	})
	if err != nil {
		return r, err
	}
	server := w.Server()
	info, err := stream.Info(ctx)
	if err != nil {
		return r, fmt.Errorf("look up the stream: %w", err)
	}
	w.Suspect(server, info.State.LastSeq)
	status := client.NC.StatusChanged(nats.RECONNECTING)
	defer client.NC.RemoveStatusListener(status)
	count := func() report {
		st := w.Stats()
		return report{Stored: st.Stored, Inserts: st.Inserts, Rejected: st.Rejected + st.Failures}
	}
	ctx = s.untilTold(ctx, nil)
	s.say(r)
	defer s.tell(ctx, count)()
	var g errgroup.Group
	g.Go(func() error { return w.Run(ctx) })
	err = g.Wait()
	select {
	case <-status:
		err = fmt.Errorf("the connection to the broker was lost")
	default:
	}
	return count(), err
}
