package producers

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// send publishes b and returns nil when it is on the broker's disk, or in the spool if there is one. Every attempt
// has the same message id, so that one whose acknowledgement was lost is not stored again.
func (p *Publisher) send(b *batch) (err error) {
	if release, err := p.turns.Take(p.ctx, b.lane.organization); err == nil {
		defer release()
	} else if p.spool == nil {
		return ErrClosed
	}
	msg, buf := p.message(b)
	rows, first := b.block.Rows(), p.cfg.Now()
	end := p.trace(b, msg)
	defer func() { end(err) }()
	var unkept error // why the message is not in the spool
	if p.away() {
		if unkept = p.keep(msg, first, rows); unkept == nil {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.RetryFor)
	defer cancel()
	pause := 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		err := p.attempt(ctx, msg)
		p.note(b, err)
		if err == nil {
			// Acknowledged, so that the connection has done with it. After an error it may have not.
			*buf = msg.Data
			payloads.Put(buf)
			return nil
		}
		if p.spool != nil && (!permanent(err) || errors.Is(err, nats.ErrConnectionClosed)) {
			if unkept = p.keep(msg, first, rows); unkept == nil {
				return nil
			}
		}
		if permanent(err) || ctx.Err() != nil || p.cfg.FailWhenFull && errors.Is(err, ErrStreamFull) {
			return fmt.Errorf("publish %d events on %s, attempt %d: %w", rows, msg.Subject, attempt, errors.Join(because(err, &b.trouble), unkept))
		}
		if p.cfg.Retrying != nil {
			p.cfg.Retrying(err)
		}
		p.cfg.Logger.Warn("publish failed, trying again", slog.String("subject", msg.Subject),
			slog.Int("events", rows), slog.Int("attempt", attempt), slog.Any("error", errors.Join(err, unkept)))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func (p *Publisher) attempt(ctx context.Context, msg *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.AckTimeout)
	defer cancel()
	ctx, done := p.violations.wait(ctx, msg.Subject)
	defer done()
	_, err := p.js.PublishMsg(ctx, msg)
	if f := (*forbidden)(nil); err != nil && errors.As(context.Cause(ctx), &f) {
		return f
	}
	return StreamFull(err)
}

// note keeps why a message is not acknowledged. Without an answer, the last one stays.
func (p *Publisher) note(b *batch, err error) {
	switch {
	case err == nil:
		b.trouble.over()
		p.trouble.over()
	case answered(err):
		b.trouble.is(err)
		p.trouble.is(err)
	}
}

// payloads of messages, before and after they are compressed, are used again.
var payloads = sync.Pool{New: func() any { return new([]byte) }}

// message returns b as a message, and what its payload may be put back into payloads with.
func (p *Publisher) message(b *batch) (*nats.Msg, *[]byte) {
	msg := nats.NewMsg(schema.EventSubject(b.lane.organization, b.lane.trail))
	buf := payloads.Get().(*[]byte)
	msg.Data = b.block.AppendNative((*buf)[:0])
	msg.Header.Set(schema.HeaderContentType, codec.ContentBlock)
	if b.lane.recordedBy != "" {
		msg.Header.Set(schema.HeaderRecordedBy, b.lane.recordedBy)
	}
	if b.block.Given() {
		msg.Header.Set(schema.HeaderGivenIDs, "1")
	}
	if b.alone {
		// Of the events themselves, for a repetition may come to a process that compresses in another way.
		msg.Header.Set(nats.MsgIdHdr, messageID(msg.Subject, msg.Data))
	}
	if p.cfg.Compression != NoCompression {
		plain := buf
		*plain, buf = msg.Data, payloads.Get().(*[]byte)
		msg.Data = codec.Compress(p.cfg.Compression, *plain, *buf)
		msg.Header.Set(schema.HeaderContentEncoding, p.cfg.Compression)
		payloads.Put(plain)
	}
	if !b.alone {
		msg.Header.Set(nats.MsgIdHdr, messageID(msg.Subject, msg.Data))
	}
	// The slot is by the id, so that the same message has the same slot. The id is made of the subject without a slot, so that it is
	// the same message with either setting of Spread, and in either lane.
	switch id := msg.Header.Get(nats.MsgIdHdr); {
	case p.cfg.Bulk != nil && p.cfg.Bulk(b.lane.organization, len(msg.Data)):
		msg.Subject = schema.BulkSubject(b.lane.organization, b.lane.trail, schema.SlotOf(id))
	case p.cfg.Spread:
		msg.Subject = schema.SlotSubject(b.lane.organization, b.lane.trail, schema.SlotOf(id))
	}
	return msg, buf
}

// messageID is made of the payload, so that the same events published again in the same order, by
// whomever, are the same message to the broker; as long as they are compressed in the same way.
func messageID(subject string, payload []byte) string {
	h := sha256.New()
	h.Write([]byte(subject))
	h.Write([]byte{0})
	h.Write(payload)
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// permanent reports whether sending the same message again is of no use.
func permanent(err error) bool {
	// The relay and the stream answer 400 to a message that they cannot take: its subject, headers
	// or size.
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.Code == 400 {
		return !errors.Is(err, ErrStreamFull)
	}
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrPermissionViolation) ||
		errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrBadSubject) || errors.Is(err, jetstream.ErrInvalidOption)
}
