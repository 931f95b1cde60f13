package producers

import (
	"cmp"
	"context"
	"fmt"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Block is many events of one organization and trail, published in one call.
type Block struct {
	Organization string
	Trail        schema.Trail
	// Events are valid and complete, and few enough for a message. They are of codec.TakeBlock, and the
	// publisher's from the call on, whatever it returns.
	Events *codec.Block
	// RecordedBy is recorded as the credential that published them; see Config.RecordedBy, which is the default.
	RecordedBy string
	// Alone keeps other events out of the message, so that the same block again is the same message.
	Alone bool
}

// PublishBlock takes a block and returns; it blocks only while MaxBuffered bytes wait for the broker. The
// events share a message with those of other callers, if it has room for all of them, and have one Ack, which
// the caller is expected to wait for: nil means that all are on the broker's disk, and an error that none of
// them is known to be. Their rules are not checked again.
func (p *Publisher) PublishBlock(ctx context.Context, b Block) (Ack, error) {
	rows, bytes := b.Events.Rows(), b.Events.Bytes()
	if rows == 0 || rows > schema.MaxMessageEvents || bytes > schema.MaxMessageBytes-4096 {
		b.Events.GiveBack()
		return Ack{}, fmt.Errorf("publish a block: %d events of %d bytes are no message", rows, bytes)
	}
	if p.leftOut(b.Organization, b.Trail, rows) {
		b.Events.GiveBack()
		return Ack{unrecorded}, nil
	}
	size := min(int64(bytes)+64*int64(rows), int64(p.cfg.MaxBuffered))
	if !p.buffer.TryAcquire(size) {
		if err := p.waitForRoom(ctx, size); err != nil {
			b.Events.GiveBack()
			return Ack{}, because(fmt.Errorf("wait for room in the publisher's buffer: %w", err), &p.trouble)
		}
	}
	key := lane{b.Organization, b.Trail, cmp.Or(b.RecordedBy, p.cfg.RecordedBy), b.Events.Given()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.buffer.Release(size)
		b.Events.GiveBack()
		return Ack{}, ErrClosed
	}
	l := p.laneLocked(key)
	own := &batch{lane: key, block: b.Events, held: size, waited: true, alone: b.Alone, of: &p.trouble, done: make(chan struct{})}
	if p.tracer != nil {
		own.calledBy(ctx)
	}
	if b.Alone {
		p.dispatch(key, l, own)
		return Ack{own}, nil
	}
	if l.open != nil && (l.open.block.Rows()+rows > p.cfg.MaxEvents || l.open.block.Bytes()+bytes > p.cfg.MaxBytes) {
		p.seal(key, l)
	}
	if l.open == nil {
		l.open = own
		p.lingerLocked(key, l)
	} else {
		p.awaited(l)
		if p.tracer != nil {
			l.open.calledBy(ctx)
		}
		l.open.block.AppendBlock(b.Events)
		l.open.held += size
		b.Events.GiveBack()
	}
	open := l.open
	if open.block.Rows() >= p.cfg.MaxEvents || open.block.Bytes() >= p.cfg.MaxBytes {
		p.seal(key, l)
	}
	return Ack{open}, nil
}
