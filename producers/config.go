package producers

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Config holds the settings of a [Publisher]. The zero value of a field means its default.
type Config struct {
	// MaxEvents and MaxBytes bound one message; the first to be reached sends it.
	MaxEvents int // default 5,000; at most schema.MaxMessageEvents
	MaxBytes  int // of the columns, before compression; default 1 MiB, at most 3 MiB
	// Linger is how long a message that is not full waits for company once nothing else of its
	// organization and trail is on its way. While something is, events gather anyway. Default 1 ms.
	// LingerAsync is the same for a message nobody waits for; well-filled messages cost everyone after
	// the publisher less. Default 20 ms.
	Linger      time.Duration
	LingerAsync time.Duration
	// MaxInFlight bounds the messages that are on their way at once; default 8. MaxInFlightEach is the share of one organization;
	// default MaxInFlight. The broker stores one message after another, so the share is what one organization can put before the
	// messages of another.
	MaxInFlight     int
	MaxInFlightEach int
	// MaxBuffered bounds the bytes of events that wait or are on their way. When it is reached,
	// publishing blocks. Default 64 MiB.
	MaxBuffered int
	// RetryFor is how long a message is sent again, when the broker does not answer or has no room,
	// before its events are given up and their publishers are told. Default 1 minute: less than the
	// stream's duplicate window, after which sending again could store twice.
	RetryFor time.Duration
	// FailWhenFull ends the attempts as soon as the broker answers that the stream is full: the
	// events are not stored, and their publishers get [ErrStreamFull] at once. Default: a message
	// is sent again for RetryFor.
	FailWhenFull bool
	// Retrying is called with the reason each time that a message has to be sent again. It must
	// return soon. Default: none.
	Retrying func(reason error)
	// AckTimeout is how long one attempt waits for the broker. Default 5 s.
	AckTimeout time.Duration
	// Compression of messages: codec.EncodingSnappy (default), codec.EncodingZstd, which is smaller and
	// takes longer, or NoCompression.
	Compression string
	// Spread has the events of one organization and trail spread over all slots of the stream, and so over all of its
	// shards, by the hash of a message. Without it, the stream puts all of an organization and trail into one slot. It
	// needs the permission to publish on audit.events.<org>.<trail>.*, and a stream that Kansa has set up since it has slots.
	Spread bool
	// Bulk says whether a message of so many bytes goes into the bulk lane of the stream, which is stored after the messages of others. It
	// is called once for each message. It needs the permission to publish on audit.events.<org>.<trail>.bulk.*. Default: never.
	Bulk func(organization string, bytes int) bool
	// RecordedBy is recorded with every event as the credential that published it, unless a block names another. It counts only on a
	// connection that may use the stream itself, as Kansa's own processes have; a publisher with a login of its own is
	// recorded under that. Default: none.
	RecordedBy string
	// Spool is a directory of this publisher's own for messages that the broker does not take: they are
	// acknowledged when they are on this machine's disk, outlive the application, and are published in their
	// order as soon as the broker answers, by this or the next publisher with the same directory. One that is in
	// use by another process is refused. Default: none; publishing blocks instead.
	Spool string
	// SpoolBytes bounds it. While it is full, publishing blocks as without one, for RetryFor at most: the error
	// answers to spool.ErrFull then. Default 1 GiB.
	SpoolBytes int64
	// Unrecorded is told of events that are not sent because their trail is switched off; the call that publishes
	// them succeeds. It is called by whoever publishes, and has to return soon. Default: nobody, they are counted.
	//
	// What was published before the publisher heard of the switch, or could not ask, the writer leaves out; and what is
	// in the spool is judged by the time at which it reaches the broker.
	Unrecorded func(organization string, trail schema.Trail, events int)
	// Tracing has each message be a span, a child of the spans in which its events were published or linked to them, whose
	// context goes along with it. Default: none, which costs nothing.
	Tracing trace.TracerProvider
	// Logger is told of retries; default none.
	Logger *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// NoCompression is a Compression.
const NoCompression = "none"

// maxMessageColumns leaves room in a message for the header of a block.
const maxMessageColumns = schema.MaxMessageBytes - schema.MaxEventBytes - 4096

func (c Config) withDefaults() (Config, error) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.MaxEvents, 5000)
	def(&c.MaxBytes, 1<<20)
	def(&c.MaxInFlight, 8)
	def(&c.MaxInFlightEach, c.MaxInFlight)
	def(&c.MaxBuffered, 64<<20)
	if c.Linger == 0 {
		c.Linger = time.Millisecond
	}
	if c.LingerAsync == 0 {
		c.LingerAsync = max(20*time.Millisecond, c.Linger)
	}
	if c.Compression == "" {
		c.Compression = codec.EncodingSnappy
	}
	if c.SpoolBytes == 0 {
		c.SpoolBytes = 1 << 30
	}
	if c.RetryFor == 0 {
		c.RetryFor = time.Minute
	}
	if c.AckTimeout == 0 {
		c.AckTimeout = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	var errs []error
	bound := func(name string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s is %d: set it from %d to %d", name, v, low, high))
		}
	}
	switch c.Compression {
	case codec.EncodingSnappy, codec.EncodingZstd, NoCompression:
	default:
		errs = append(errs, fmt.Errorf("compression is %q: use %s, %s or %s", c.Compression, codec.EncodingSnappy, codec.EncodingZstd, NoCompression))
	}
	bound("MaxEvents", c.MaxEvents, 1, schema.MaxMessageEvents)
	bound("MaxBytes", c.MaxBytes, 1, maxMessageColumns)
	bound("MaxInFlight", c.MaxInFlight, 1, 1024)
	bound("MaxInFlightEach", c.MaxInFlightEach, 1, 1024)
	bound("MaxBuffered", c.MaxBuffered, schema.MaxEventBytes, 1<<32)
	if c.SpoolBytes < 0 {
		errs = append(errs, fmt.Errorf("SpoolBytes is %d: give a positive number", c.SpoolBytes))
	}
	return c, errors.Join(errs...)
}
