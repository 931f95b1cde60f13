package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// A message ends with the first of these. They are part of what makes a file that is published
// again the same messages: changing them has a file that was published before an update stored
// twice.
const (
	messageEvents = 5000
	messageBytes  = 1 << 20 // of the columns
	windowLines   = 20_000
	windowBytes   = 16 << 20 // of the lines
)

// Lines of a pipe are sent when nothing more has come for pipeIdle, or when it has waited for
// pipeDelay.
const (
	pipeIdle  = 50 * time.Millisecond
	pipeDelay = 500 * time.Millisecond
)

// How long events that were sent are waited for: at the end of the input, and after a signal.
const (
	outcomeWait   = publishRetryFor + 10*time.Second
	interruptWait = 10 * time.Second
)

// errInterrupted ends the reading of a pipe.
var errInterrupted = errors.New("interrupted")

// place is a line of an input.
type place struct {
	line   int
	offset int64
}

// feed publishes the lines of files.
//
// It cuts the input into windows of a fixed number of lines, and ends every message with its
// window. So the messages of a window depend only on its lines, and a file that is published again,
// from its beginning or from the start of a window, makes the same messages, which the broker
// knows. Of a file that ends early, the window that is not complete is not sent.
type feed struct {
	options            mapping.Options
	publisher          *producers.Publisher
	stderr             io.Writer
	rejects            io.Writer // nil for none
	bar                *progress
	name               string // of the input
	published, refused uint64
	skipped            uint64 // records that the mapping leaves out
	started            time.Time
	next               place // of the last input: the first line that has no outcome

	pipe    bool
	sending context.Context // ends interruptWait after a signal; of a file, at once

	mu     sync.Mutex // the fields below, which the timer of a pipe uses too
	window window
	sent   []sentBlock // without those at the beginning that are acknowledged
	failed error
}

// window is the part of the input that is being read.
type window struct {
	start place
	lines int
	bytes int
	open  map[lane]*openBlock
	order []lane // of open
	first time.Time
	last  time.Time
}

type lane struct {
	organization string
	trail        schema.Trail
}

type openBlock struct {
	block *codec.Block
	start place // of its first event
}

type sentBlock struct {
	ack producers.Ack
	err error // it was not sent
	// again is where to read again to send the same message: the start of its window or, in a pipe,
	// its first line.
	again place
}

// outcome waits for it until ctx ends.
func (b *sentBlock) outcome(ctx context.Context) error {
	if b.err != nil {
		return b.err
	}
	return b.ack.Wait(ctx)
}

// settled reports whether the outcome is known, and whether it is good.
func (b *sentBlock) settled() (known, good bool) {
	if b.err != nil {
		return true, false
	}
	select {
	case <-b.ack.Done():
		return true, b.ack.Wait(context.Background()) == nil
	default:
		return false, false
	}
}

// outlive returns a context that ends some time after ctx.
func outlive(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(by):
		case <-out.Done():
		}
		cancel()
	})
	return out, func() {
		stop()
		cancel()
	}
}

// maxShownRejects is how many refused lines are explained one by one.
const maxShownRejects = 20

// one publishes an input. It returns nil if all of its events are acknowledged or, of a pipe that
// was interrupted, all that were read.
func (f *feed) one(e *env, name string) error {
	input, size := e.stdin, int64(0)
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("open input: %w", err)
		}
		defer file.Close()
		input = file
	}
	f.name, f.pipe = name, true
	if file, ok := input.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			f.pipe, size = false, info.Size()
		}
	}
	f.window, f.sent, f.failed, f.next = window{}, nil, nil, place{line: max(1, f.options.From)}
	counted := &countingReader{r: input}
	source := io.Reader(counted)
	f.sending = e.ctx
	if f.pipe {
		var cancel context.CancelFunc
		f.sending, cancel = outlive(e.ctx, interruptWait)
		defer cancel()
		p := newPipeReader(e.ctx, counted)
		defer p.close()
		source = p
		stop := f.tick(f.sending)
		defer stop()
	}
	err := f.read(e.ctx, source, func(published uint64) {
		if size > 0 {
			f.bar.show("%s  %d%%  %s events  %s", name, 100*counted.n/size, grouped(published), f.bar.rate(published))
		} else {
			f.bar.show("%s  %s events  %s", name, grouped(published), f.bar.rate(published))
		}
	})
	return f.finish(e, err)
}

