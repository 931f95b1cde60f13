package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/schema"
)

// mostRestored is how many messages are restored by one insert.
const mostRestored = 500

// Restored is what became of a message.
type Restored struct {
	StreamSeq uint64
	Rows      uint64 // that the ledger has of it now
	Rejected  int    // that are dead letters
}

// Restore stores messages of the stream that were acknowledged although they were never stored, or whose ledger entries are
// gone, exactly as Run would have: by the same rules, with dead letters for what breaks them and a ledger entry each. Events that the
// table has already are not stored again. It acknowledges nothing, may be called while writers run, and may be called again after
// an error; what it returns is safe in any case.
func (w *Writer) Restore(ctx context.Context, msgs []*jetstream.RawStreamMsg) (done []Restored, err error) {
	for len(msgs) > 0 && err == nil {
		var some []*item
		if some, err = w.take(ctx, msgs); err == nil {
			msgs = msgs[len(some):]
			if err = w.restore(ctx, some); err == nil {
				for _, it := range some {
					done = append(done, Restored{it.tally.StreamSeq, it.tally.Rows, it.rejected})
				}
			}
		}
		for _, it := range some {
			w.release(it)
		}
	}
	return done, err
}

// take decodes messages of one month, as many as there is memory for.
func (w *Writer) take(ctx context.Context, msgs []*jetstream.RawStreamMsg) (items []*item, err error) {
	server := w.cfg.Server()
	if server == "" {
		return nil, errAway
	}
	for _, msg := range msgs[:min(len(msgs), mostRestored)] {
		if len(items) == 0 {
			err = w.memory.Acquire(ctx, schema.MaxMessageBytes)
		} else if !w.memory.TryAcquire(schema.MaxMessageBytes) {
			return items, nil
		}
		if err != nil {
			return items, fmt.Errorf("wait for memory: %w", err)
		}
		it := &item{msg: &raw{msg: msg}, size: schema.MaxMessageBytes, server: server}
		if since, kept := schema.RecordedSince(msg.Header.Get(schema.HeaderFirstAttempt), msg.Time); kept {
			it.since = since
		}
		if err := w.decodeOne(ctx, it); err != nil {
			w.release(it)
			return items, fmt.Errorf("read message %d: %w", msg.Sequence, err)
		}
		if len(items) > 0 && items[0].tally.RecordedAt.Format("200601") != it.tally.RecordedAt.Format("200601") {
			w.release(it)
			return items, nil
		}
		items = append(items, it)
	}
	return items, nil
}

func (w *Writer) restore(ctx context.Context, all []*item) error {
	var insert []*item
	var tallies []tally.Tally
	for _, it := range all {
		if it.rejected = len(it.letters); it.rejected > 0 {
			if err := w.dead.Put(ctx, it.letters); err != nil {
				return err
			}
			w.stats.rejected.Add(uint64(it.rejected))
			it.letters = nil
		}
		if it.part.Block == nil {
			tallies = append(tallies, it.tally)
		} else {
			insert = append(insert, it)
		}
	}
	if len(tallies) > 0 {
		if err := w.ledger.Put(ctx, tallies); err != nil {
			return err
		}
	}
	if len(insert) == 0 {
		return nil
	}
	stored, err := w.insert(ctx, insert, true)
	if err != nil {
		return fmt.Errorf("store %d messages: %w", len(insert), err)
	}
	if len(stored) < len(insert) {
		return fmt.Errorf("store %d messages: %w: try again", len(insert), errNotOurs)
	}
	return nil
}

// errNotOurs means that an insert left some messages out: the broker was started again, or it is not known whether their events
// are in the table.
var errNotOurs = errors.New("some were left out")

// raw is a message that was read from the stream itself, as one of a consumer.
type raw struct {
	jetstream.Msg // none: it cannot be acknowledged

	msg *jetstream.RawStreamMsg
}

func (r *raw) Data() []byte         { return r.msg.Data }
func (r *raw) Headers() nats.Header { return r.msg.Header }
func (r *raw) Subject() string      { return r.msg.Subject }
func (r *raw) Reply() string        { return "" }
func (r *raw) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Stream: r.msg.Sequence}, Timestamp: r.msg.Time.In(time.UTC), NumDelivered: 2}, nil
}
