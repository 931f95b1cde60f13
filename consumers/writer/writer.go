package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/tracecontext"
)

// Stream is a consumer of AUDIT, of all of it or of a shard, as jetstream.Consumer is.
type Stream = consumers.Queue

// Acks takes the acknowledgement of a message, for its reply subject, as nats.Conn does. The message itself
// is not kept until then: what was decoded of it is enough.
type Acks interface {
	Publish(subject string, data []byte) error
}

// Table is audit_events. Its calls are safe for concurrent use.
type Table interface {
	// Insert stores all of in, or nothing. When it returns nil, the rows are on disk. Inserting again
	// under the same token stores nothing twice. After an error it is not known whether the rows are
	// there, or come to be there within the insert's time limit.
	Insert(ctx context.Context, token string, in *codec.Insert) error
	// StoredRows returns how many rows the table has for each of the messages; absent means none.
	StoredRows(ctx context.Context, parts []codec.Part) (map[uint64]int, error)
	// AwaitInserts returns when no insert is under way any more that was, by whomever, when it was called.
	AwaitInserts(ctx context.Context) error
	// StoredElsewhere returns, by the sequence of a message, its rows whose events the table has from an earlier
	// message that was recorded since an instant, in order. Of an earlier message it has all or none.
	StoredElsewhere(ctx context.Context, parts []codec.Part, since time.Time) (map[uint64][]int, error)
	// StoredIDs returns the events of an organization's trail that have some of the ids and were recorded within a time.
	StoredIDs(ctx context.Context, organization string, trail schema.Trail, ids []uuid.UUID, from, to time.Time) (map[uuid.UUID][]StoredID, error)
}

// Ledger takes the account of what was stored; nil means that it is safe there.
type Ledger interface {
	Put(ctx context.Context, tallies []tally.Tally) error
}

// DeadLetters takes what can't be stored; nil means that it is safe there.
type DeadLetters interface {
	Put(ctx context.Context, letters []consumers.DeadLetter) error
}

// Recording knows which trails are switched off. What it returns holds for every message that was received before the
// call: see package recording.
type Recording interface {
	Now(ctx context.Context) (recording.State, error)
}

// Config of a writer. The zero value of a field means its default.
type Config struct {
	// MaxRows and MaxBytes, of messages as they were received and decoded, bound one insert. Defaults
	// 200,000 and 96 MiB.
	MaxRows  int
	MaxBytes int
	// Linger is how long the first event of an insert waits for company when little is going on (a tenth of
	// it after a pause of twice as long); MaxLinger, when much is: large inserts cost the engine far
	// less an event. Defaults 50 ms, 300 ms.
	Linger    time.Duration
	MaxLinger time.Duration
	// Inserts is the number of inserts in flight when they are full. Default 2: one uses about one core of
	// the engine.
	Inserts int
	// Decoders is how many messages are decoded at once. Default: one for each processor, and at least 2.
	Decoders int
	// Memory bounds the bytes of decoded messages held. Default 160 MiB; the process may need two and a half
	// times as much.
	Memory int64
	// AckWait is the consumer's: how long a message is ours. Default 60 s.
	AckWait time.Duration
	// InsertTimeout bounds one insert; less than half of AckWait. Default 20 s.
	InsertTimeout time.Duration
	// DrainTimeout is how long Run goes on for what it has fetched when it is told to stop. Default 8 s.
	DrainTimeout time.Duration
	// Window is how long the broker knows a message by its id, and Settled an instant before which it has no
	// message that is not in the table, by the broker's clock: see kept.go. Default 10 minutes; and that
	// everything is settled, which is so if there is no other writer.
	Window  time.Duration
	Settled func(ctx context.Context) (time.Time, error)
	// IDWindow is how long an id is known that a producer gave an event; 0 stores such events without looking them up. Claims are
	// those of all writers of the stream; default none, which is right for one writer with one insert at a time.
	IDWindow time.Duration
	Claims   Claims
	// Server names the run of the server that gives the messages. A server that was started again may have forgotten whom
	// it gave what, and give it to somebody else at once: so what another run gave is not inserted any more. Empty while
	// there is none. Default: always the same, which is right if deliveries are replicated.
	Server func() string
	// Retention says when events of an organization recorded at a time expire.
	Retention func(organization string, recordedAt time.Time) time.Time
	// Recording says what is left out because its trail is switched off. Default: nothing.
	Recording Recording
	// Tracing has each insert be a span, linked to those of its messages. Default: none, which costs nothing.
	Tracing trace.TracerProvider
	Logger  *slog.Logger
	Now     func() time.Time
}

