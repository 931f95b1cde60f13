package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// progress is a line on a terminal that is written over; elsewhere it is silent.
type progress struct {
	w     io.Writer
	on    bool
	next  time.Time
	start time.Time
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, start: time.Now()}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.on = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return p
}

// show replaces the line, a few times a second at most.
func (p *progress) show(format string, v ...any) {
	if !p.on {
		return
	}
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(200 * time.Millisecond)
		fmt.Fprintf(p.w, "\r\x1b[K"+format, v...)
	}
}

// clear takes the line away.
func (p *progress) clear() {
	if p.on {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progress) rate(n uint64) string {
	return grouped(uint64(float64(n)/max(time.Since(p.start).Seconds(), 0.001))) + "/s"
}

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
