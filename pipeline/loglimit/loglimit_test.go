package loglimit

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRepeatedRecordsAreCounted(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	log := slog.New(newHandler(slog.NewTextHandler(&out, nil), func() time.Time { return now })).With(slog.String("part", "gateway"))
	for i := range 1000 {
		log.Info("request not accepted in full", slog.Int("request", i))
	}
	log.Warn("something else")
	if lines := strings.Count(out.String(), "\n"); lines != most+1 || !strings.Contains(out.String(), "something else") {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
	out.Reset()
	now = now.Add(window)
	log.Info("request not accepted in full", slog.Int("request", 1000))
	if text := out.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "not_logged=980") || !strings.Contains(text, "part=gateway") || !strings.Contains(text, "request=1000") {
		t.Errorf("afterwards:\n%s", text)
	}
	// It goes on repeating: two lines a minute, until it stops.
	out.Reset()
	for range 600 {
		now = now.Add(time.Second)
		log.Info("request not accepted in full", slog.Int("request", 1001))
	}
	if lines := strings.Count(out.String(), "\n"); lines > 22 || lines < 18 {
		t.Errorf("%d lines in ten minutes:\n%s", lines, out.String())
	}
	out.Reset()
	now = now.Add(2 * windowAgain)
	log.Info("something else")
	now = now.Add(2 * windowAgain)
	for range 5 {
		log.Info("request not accepted in full")
	}
	if text := out.String(); strings.Count(text, "not accepted in full") < 5 {
		t.Errorf("after a pause:\n%s", text)
	}
}
