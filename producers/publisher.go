package producers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/kansa-audit/kansa/producers/recording"
	"github.com/kansa-audit/kansa/producers/spool"
	"github.com/kansa-audit/kansa/producers/turns"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("publisher is closed")

// Publisher publishes events by group commit. It is safe for concurrent use, and the more callers
// share one, the better it packs.
type Publisher struct {
	js      jetstream.JetStream
	cfg     Config
	buffer  *semaphore.Weighted // bytes of events not yet acknowledged
	turns   *turns.Turns        // of messages on their way
	stop    context.CancelFunc  // ends retries
	ctx     context.Context
	senders sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	lanes   map[lane]*laneState
	blocked int // callers that wait for room in the buffer
	// pending holds the batches that are sealed and have no outcome yet.
	pending map[*batch]struct{}
	failed  error // first failure of an asynchronous event since the last Flush

	acked, rejected, spooled, unrecorded atomic.Uint64

	switches   *recording.Follower
	violations *violations

	spool   *spool.Spool // nil if there is none
	trouble trouble      // of any message
	tracer  trace.Tracer // nil if there is none
}

// lane is what the events of one message have in common.
type lane struct {
	organization string
	trail        schema.Trail
	recordedBy   string
	given        bool // their producer gave them ids; others do not wait for the lookup of these
}

// laneState is guarded by Publisher.mu.
type laneState struct {
	open  *batch // still taking events; nil if none
	inFly int
	timer *time.Timer
}

// batch is the events of one message. It is sealed before it is sent.
type batch struct {
	lane   lane
	block  *codec.Block
	held   int64 // bytes taken from Publisher.buffer
	async  bool  // some of its events have nobody waiting
	waited bool  // some have
	alone  bool  // no other events may join
	// callers are the spans in which its events were published.
	callers []trace.SpanContext
	trouble trouble  // of this message
	of      *trouble // of the publisher
	done    chan struct{}
	err     error // valid once done is closed
}

// New returns a publisher on js. The stream has to exist.
func New(js jetstream.JetStream, cfg Config) (*Publisher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("publisher settings: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Publisher{
		js: js, cfg: cfg, ctx: ctx, stop: stop,
		buffer: semaphore.NewWeighted(int64(cfg.MaxBuffered)),
		turns:  turns.New(cfg.MaxInFlightEach, cfg.MaxInFlight, math.MaxInt),
		lanes:  map[lane]*laneState{}, pending: map[*batch]struct{}{}, violations: violationsOf(js),
	}
	if cfg.Tracing != nil {
		p.tracer = cfg.Tracing.Tracer("github.com/kansa-audit/kansa/producers")
	}
	if err := p.openSpool(); err != nil {
		stop()
		return nil, err
	}
	p.switches = recording.Follow(js)
	return p, nil
}

// Publish stores e and returns nil when it is on the broker's disk, or in the spool, if the
// publisher has one and the broker does not answer. An event that breaks a rule is refused with an
// error that answers to schema.ErrInvalid and lists every fault. If ctx ends first, whether e was
// stored is not known: publish it again with the same id. While the stream is full, publishing is
// tried again for Config.RetryFor; the error that ends it, or that reports the end of ctx, answers
// to [ErrStreamFull]. An event of a trail that is switched off is not sent, which is no error: see
// Config.Unrecorded. A subject on which the connection's login may not publish is refused at once, by an error
// that answers to nats.ErrPermissionViolation.
func (p *Publisher) Publish(ctx context.Context, e schema.Event) error {
	ack, err := p.add(ctx, &e, false)
	if err != nil {
		return err
	}
	return ack.Wait(ctx)
}

// PublishAsync takes e and returns; it blocks only while MaxBuffered bytes wait for the broker. What
// becomes of e is told by the Ack, or for all at once by [Publisher.Flush]. An event that breaks a rule
// is refused at once, as by Publish.
func (p *Publisher) PublishAsync(ctx context.Context, e schema.Event) (Ack, error) {
	return p.add(ctx, &e, true)
}

// Ack is the outcome of an asynchronous publish.
type Ack struct{ b *batch }

// Unrecorded tells that what was published was left out, because its trail is switched off.
func (a Ack) Unrecorded() bool { return a.b == unrecorded }