// leaseMargin is kept between the end of an insert's time limit and the end of a lease.
const leaseMargin = time.Second

func (c Config) withDefaults() (Config, error) {
	if c.MaxRows == 0 {
		c.MaxRows = 200_000
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 96 << 20
	}
	if c.Linger == 0 {
		c.Linger = 50 * time.Millisecond
	}
	if c.MaxLinger == 0 {
		c.MaxLinger = max(300*time.Millisecond, c.Linger)
	}
	if c.Inserts == 0 {
		c.Inserts = 2
	}
	if c.Decoders == 0 {
		c.Decoders = max(2, runtime.GOMAXPROCS(0))
	}
	if c.Memory == 0 {
		c.Memory = 160 << 20
	}
	if c.AckWait == 0 {
		c.AckWait = 60 * time.Second
	}
	if c.InsertTimeout == 0 {
		c.InsertTimeout = 20 * time.Second
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 8 * time.Second
	}
	if c.Window == 0 {
		c.Window = 10 * time.Minute
	}
	if c.Claims == nil {
		c.Claims = alone{}
	}
	if c.Settled == nil {
		c.Settled = func(context.Context) (time.Time, error) { return c.Now(), nil }
	}
	if c.Retention == nil {
		c.Retention = func(_ string, at time.Time) time.Time { return at.AddDate(2, 0, 0) }
	}
	if c.Server == nil {
		c.Server = func() string { return "the same" }
	}
	if c.Recording == nil {
		c.Recording = everything{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.InsertTimeout > c.AckWait/2 {
		return c, fmt.Errorf("insert timeout %s is more than half of the consumer's ack wait %s: a stalled writer could finish after another took over",
			c.InsertTimeout, c.AckWait)
	}
	if least := c.InsertTimeout + leaseMargin + consumers.FetchWait + time.Second; c.AckWait < least {
		return c, fmt.Errorf("the consumer's ack wait %s leaves no time to insert in: give %s at least, or a shorter insert timeout", c.AckWait, least)
	}
	if least := int64(2 * schema.MaxMessageBytes); c.Memory < least {
		return c, fmt.Errorf("writer memory %d is too little for two messages: give %d at least", c.Memory, least)
	}
	return c, nil
}

// Writer is one writer. Any number may run on the same consumers.
type Writer struct {
	cfg    Config
	shards []Stream
	acks   Acks
	table  Table
	ledger Ledger
	dead   DeadLetters
	// rejections are logged by organization.
	rejections rejections
	memory     *semaphore.Weighted
	// pressure says that a message waits for memory.
	pressure chan struct{}
	// inserting counts the inserts under way; inserted says that one has ended.
	inserting atomic.Int64
	inserted  chan struct{}
	suspects  atomic.Pointer[suspects]
	// awaited is the run of the server since whose begin the table was waited for: what inserts of another run left, is there.
	awaited atomic.Value // string
	settled settled
	// Why the last insert failed, dead letters or messages without events could not be settled, and messages wait for switches.
	inserts, settles, switches trouble
	stats                      stats
	tracer                     trace.Tracer // nil if there is none
}

// suspects are the messages that may have been delivered before, whatever they say of themselves: after a crash the
// broker may have forgotten.
type suspects struct {
	server string // the run that upTo holds of; of any other, all are
	upTo   uint64 // the last such sequence
}

func (s *suspects) has(server string, seq uint64) bool { return server != s.server || seq <= s.upTo }

type stats struct{ stored, skipped, duplicates, rejected, unrecorded, inserts, failures, stuck atomic.Uint64 }

// Stats counts since the writer was made.
type Stats struct {
	Stored  uint64 // events inserted
	Skipped uint64 // events that ClickHouse had already
	// Duplicates are events that were left out because their producers had published them before, by their ids.
	Duplicates uint64
	Rejected   uint64 // dead letters
	// Unrecorded are events that were left out because their trail is switched off.
	Unrecorded uint64
	Inserts    uint64
	Failures   uint64 // of inserts
	Stuck      uint64 // of those, inserts that had to be left behind
}

// New returns a writer that takes from all shards of the stream; see Run.
func New(shards []Stream, acks Acks, table Table, ledger Ledger, dead DeadLetters, cfg Config) (*Writer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	w := &Writer{cfg: cfg, shards: shards, acks: acks, table: table, ledger: ledger, dead: dead, memory: semaphore.NewWeighted(cfg.Memory), pressure: make(chan struct{}, 1), inserted: make(chan struct{}, 1), rejections: rejections{now: time.Now}}
	if cfg.Tracing != nil {
		w.tracer = cfg.Tracing.Tracer("github.com/kansa-audit/kansa/consumers/writer")
	}
	w.SuspectAll()
	w.awaited.Store("")
	return w, nil
}

// SuspectAll makes the writer look up every message before it stores it. A new writer does.
func (w *Writer) SuspectAll() { w.suspects.Store(&suspects{upTo: ^uint64(0)}) }

// Suspect makes the writer look up what a run of the server gives up to a sequence, and all that any other run gives.
// Call it at start and after each reconnect, with what Server said and with the stream's last sequence after that.
func (w *Writer) Suspect(server string, upTo uint64) {
	w.suspects.Store(&suspects{server: server, upTo: upTo})
}

// Server names the run of the server that gives the messages, as Config.Server does.
func (w *Writer) Server() string { return w.cfg.Server() }

// Stats returns the counts.
func (w *Writer) Stats() Stats {
	return Stats{
		Stored: w.stats.stored.Load(), Skipped: w.stats.skipped.Load(), Duplicates: w.stats.duplicates.Load(), Rejected: w.stats.rejected.Load(),
		Unrecorded: w.stats.unrecorded.Load(), Inserts: w.stats.inserts.Load(), Failures: w.stats.failures.Load(), Stuck: w.stats.stuck.Load(),
	}
}

// item is one message on its way. It owns size bytes of Writer.memory until it is released.
type item struct {
	msg     jetstream.Msg // until it is decoded
	reply   string        // where it is acknowledged
	subject string        // where it was published
	since   time.Time     // since when it may have been recorded before, if its producer kept it
	part    codec.Part
	tally   tally.Tally
	suspect bool
	server  string // whose run gave it
	// done: the table has it, or is not to have it. What is left is to write that down and to acknowledge it, which
	// anybody may do at any time.
	done    bool
	size    int64
	pending uint64    // messages that waited in the stream behind it
	until   time.Time // the end of the lease; zero when it is not ours any more
	scratch []byte    // what the block's memory is, if the message was compressed
	letters []consumers.DeadLetter
	// rejected is how many dead letters it had, if it was restored.
	rejected int
	span     trace.SpanContext
}

// Run fetches until ctx ends, then stores and acknowledges what it has fetched, and returns.
func (w *Writer) Run(ctx context.Context) error {
	fetched := make(chan *item)
	decoded := make(chan *item)
	settling := make(chan *item, mostSettled)
	full := make(chan []*item)
	// What is fetched is carried to its end even when ctx has ended, but not for long.
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(w.cfg.DrainTimeout, giveUp) })()

	var fetchers, decoders, inserters errgroup.Group
	for _, shard := range w.shards {
		for range fetchersOf(len(w.shards)) {
			fetchers.Go(func() error { w.fetch(ctx, shard, fetched); return nil })
		}
	}
	for range w.cfg.Decoders {
		decoders.Go(func() error { w.decode(work, fetched, decoded, settling); return nil })
	}
	settled := make(chan struct{})
	go func() { defer close(settled); w.settle(work, settling, decoded) }()
	gathering := make(chan struct{})
	go func() { defer close(gathering); w.gather(decoded, full) }()
	for range w.cfg.Inserts {
		inserters.Go(func() error {
			for items := range full {
				w.inserting.Add(1)
				w.store(work, items)
				w.inserting.Add(-1)
				select {
				case w.inserted <- struct{}{}:
				default: // it is told already
				}
			}
			return nil
		})
	}
	_ = fetchers.Wait()
	close(fetched)
	_ = decoders.Wait()
	close(settling)
	<-settled
	close(decoded)
	<-gathering
	close(full)
	return inserters.Wait()
}

