package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kansa-audit/kansa/pipeline/store"
)

// reading is all events of a time in one of the forms of GET /api/v1/audit/logs.
type reading struct {
	Form      string  `json:"form"`
	Rows      uint64  `json:"rows"`
	MB        float64 `json:"mb"`
	Seconds   float64 `json:"seconds"`
	FirstByte float64 `json:"first_byte_ms"`
	GrownMiB  float64 `json:"grown_mib"` // of the process that reads, beyond what it had before
	EngineMiB float64 `json:"engine_peak_mib"`
}

// read streams a quarter of the events of an organization and then all, so that memory that grows with them shows.
func (s *stack) read(ctx context.Context) error {
	var last uint64
	if err := s.store.Conn().QueryRow(ctx, "SELECT max(stream_seq) FROM audit_events").Scan(&last); err != nil {
		return fmt.Errorf("ask for the last message: %w", err)
	}
	t := table{
		title:  "Reading the log of one organization",
		header: []string{"form", "events", "MB", "seconds", "events/s", "first byte, ms", "the reader's memory grew by, MiB", "the engine's peak, MiB"},
		notes:  []string{"What GET /api/v1/audit/logs copies into its answer, without HTTP."},
	}
	var all []reading
	for _, form := range []store.Table{store.TSV, store.CSV, store.NDJSON} {
		for _, part := range []float64{0.25, 1} {
			r, err := s.readOnce(ctx, form, last, part)
			if err != nil {
				return fmt.Errorf("read as %s: %w", form, err)
			}
			all = append(all, r)
			t.rows = append(t.rows, []string{
				r.Form, number(float64(r.Rows)), fmt.Sprintf("%.0f", r.MB), fmt.Sprintf("%.1f", r.Seconds), number(float64(r.Rows) / r.Seconds), fmt.Sprintf("%.0f", r.FirstByte),
				fmt.Sprintf("%.0f", r.GrownMiB), fmt.Sprintf("%.0f", r.EngineMiB),
			})
			s.b.say("read %v", t.rows[len(t.rows)-1])
		}
	}
	s.b.result.add("read", all, t)
	return nil
}

func (s *stack) readOnce(ctx context.Context, form store.Table, last uint64, part float64) (r reading, err error) {
	// A quarter of the stream has a quarter of the events: the first rows.
	q := store.Question{Organization: "acme"}
	if part < 1 {
		q.UpTo = uint64(float64(last) * part)
	}
	r.Form = string(form)
	if err := s.store.Conn().QueryRow(ctx, "SELECT count() FROM audit_events WHERE organization = 'acme' AND stream_seq <= ?", uint64(float64(last)*part)).Scan(&r.Rows); err != nil {
		return r, fmt.Errorf("count the events: %w", err)
	}
	for _, pid := range []int{os.Getpid(), s.engine.PID()} {
		if err := forgetPeak(pid); err != nil {
			return r, err
		}
	}
	before := usageOf(os.Getpid()).PeakMiB
	began := time.Now()
	in, err := s.store.Stream(ctx, &q, form)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	n, err := io.ReadFull(in, make([]byte, 1))
	r.FirstByte = ms(time.Since(began))
	if err != nil {
		return r, err
	}
	rest, err := io.Copy(io.Discard, in)
	r.Seconds, r.MB = time.Since(began).Seconds(), float64(int64(n)+rest)/1e6
	r.GrownMiB, r.EngineMiB = usageOf(os.Getpid()).PeakMiB-before, usageOf(s.engine.PID()).PeakMiB
	return r, err
}

// forgetPeak has a process's greatest memory be what it has now: see proc(5), clear_refs.
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}