// unrecorded is the batch of all events that are left out.
var unrecorded = func() *batch {
	b := &batch{of: &trouble{}, done: make(chan struct{})}
	close(b.done)
	return b
}()

// leftOut tells whether events of a trail are to be left out, and counts them.
func (p *Publisher) leftOut(organization string, trail schema.Trail, events int) bool {
	if !p.switches.Off(organization, trail) {
		return false
	}
	p.unrecorded.Add(uint64(events))
	if p.cfg.Unrecorded != nil {
		p.cfg.Unrecorded(organization, trail, events)
	}
	return true
}

// Done is closed when the outcome is known.
func (a Ack) Done() <-chan struct{} { return a.b.done }

// Wait returns the outcome: nil means that the event is on the broker's disk, or in the spool.
func (a Ack) Wait(ctx context.Context) error {
	select {
	case <-a.b.done:
		return a.b.err
	case <-ctx.Done():
		return because(fmt.Errorf("wait for the broker's acknowledgement: %w", ctx.Err()), &a.b.trouble, a.b.of)
	}
}

// Stats counts since the publisher was made.
type Stats struct {
	Acked    uint64 // events on the broker's disk, or in the spool
	Spooled  uint64 // of those, events that went into the spool
	Rejected uint64 // events refused because they break a rule
	// Unrecorded are events that were not sent because their trail is switched off.
	Unrecorded uint64
}

// Stats returns the counts.
func (p *Publisher) Stats() Stats {
	return Stats{Acked: p.acked.Load(), Spooled: p.spooled.Load(), Rejected: p.rejected.Load(), Unrecorded: p.unrecorded.Load()}
}

func (p *Publisher) add(ctx context.Context, e *schema.Event, async bool) (Ack, error) {
	now, given := p.cfg.Now(), e.ID != uuid.Nil
	e.Complete(now)
	if err := e.Validate(now); err != nil {
		p.rejected.Add(1)
		return Ack{}, err
	}
	if f := schema.CheckReserved(e.Organization, e.Source); f != nil && p.cfg.RecordedBy != schema.RecordedBySystem {
		p.rejected.Add(1)
		return Ack{}, f
	}
	if p.leftOut(e.Organization, e.Trail, 1) {
		return Ack{unrecorded}, nil
	}
	size := int64(eventSize(e))
	if !p.buffer.TryAcquire(size) {
		if err := p.waitForRoom(ctx, size); err != nil {
			return Ack{}, because(fmt.Errorf("wait for room in the publisher's buffer: %w", err), &p.trouble)
		}
	}
	key := lane{e.Organization, e.Trail, p.cfg.RecordedBy, given}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.buffer.Release(size)
		return Ack{}, ErrClosed
	}
	l := p.laneLocked(key)
	if l.open != nil && (l.open.block.Rows() >= p.cfg.MaxEvents || l.open.block.Bytes()+int(size) > p.cfg.MaxBytes) {
		p.seal(key, l)
	}
	if l.open == nil {
		l.open = &batch{lane: key, block: codec.TakeBlock(), waited: !async, of: &p.trouble, done: make(chan struct{})}
		p.lingerLocked(key, l)
	}
	b := l.open
	if !async {
		p.awaited(l)
	}
	if p.tracer != nil {
		b.calledBy(ctx)
	}
	b.block.Append(e)
	if given {
		b.block.MarkGiven()
	}
	b.held += size
	b.async = b.async || async
	if b.block.Rows() >= p.cfg.MaxEvents || b.block.Bytes() >= p.cfg.MaxBytes {
		p.seal(key, l)
	}
	return Ack{b}, nil
}

// laneLocked finds or makes the state of a lane.
func (p *Publisher) laneLocked(key lane) *laneState {
	l := p.lanes[key]
	if l == nil {
		l = &laneState{}
		p.lanes[key] = l
	}
	return l
}

// awaited notes that somebody waits for what is open in l. p.mu is held.
func (p *Publisher) awaited(l *laneState) {
	if l.open.waited {
		return
	}
	l.open.waited = true
	if l.timer != nil {
		l.timer.Reset(p.cfg.Linger)
	}
}