// A pull is bounded by bytes, for one of many large messages stalls the connection, and by messages, for
// which the client makes room beforehand.
const (
	fetchBytes    = 8 << 20
	fetchMessages = 1024
)

// fetchersOf is how many fetch from each shard: from one, two, so that one is asking while the other reads. What they
// hold is not in the memory that is counted.
func fetchersOf(shards int) int {
	if shards == 1 {
		return 2
	}
	return 1
}

func (w *Writer) fetch(ctx context.Context, shard Stream, out chan<- *item) {
	for ctx.Err() == nil {
		server := w.cfg.Server()
		if server == "" { // what would be asked for now would be given by the next
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		// The lease is counted from here, before the broker can have handed anything over.
		until := w.cfg.Now().Add(w.cfg.AckWait)
		batch, err := shard.Fetch(fetchMessages, jetstream.FetchMaxBytes(fetchBytes), jetstream.FetchMaxWait(consumers.FetchWait))
		if err == nil {
			for msg := range batch.Messages() {
				out <- &item{msg: msg, until: until, server: server}
			}
			err = batch.Error()
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, nats.ErrTimeout) {
			w.cfg.Logger.Warn("fetch failed, trying again", slog.Any("error", err))
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// decode turns messages into blocks. Messages with dead letters or without events go to settle first.
func (w *Writer) decode(ctx context.Context, in <-chan *item, out, settle chan<- *item) {
	for it := range in {
		if w.tooEarly(ctx, it) {
			continue
		}
		// Taken before the size is known, and given back in part when it is.
		if !w.memory.TryAcquire(schema.MaxMessageBytes) {
			select {
			case w.pressure <- struct{}{}:
			default:
			}
			if w.memory.Acquire(ctx, schema.MaxMessageBytes) != nil {
				continue // told to stop
			}
		}
		it.size = schema.MaxMessageBytes
		if err := w.decodeOne(ctx, it); err != nil {
			w.settles.note(w.cfg.Now(), err)
			w.cfg.Logger.Warn("what can not be stored is not settled, the message will come again", slog.Any("error", err))
			w.release(it)
			continue
		}
		if len(it.letters) > 0 || it.part.Block == nil {
			settle <- it
			continue
		}
		out <- it
	}
}

func (w *Writer) release(it *item) {
	w.memory.Release(it.size)
	it.part.Block = nil
	putScratch(it.scratch)
	it.scratch = nil
}

func (w *Writer) decodeOne(ctx context.Context, it *item) error {
	meta, err := it.msg.Metadata()
	if err != nil {
		return fmt.Errorf("read the message's metadata: %w", err)
	}
	subject, mark := it.msg.Subject(), it.msg.Headers().Get(schema.HeaderMark) != ""
	m := codec.Message{
		ContentType:     it.msg.Headers().Get(schema.HeaderContentType),
		ContentEncoding: it.msg.Headers().Get(schema.HeaderContentEncoding),
		Payload:         it.msg.Data(), RecordedBy: schema.RecordedBy(it.msg.Headers().Get(schema.HeaderRecordedBy)), StreamSeq: meta.Sequence.Stream, RecordedAt: meta.Timestamp.UTC().Truncate(time.Microsecond),
	}
	m.GivenIDs = it.msg.Headers().Get(schema.HeaderGivenIDs) != ""
	if w.tracer != nil {
		it.span = tracecontext.Span(it.msg.Headers())
	}
	it.scratch = getScratch(codec.DecodedLen(m.ContentEncoding, m.Payload))
	m.Scratch = it.scratch
	it.reply, it.subject, it.msg = it.msg.Reply(), subject, nil
	it.pending = meta.NumPending
	it.suspect = !it.since.IsZero() || meta.NumDelivered > 1 || w.suspects.Load().has(it.server, m.StreamSeq)
	letter := consumers.DeadLetter{
		Subject: subject, StreamSeq: m.StreamSeq, RecordedAt: m.RecordedAt, RecordedBy: m.RecordedBy, BatchIndex: -1,
		ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, Data: m.Payload,
	}
	m.Organization, m.Trail, err = schema.ParseEventSubject(subject)
	it.tally = tally.Tally{StreamSeq: m.StreamSeq, RecordedAt: m.RecordedAt, Organization: m.Organization, Trail: m.Trail}
	if mark && err == nil && len(m.Payload) == 0 {
		return nil // it is accounted for as any message, and has nothing to store
	}
	var d *codec.Decoded
	if err == nil {
		// By the broker's clock, so that whoever decodes it, and when, comes to the same result.
		d, err = w.guarded(&m, codec.Decode)
	}
	if err != nil || len(d.Rejects) > 0 {
		it.scratch = nil // what is rejected may lie in it
		if off, err := w.off(ctx, &it.tally); off || err != nil {
			if off && d != nil && d.Block.Rows() > 0 {
				w.carry(it, &m, d) // what is good is left out where it would be stored
			} else if off {
				w.stats.unrecorded.Add(1)
			}
			return err
		}
	}
	if err != nil {
		letter.Reason = err
		it.letters = []consumers.DeadLetter{letter}
		w.hold(it, 0)
		return nil
	}
	if len(d.Rejects) > 0 {
		it.letters = make([]consumers.DeadLetter, len(d.Rejects))
		for i, r := range d.Rejects {
			l := &it.letters[i]
			*l = letter
			l.Reason, l.BatchIndex, l.Data = r.Err, r.Index, r.Raw
			l.ContentType, l.ContentEncoding = r.ContentType, ""
		}
	}
	if d.Block.Rows() == 0 {
		w.hold(it, 0)
		return nil
	}
	w.carry(it, &m, d)
	return nil
}

// guarded decodes a message. One that makes the decoder panic is an error, as one that cannot be read: it ends on the dead letters, and not
// the process, to which it would come again.
func (w *Writer) guarded(m *codec.Message, decode func(*codec.Message, time.Time) (*codec.Decoded, error)) (d *codec.Decoded, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.cfg.Logger.Error("a message made the decoder panic: this is a fault of the program, please report it",
				slog.Uint64("stream_seq", m.StreamSeq), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			d, err = nil, fmt.Errorf("the decoder failed by a fault of the program: %v", p)
		}
	}()
	return decode(m, m.RecordedAt)
}

// carry has the item hold what was decoded, and no more memory than that takes.
func (w *Writer) carry(it *item, m *codec.Message, d *codec.Decoded) {
	it.part = codec.Part{
		Organization: m.Organization, Trail: m.Trail, RecordedAt: m.RecordedAt, StreamSeq: m.StreamSeq,
		RecordedBy: m.RecordedBy, ExpiresAt: w.cfg.Retention(m.Organization, m.RecordedAt), Block: d.Block, Index: d.Index,
	}
	it.tally.Rows, it.tally.Sum = uint64(d.Block.Rows()), it.part.Sum()
	w.hold(it, int64(max(d.Block.Bytes(), cap(it.scratch))))
}

// hold has the item hold so many bytes of memory and those of its dead letters, and no more than before.
func (w *Writer) hold(it *item, bytes int64) {
	for i := range it.letters {
		bytes += int64(len(it.letters[i].Data))
	}
	held := min(bytes, it.size)
	w.memory.Release(it.size - held)
	it.size = held
}

// off tells whether the trail of a message was switched off when the broker stored it. Its dead letters would be
// records of it, too.
func (w *Writer) off(ctx context.Context, t *tally.Tally) (bool, error) {
	if t.Organization == "" {
		return false, nil
	}
	now, err := w.cfg.Recording.Now(ctx)
	if err == nil {
		err = now.Unknown(t.Organization)
	}
	return now.Off(t.Organization, t.Trail, t.RecordedAt), err
}

// everything is recorded.
type everything struct{}

func (everything) Now(context.Context) (recording.State, error) { return recording.State{}, nil }
