package producers

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// What an event costs its caller, without the broker: rules, id, and its place in a block.
func BenchmarkAdd(b *testing.B) {
	source := sample.New(1, nil)
	events := make([]schema.Event, 4096)
	for i := range events {
		events[i] = source.Next()
		events[i].ID = [16]byte{}
	}
	nc, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1)) // nobody is there
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	p, err := New(js, Config{MaxEvents: 1 << 16, LingerAsync: time.Hour, MaxBuffered: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%4096 == 0 { // nothing is sent
			b.StopTimer()
			for _, l := range p.lanes {
				l.timer.Stop()
				p.buffer.Release(l.open.held)
				l.open.block.GiveBack()
			}
			clear(p.lanes)
			b.StartTimer()
		}
		e := events[i%4096]
		if _, err := p.PublishAsync(context.Background(), e); err != nil {
			b.Fatal(err)
		}
	}
}
