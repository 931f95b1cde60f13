package producers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/producers/spool"
	"github.com/kansa-audit/kansa/schema"
)

// ErrSpooled is what Close answers with when messages stay in the spool: they are on disk, and the next publisher
// with the same directory publishes them.
var ErrSpooled = errors.New("messages stay in the spool")

// errAway means that the connection is being made again.
var errAway = errors.New("no connection to the broker")

// openSpool opens the spool of the settings and begins to empty it.
func (p *Publisher) openSpool() (err error) {
	if p.cfg.Spool == "" {
		return nil
	}
	if p.spool, err = spool.Open(p.cfg.Spool, p.cfg.SpoolBytes); err != nil {
		return err
	}
	p.senders.Add(1)
	go func() {
		defer p.senders.Done()
		p.drain()
	}()
	return nil
}

// keep puts a message into the spool; the error says why it is not there. The time of the first attempt goes with
// it: a try may have reached the broker after all, longer ago than the broker remembers ids.
func (p *Publisher) keep(msg *nats.Msg, first time.Time, rows int) error {
	msg.Header.Set(schema.HeaderFirstAttempt, schema.FormatAttempt(first))
	if err := p.spool.Put(msg); err != nil {
		return err
	}
	p.spooled.Add(uint64(rows))
	return nil
}

// away reports whether a message should go into the spool without being tried: behind those that wait there
// already, so that they stay in order, or because nobody would answer.
func (p *Publisher) away() bool {
	if p.spool == nil {
		return false
	}
	waiting, _ := p.spool.Stats()
	return waiting > 0 || !p.connected()
}

func (p *Publisher) connected() bool { return p.js.Conn().IsConnected() }

// drain publishes what is in the spool, the oldest first, until p.ctx ends.
func (p *Publisher) drain() {
	pause := time.Duration(0)
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.spool.Ready():
		}
		err := p.drainSome()
		if err == nil {
			pause = 0
			continue
		}
		if p.ctx.Err() != nil {
			return
		}
		level := slog.LevelDebug
		if pause == 0 { // told once, not for as long as it lasts
			level = slog.LevelWarn
		}
		waiting, bytes := p.spool.Stats()
		p.cfg.Logger.Log(p.ctx, level, "messages wait in the spool", slog.Int("messages", waiting), slog.Int64("bytes", bytes), slog.Any("error", err))
		pause = min(2*pause+50*time.Millisecond, 2*time.Second)
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// drainSome publishes the oldest messages, those of one subject one after the other, so that each organization's
// trail stays in order.
func (p *Publisher) drainSome() error {
	if !p.connected() {
		return errAway
	}
	type kept struct {
		name string
		msg  *nats.Msg
	}
	lanes := map[string][]kept{}
	var errs []error
	for _, name := range p.spool.Oldest(p.cfg.MaxInFlight) {
		msg, err := p.spool.Read(name)
		switch {
		case errors.Is(err, spool.ErrDamaged):
			p.cfg.Logger.Error("a spooled message is lost", slog.Any("error", err))
		case err != nil:
			p.spool.Postpone(name) // the others are not to wait for it
			errs = append(errs, err)
		default:
			lanes[msg.Subject] = append(lanes[msg.Subject], kept{name, msg})
		}
	}
	var g errgroup.Group
	for _, lane := range lanes {
		g.Go(func() error {
			for _, k := range lane {
				if err := p.republish(k.name, k.msg); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(append(errs, g.Wait())...)
}

// republish publishes a message of the spool and removes it there. What the broker will not take is never thrown
// away, for it was acknowledged: it goes behind the others, and is tried again.
func (p *Publisher) republish(name string, msg *nats.Msg) error {
	err := p.attempt(p.ctx, msg)
	if err == nil {
		p.trouble.over()
		return p.spool.Remove(name)
	}
	if answered(err) {
		p.trouble.is(err)
	} else if p.connected() && p.ctx.Err() == nil {
		p.spool.Postpone(name)
	}
	return fmt.Errorf("publish a spooled message on %s: %w", msg.Subject, err)
}

// emptied waits until nothing is in the spool, but not for long.
func (p *Publisher) emptied(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.RetryFor)
	defer cancel()
	select {
	case <-p.spool.Empty():
	case <-ctx.Done():
	case <-p.ctx.Done(): // it was closed before
	}
}

// closeSpool gives the directory back, and says what is left in it.
func (p *Publisher) closeSpool() error {
	var left error
	if n, bytes := p.spool.Stats(); n > 0 {
		left = because(fmt.Errorf("%w: %d of %d bytes in %s", ErrSpooled, n, bytes, p.cfg.Spool), &p.trouble)
	}
	return errors.Join(left, p.spool.Close())
}
