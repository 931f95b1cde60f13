package writer

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema/codec"
)

// A message that makes the decoder panic is one that cannot be read, and does not end the process.
func TestPanicOfTheDecoderIsAnError(t *testing.T) {
	t.Parallel()
	w := &Writer{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
	d, err := w.guarded(&codec.Message{}, func(*codec.Message, time.Time) (*codec.Decoded, error) { panic("on purpose") })
	if d != nil || err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("%v, %v", d, err)
	}
}