// read takes lines until the input ends, a message fails, or ctx does.
func (f *feed) read(ctx context.Context, source io.Reader, progress func(published uint64)) error {
	for line, err := range mapping.Lines(source, f.options) {
		if err != nil {
			return err
		}
		if !f.pipe && ctx.Err() != nil {
			return errInterrupted
		}
		f.mu.Lock()
		err := f.take(line)
		published := f.published
		f.mu.Unlock()
		if err != nil {
			return err
		}
		progress(published)
	}
	return nil
}

// finish ends an input: it sends what may be sent, waits for the outcome of what was, and reports
// where the input stopped.
func (f *feed) finish(e *env, err error) error {
	signalled := e.ctx.Err() != nil && (errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled))
	if signalled {
		err = nil
	}
	wait, cancel := outlive(e.ctx, interruptWait)
	defer cancel()
	wait, done := context.WithTimeout(wait, outcomeWait)
	defer done()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && (f.pipe || !signalled) {
		err = f.flush()
	}
	for i := 0; i < len(f.sent) && err == nil; i++ {
		err = f.sent[i].outcome(wait)
	}
	signalled = signalled || e.ctx.Err() != nil && err == nil && f.pipe
	if start := f.drop(); start != nil {
		f.next = *start
	}
	for i := range f.sent {
		if _, good := f.sent[i].settled(); !good && f.sent[i].again.line < f.next.line {
			f.next = f.sent[i].again
		}
	}
	at := fmt.Sprintf("%s: stopped at line %d (byte %d)", f.name, f.next.line, f.next.offset)
	again := fmt.Sprintf("earlier lines are acknowledged or refused: publish it again, whole or with --from-line %d", f.next.line)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: %s", at, err, again)
	case signalled && !f.pipe:
		return fmt.Errorf("%s by a signal: %s", at, again)
	case signalled:
		f.bar.clear()
		fmt.Fprintf(f.stderr, "%s by a signal: earlier lines are acknowledged or refused\n", at)
	}
	return nil
}

// take adds a line to the window. f.mu is held.
func (f *feed) take(line mapping.Line) error {
	if err := f.outcome(); err != nil {
		return err
	}
	w, at := &f.window, place{line.Number, line.Offset}
	if w.lines >= windowLines || w.bytes >= windowBytes {
		if err := f.flush(); err != nil {
			return err
		}
	}
	now := time.Now()
	if w.lines == 0 {
		w.start, w.first = at, now
	}
	w.last = now
	w.lines++
	w.bytes += len(line.Raw)
	f.next = place{line.Number + 1, line.Offset + line.Size}
	if line.More { // of this record or line
		f.next = at
	}
	if line.Skipped {
		f.skipped++
		return nil
	}
	if line.Err == nil {
		if reserved := schema.CheckReserved(line.Event.Organization, line.Event.Source); reserved != nil {
			line.Err = reserved
		}
	}
	if line.Err != nil {
		return f.refuse(line)
	}
	key := lane{line.Event.Organization, line.Event.Trail}
	open := w.open[key]
	if open == nil {
		open = &openBlock{codec.TakeBlock(), at}
		if w.open == nil {
			w.open = map[lane]*openBlock{}
		}
		w.open[key] = open
		w.order = append(w.order, key)
	}
	open.block.Append(&line.Event)
	open.block.MarkGiven() // a line without an id has one that is made of it: publishing it again is harmless
	if open.block.Rows() >= messageEvents || open.block.Bytes() >= messageBytes {
		return f.send(key)
	}
	return nil
}

// flush ends the window: all of its messages are sent, in the order of their first events. f.mu is
// held.
func (f *feed) flush() error {
	w := &f.window
	for _, key := range w.order {
		if w.open[key] == nil {
			continue
		}
		if err := f.send(key); err != nil {
			return err
		}
	}
	f.window = window{}
	return nil
}

