package pipeline

import (
	"testing"
	"time"
)

// While the process waits for the processor, an organization that publishes beyond its prompt share gets less and less, down to a bound, and
// more again afterwards. An organization alone is not limited.
func TestPressureLimitsThoseWhoPublishMuch(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	p := newPressure(func() time.Time { return now })
	const second = 8 << 20 // what the loud one publishes in a second, where it may
	// run publishes for a time, and returns how many bytes the loud organization published in each second.
	run := func(length, waited time.Duration, quiet bool) float64 {
		bytes, steps := 0, int(length/pressureEvery)
		for range steps {
			if quiet {
				p.count("quiet", 100, false)
			}
			for range 16 {
				if p.wait("loud") == 0 {
					p.count("loud", second/64, true)
					bytes += second / 64
				}
				now = now.Add(pressureEvery / 16)
			}
			p.adjust(waited)
		}
		return float64(bytes) / length.Seconds()
	}
	if got := run(10*time.Second, time.Second, false); got != second {
		t.Errorf("alone: %.0f bytes a second, want %d", got, second)
	}
	if got := run(10*time.Second, pressureHigh/2, true); got != second {
		t.Errorf("without pressure: %.0f bytes a second, want %d", got, second)
	}
	run(10*time.Second, 2*pressureHigh, true)
	if got := run(10*time.Second, 2*pressureHigh, true); got < 0.9*pressureLeast || got > 1.1*pressureLeast {
		t.Errorf("under pressure: %.0f bytes a second, want %d", got, pressureLeast)
	}
	if p.wait("quiet") > 0 {
		t.Error("the quiet organization waits")
	}
	run(40*time.Second, 0, true)
	if got := run(10*time.Second, 0, true); got != second || p.rate != 0 {
		t.Errorf("afterwards: %.0f bytes a second at a rate of %.0f, want %d", got, p.rate, second)
	}
	run(10*time.Second, 2*pressureHigh, true)
	run(pressureActive+time.Second, 2*pressureHigh, false)
	if got := run(10*time.Second, 2*pressureHigh, false); got != second {
		t.Errorf("alone again: %.0f bytes a second, want %d", got, second)
	}
}

// Goroutines that wait for a processor are noticed.
func TestWaitsAreMeasured(t *testing.T) {
	t.Parallel()
	var w waits
	w.since()
	if d := w.since(); d < 0 || d > time.Hour {
		t.Errorf("goroutines waited %s", d)
	}
}
