package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Kinds of messages.
const (
	kindColumnar = "columnar"
	kindNDJSON   = "ndjson"
	kindSingle   = "single" // JSON, one event a message
)

type producerSettings struct {
	Broker  string `json:"broker"`
	Gateway string `json:"gateway,omitempty"` // address; for that kind, in place of the broker
	Kind    string `json:"kind"`
	// Prepared publishes messages made beforehand, which for columnar ones leaves the SDK out: the
	// broker's ceiling. The other kinds always are: what makes them is no part of Kansa.
	Prepared bool    `json:"prepared"`
	Rate     float64 `json:"rate"` // events a second; 0 is no bound
	// Limit is how many events may be published before an order says more.
	Limit uint64 `json:"limit"`
}

// pace holds producers to a limit and a rate.
type pace struct {
	begun time.Time
	rate  float64
	limit atomic.Uint64
	next  atomic.Uint64
}

// take waits until n more events may be published. It returns false when ctx ends.
func (p *pace) take(ctx context.Context, n int) (first uint64, ok bool) {
	end := p.next.Add(uint64(n))
	for ctx.Err() == nil {
		wait := time.Millisecond
		if p.rate > 0 {
			wait = max(wait, time.Until(p.begun.Add(time.Duration(float64(end)/p.rate*float64(time.Second)))))
		}
		if end <= p.limit.Load() && wait <= time.Millisecond {
			return end - uint64(n), true
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(wait, 10*time.Millisecond)):
		}
	}
	return 0, false
}

func producerPart(ctx context.Context, s *session) (r report, err error) {
	var set producerSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	p := &pace{rate: set.Rate}
	p.limit.Store(set.Limit)
	var load func(context.Context) error
	var count func() report
	if set.Kind == kindGateway {
		load, count, err = gatewayLoad(set.Gateway+gateway.Path, p)
	} else {
		var client *broker.Client
		client, err = broker.Connect(ctx, broker.Options{URL: set.Broker, Name: "bench producer", Logger: warnings()})
		if err != nil {
			return r, err
		}
		defer client.Close()
		if set.Kind == kindColumnar && !set.Prepared {
			load, count, err = sdkLoad(client.JS, p)
		} else {
			load, count, err = messageLoad(client.NC, set.Kind, p)
		}
	}
	if err != nil {
		return r, err
	}
	s.say(r)
	p.begun = time.Now()
	told := s.untilTold(ctx, func(o order) { p.limit.Store(o.Limit) })
	wait := s.tell(told, count)
	err = load(told)
	wait()
	last := count()
	last.Seconds = time.Since(p.begun).Seconds()
	return last, err
}

// sdkLoad publishes by the SDK, as an application with a goroutine a core does.
func sdkLoad(js jetstream.JetStream, p *pace) (load func(context.Context) error, count func() report, err error) {
	pool := prepareEvents(poolEvents)
	pub, err := producers.New(js, producers.Config{Logger: warnings()})
	if err != nil {
		return nil, nil, err
	}
	count = func() report { return report{Published: p.next.Load(), Acked: pub.Stats().Acked} }
	load = func(ctx context.Context) error {
		const chunk = 64
		var g errgroup.Group
		for range runtime.GOMAXPROCS(0) {
			g.Go(func() error {
				for {
					first, ok := p.take(ctx, chunk)
					if !ok {
						return nil
					}
					for i := range uint64(chunk) {
						e := pool[(first+i)%poolEvents]
						e.OccurredAt = time.Now()
						if _, err := pub.PublishAsync(context.WithoutCancel(ctx), e); err != nil {
							return fmt.Errorf("publish: %w", err)
						}
					}
				}
			})
		}
		err := g.Wait()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if failed := pub.Close(closing); err == nil {
			err = failed
		}
		return err
	}
	return load, count, nil
}