// waitForRoom takes size bytes of the buffer. While something is on its way, room will come; otherwise
// what waits for company is sent now, or a full buffer could wait for itself.
func (p *Publisher) waitForRoom(ctx context.Context, size int64) error {
	p.mu.Lock()
	p.blocked++
	p.unblockLocked()
	p.mu.Unlock()
	err := p.buffer.Acquire(ctx, size)
	p.mu.Lock()
	p.blocked--
	p.mu.Unlock()
	return err
}

func (p *Publisher) unblockLocked() {
	if p.blocked > 0 && len(p.pending) == 0 {
		for key, l := range p.lanes {
			p.seal(key, l)
		}
	}
}

// eventSize estimates what e holds in memory and in a message.
func eventSize(e *schema.Event) int {
	n := 64 + len(e.Source) + len(e.Event) + len(e.Action) + len(e.Actor.Type) + len(e.Actor.ID) + len(e.Actor.Name) +
		len(e.Target.Type) + len(e.Target.ID) + len(e.Target.Name) + len(e.AppID) + len(e.Context.IP) + len(e.Context.UserAgent) +
		len(e.Context.SessionID) + len(e.Context.TraceID) + len(e.Context.Location) + len(e.Description) +
		len(e.Before) + len(e.After) + len(e.Data) + len(e.DataType)
	for k, v := range e.Attributes {
		n += len(k) + len(v) + 4
	}
	return n
}

// lingerLocked arranges for l.open to be sent when it has waited long enough. With something of the
// lane on its way it waits for that instead: see sent.
func (p *Publisher) lingerLocked(key lane, l *laneState) {
	if l.inFly > 0 {
		return
	}
	b, linger := l.open, p.cfg.LingerAsync
	if b.waited {
		linger = p.cfg.Linger
	}
	l.timer = time.AfterFunc(linger, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if l.open == b {
			p.seal(key, l)
		}
	})
}

// seal closes l.open to further events and hands it to a sender. p.mu is held.
func (p *Publisher) seal(key lane, l *laneState) {
	b := l.open
	if b == nil {
		return
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.open = nil
	p.dispatch(key, l, b)
}

// dispatch hands b, which takes no more events, to a sender. p.mu is held.
func (p *Publisher) dispatch(key lane, l *laneState, b *batch) {
	l.inFly++
	p.pending[b] = struct{}{}
	p.senders.Add(1)
	go func() {
		defer p.senders.Done()
		err := p.send(b)
		p.sent(key, l, b, err)
	}()
}

func (p *Publisher) sealAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.lanes {
		p.seal(key, l)
	}
}

// sent records the outcome of b and sends on what has gathered in its lane meanwhile.
func (p *Publisher) sent(key lane, l *laneState, b *batch, err error) {
	b.err = err
	if err == nil {
		p.acked.Add(uint64(b.block.Rows()))
	}
	b.block.GiveBack()
	b.block = nil
	p.buffer.Release(b.held)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && b.async && p.failed == nil {
		p.failed = err
	}
	close(b.done)
	delete(p.pending, b)
	l.inFly--
	switch {
	case l.inFly > 0:
	case l.open != nil:
		p.lingerLocked(key, l)
	default:
		delete(p.lanes, key)
	}
	p.unblockLocked()
}

// Flush sends what waits and returns when everything taken before it has its outcome. Its error is
// the first failure of an asynchronous event since the last Flush.
func (p *Publisher) Flush(ctx context.Context) error {
	p.sealAll()
	p.mu.Lock()
	waits := make([]*batch, 0, len(p.pending))
	for b := range p.pending {
		waits = append(waits, b)
	}
	p.mu.Unlock()
	for _, b := range waits {
		select {
		case <-b.done:
		case <-ctx.Done():
			return because(fmt.Errorf("flush: %w", ctx.Err()), &b.trouble, &p.trouble)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.failed
	p.failed = nil
	return err
}

// Close flushes, and then refuses further events. If ctx ends first, what is still on its way is given
// up, and its publishers are told; with a spool it is put there. What is in the spool is given Config.RetryFor
// to reach the broker, and the rest stays: the error answers to ErrSpooled. The connection is the caller's to
// close.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.Flush(ctx)
	if err == nil && p.spool != nil {
		p.emptied(ctx)
	}
	p.stop() // after Close nothing may be on its way: what is left by now has had its time
	p.senders.Wait()
	p.switches.Close()
	if p.spool != nil {
		err = errors.Join(err, p.closeSpool())
	}
	return err
}