// drop forgets the events of the window that are not sent, and returns where it begins; nil if
// nothing is open.
func (f *feed) drop() *place {
	w := &f.window
	if w.lines == 0 {
		return nil
	}
	for _, open := range w.open {
		open.block.GiveBack()
	}
	start := w.start
	f.window = window{}
	return &start
}

// send sends an open message. f.mu is held.
func (f *feed) send(key lane) error {
	open := f.window.open[key]
	again := f.window.start
	if f.pipe {
		again = open.start
	}
	events := open.block.Rows()
	delete(f.window.open, key)
	ack, err := f.publisher.PublishBlock(f.sending, producers.Block{Organization: key.organization, Trail: key.trail, Events: open.block, Alone: true})
	f.sent = append(f.sent, sentBlock{ack, err, again})
	if err == nil {
		f.published += uint64(events)
	}
	return err
}

// outcome removes messages that are acknowledged, and returns the error of the first that failed.
// f.mu is held.
func (f *feed) outcome() error {
	for f.failed == nil && len(f.sent) > 0 {
		known, good := f.sent[0].settled()
		if !known {
			return nil
		}
		if good {
			f.sent = f.sent[1:]
		} else {
			f.failed = f.sent[0].outcome(context.Background())
		}
	}
	return f.failed
}

// tick sends what waits in a pipe. The function that it returns ends that.
func (f *feed) tick(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(pipeIdle / 2)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				f.mu.Lock()
				if w := &f.window; w.lines > 0 && (now.Sub(w.last) >= pipeIdle || now.Sub(w.first) >= pipeDelay) {
					_ = f.flush() // the message that was not sent is among those sent, with its error
				}
				f.mu.Unlock()
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (f *feed) refuse(line mapping.Line) error {
	f.refused++
	switch {
	case f.refused <= maxShownRejects:
		f.bar.clear()
		fmt.Fprintf(f.stderr, "%s:%s: refused: %s\n", f.name, line.Place(), strings.TrimSpace(line.Err.Error()))
	case f.refused == maxShownRejects+1:
		fmt.Fprintln(f.stderr, "… further refused lines are only counted; --rejects FILE keeps them")
	}
	if f.rejects == nil {
		return nil
	}
	if _, err := f.rejects.Write(append(line.Raw[:len(line.Raw):len(line.Raw)], '\n')); err != nil {
		return fmt.Errorf("write --rejects: %w", err)
	}
	return nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// pipeReader reads a pipe until ctx ends; then it returns what was read, and errInterrupted.
//
// Nothing can interrupt a read of standard input, so the goroutine that reads is not waited for: it
// ends with its read, or with the process.
type pipeReader struct {
	ctx    context.Context
	done   chan struct{}
	chunks chan []byte
	err    error // valid once chunks is closed
	rest   []byte
}

func newPipeReader(ctx context.Context, r io.Reader) *pipeReader {
	p := &pipeReader{ctx: ctx, done: make(chan struct{}), chunks: make(chan []byte, 1)}
	go func() {
		defer close(p.chunks)
		for {
			chunk := make([]byte, 64<<10)
			n, err := r.Read(chunk)
			if n > 0 {
				select {
				case p.chunks <- chunk[:n]:
				case <-p.done:
					return
				}
			}
			if err != nil {
				p.err = err
				return
			}
			if ctx.Err() != nil {
				p.err = errInterrupted
				return
			}
		}
	}()
	return p
}

func (p *pipeReader) close() { close(p.done) }

func (p *pipeReader) Read(to []byte) (int, error) {
	if len(p.rest) == 0 {
		var ok bool
		select {
		case p.rest, ok = <-p.chunks:
		case <-p.ctx.Done():
			select {
			case p.rest, ok = <-p.chunks:
			default:
				return 0, errInterrupted
			}
		}
		if !ok {
			return 0, p.err
		}
	}
	n := copy(to, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