// messageLoad publishes messages made beforehand, each with an id of its own.
func messageLoad(nc *nats.Conn, kind string, p *pace) (load func(context.Context) error, count func() report, err error) {
	messages, err := prepareMessages(poolEvents, kind)
	if err != nil {
		return nil, nil, err
	}
	// Enough on the way that the broker never waits for us.
	inFlight := 32
	if kind == kindSingle {
		inFlight = 4096
	}
	var acked, sent atomic.Uint64
	failed := make(chan error, 1)
	// Each runs in the order of the messages, before the future of its message is done.
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(inFlight),
		jetstream.WithPublishAsyncAckHandler(func(_ jetstream.JetStream, msg *nats.Msg, _ *jetstream.PubAck) {
			n, _ := strconv.ParseUint(msg.Header.Get(headerEvents), 10, 64)
			acked.Add(n)
		}),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case failed <- err:
			default:
			}
		}))
	if err != nil {
		return nil, nil, fmt.Errorf("open JetStream: %w", err)
	}
	count = func() report { return report{Published: p.next.Load(), Acked: acked.Load(), Bytes: sent.Load()} }
	load = func(ctx context.Context) error {
		run := strconv.FormatInt(time.Now().UnixNano(), 36)
		for i := 0; ; i++ {
			m := &messages[i%len(messages)]
			if _, ok := p.take(ctx, m.events); !ok {
				break
			}
			msg := nats.NewMsg(m.subject)
			msg.Data = m.data
			msg.Header.Set(nats.MsgIdHdr, run+"-"+strconv.Itoa(i))
			msg.Header.Set(schema.HeaderContentType, m.contentType)
			if m.encoding != "" {
				msg.Header.Set(schema.HeaderContentEncoding, m.encoding)
			}
			msg.Header.Set(headerEvents, strconv.Itoa(m.events))
			if _, err := js.PublishMsgAsync(msg, jetstream.WithStallWait(30*time.Second)); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			sent.Add(uint64(len(m.data)))
		}
		select {
		case <-js.PublishAsyncComplete():
		case <-time.After(time.Minute):
			return fmt.Errorf("%d messages have no acknowledgement after a minute", js.PublishAsyncPending())
		}
		select {
		case err := <-failed:
			return fmt.Errorf("publish: %w", err)
		default:
			return nil
		}
	}
	return load, count, nil
}

// headerEvents tells the producer itself, when the ack comes, how many events it is for.
const headerEvents = "Bench-Events"

type inserterSettings struct {
	Store    storeSettings `json:"store"`
	InFlight int           `json:"in_flight"`
	Rows     int           `json:"rows"` // of one insert
	// Total ends the load by itself; 0 goes on until told.
	Total uint64 `json:"total"`
	// From and Spread say when the rows were recorded: all over the time between; now, if From is zero.
	From   time.Time     `json:"from"`
	Spread time.Duration `json:"spread"`
	// Lane, if not empty, puts all rows under one organization, trail activity.
	Lane string `json:"lane"`
}

const insertTimeout = time.Minute

// inserterPart puts prepared blocks into the table, by the very insert that the writer makes: the engine's
// ceiling, and the way to a table of a given size.
func inserterPart(ctx context.Context, s *session) (r report, err error) {
	var set inserterSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	table, err := set.Store.open(ctx)
	if err != nil {
		return r, err
	}
	defer table.Close()
	blocks := prepareBlocks(poolEvents)
	if set.Lane != "" {
		for i := range blocks {
			blocks[i].lane = lane{set.Lane, schema.Activity}
		}
	}
	var stored, inserts, next, block atomic.Uint64
	count := func() report { return report{Stored: stored.Load(), Inserts: inserts.Load()} }
	s.say(r)
	begun := time.Now()
	told := s.untilTold(ctx, nil)
	telling, quiet := context.WithCancel(told)
	wait := s.tell(telling, count)
	var g errgroup.Group
	for range set.InFlight {
		g.Go(func() error {
			for told.Err() == nil {
				rows := uint64(set.Rows)
				end := next.Add(rows)
				if set.Total > 0 && end > set.Total {
					if end-rows >= set.Total {
						return nil
					}
					rows -= end - set.Total
				}
				var in codec.Insert
				recorded := time.Now().UTC()
				if !set.From.IsZero() {
					recorded = set.From.Add(time.Duration(float64(set.Spread) * float64(end-uint64(set.Rows)) / float64(set.Total)))
				}
				for uint64(in.Rows()) < rows {
					seq := block.Add(1)
					b := &blocks[seq%uint64(len(blocks))]
					in.Add(codec.Part{
						Organization: b.organization, Trail: b.trail, RecordedAt: recorded.Add(time.Duration(in.Rows()) * time.Microsecond).Truncate(time.Microsecond),
						StreamSeq: seq, ExpiresAt: expires(recorded), Block: b.block,
					})
				}
				inserting, cancel := context.WithTimeout(ctx, insertTimeout)
				err := table.Insert(inserting, "bench:"+strconv.FormatUint(end, 10), &in)
				cancel()
				if err != nil {
					return err
				}
				stored.Add(uint64(in.Rows()))
				inserts.Add(1)
			}
			return nil
		})
	}
	err = g.Wait()
	quiet()
	wait()
	last := count()
	last.Seconds = time.Since(begun).Seconds()
	return last, err
}
