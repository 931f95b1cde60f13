package producers_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

func blockOf(all []schema.Event) *codec.Block {
	b := codec.TakeBlock()
	for i := range all {
		b.Append(&all[i])
	}
	b.MarkGiven() // as the publisher does with events that have ids
	return b
}

// Blocks share a message with each other and with single events; those that are alone share none, and are the
// same message when they come again.
func TestPublishBlock(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	p := s.publisher(t, producers.Config{Linger: 300 * time.Millisecond})
	all := events(21, 100, true)
	var acks []producers.Ack
	publish := func(first, end int, alone bool) {
		ack, err := p.PublishBlock(t.Context(), producers.Block{Organization: "acme", Trail: schema.Activity, Events: blockOf(all[first:end]), Alone: alone})
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, ack)
	}
	publish(0, 30, false)
	publish(30, 60, false)
	ack, err := p.PublishAsync(t.Context(), all[60])
	if err != nil {
		t.Fatal(err)
	}
	acks = append(acks, ack)
	publish(61, 80, true)
	publish(80, 100, false)
	publish(61, 80, true)
	for _, ack := range acks {
		if err := ack.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.WantOnce(t, all)
	if got := s.Stored(t).Messages; got != 2 {
		t.Errorf("%d messages, want 2", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.PublishBlock(t.Context(), producers.Block{Organization: "acme", Trail: schema.Activity, Events: blockOf(all)}); !errors.Is(err, producers.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := p.PublishBlock(t.Context(), producers.Block{Organization: "acme", Trail: schema.Activity, Events: codec.TakeBlock()}); err == nil {
		t.Error("an empty block is taken")
	}
}
