package producers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/producers/spool"
	"github.com/kansa-audit/kansa/schema"
)

// keep puts a message that the broker does not take into the spool, if there is one and it has room. The time of
// the first attempt goes with it: a try may have reached the broker after all, longer ago than it remembers ids.
func (p *Publisher) keep(msg *nats.Msg, first time.Time, rows int) bool {
	if p.spool == nil {
		return false
	}
	msg.Header.Set(schema.HeaderFirstAttempt, strconv.FormatInt(first.UnixMicro(), 10))
	if err := p.spool.Put(msg); err != nil {
		p.cfg.Logger.Warn("spooling failed, trying the broker again", slog.Any("error", err))
		return false
	}
	p.spooled.Add(uint64(rows))
	select {
	case p.kept <- struct{}{}:
	default: // it is told already
	}
	return true
}

// spooling reports whether messages wait in the spool: what comes now waits behind them, and not for a broker that
// does not answer.
func (p *Publisher) spooling() bool {
	if p.spool == nil {
		return false
	}
	n, _ := p.spool.Stats()
	return n > 0
}

// drain publishes what is in the spool, until p.ctx ends.
func (p *Publisher) drain() {
	pause := time.Duration(0)
	for {
		wait := p.kept
		if p.spooling() {
			wait = nil // there is something to do already
		}
		var due <-chan time.Time
		if wait == nil {
			due = time.After(pause)
		}
		select {
		case <-p.ctx.Done():
			return
		case <-wait:
			continue
		case <-due:
		}
		switch err := p.drainOne(); {
		case err == nil:
			pause = 0
		case p.ctx.Err() != nil:
			return
		default:
			p.cfg.Logger.Warn("a spooled message was not published", slog.Any("error", err))
			pause = min(2*pause+100*time.Millisecond, 5*time.Second)
		}
	}
}

func (p *Publisher) drainOne() error {
	name, msg, err := p.spool.Oldest()
	if errors.Is(err, spool.ErrDamaged) {
		p.cfg.Logger.Error("a spooled message is lost", slog.Any("error", err))
		return nil
	}
	if err != nil || msg == nil {
		return err
	}
	err = p.attempt(p.ctx, msg)
	if permanent(err) && !errors.Is(err, nats.ErrConnectionClosed) {
		p.cfg.Logger.Error("a spooled message is refused and set aside", slog.String("file", name), slog.Any("error", err))
		return p.spool.Refuse(name)
	}
	if err != nil {
		return err
	}
	return p.spool.Remove(name)
}

// openSpool opens the spool of the settings and begins to empty it.
func (p *Publisher) openSpool() (err error) {
	if p.cfg.Spool == "" {
		return nil
	}
	if p.spool, err = spool.Open(p.cfg.Spool, p.cfg.SpoolBytes); err != nil {
		return err
	}
	p.kept = make(chan struct{}, 1)
	p.senders.Add(1)
	go func() {
		defer p.senders.Done()
		p.drain()
	}()
	return nil
}

// emptied waits until nothing is in the spool, or ctx ends: then what is left is for the next start.
func (p *Publisher) emptied(ctx context.Context) error {
	for p.spooling() {
		select {
		case <-ctx.Done():
			n, bytes := p.spool.Stats()
			return fmt.Errorf("%d messages of %d bytes stay in the spool: %w", n, bytes, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
