package codec

import (
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// benchEvents are about 500 bytes of JSON each. All are of one organization and trail, as a message's are.
func benchEvents() []schema.Event {
	now := time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC)
	src := sample.New(1, func() time.Time { now = now.Add(time.Millisecond); return now })
	events := make([]schema.Event, benchRows)
	for i := range events {
		events[i] = src.Next()
		events[i].Organization, events[i].Trail = "acme", schema.Activity
	}
	return events
}

var benchNow = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

const benchRows = 5000

func perEvent(b *testing.B, n, bytes int) {
	b.ReportAllocs()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/event")
	b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(bytes)/float64(n), "bytes/event")
}

func BenchmarkAppend(b *testing.B) {
	events := benchEvents()
	block := NewBlock()
	for b.Loop() {
		block.Reset()
		for i := range events {
			block.Append(&events[i])
		}
	}
	perEvent(b, len(events), block.Bytes())
}

func BenchmarkAppendNative(b *testing.B) {
	block := NewBlock()
	for _, e := range benchEvents() {
		block.Append(&e)
	}
	var dst []byte
	for b.Loop() {
		dst = block.AppendNative(dst[:0])
	}
	perEvent(b, block.Rows(), len(dst))
}

func benchNative() []byte {
	block := NewBlock()
	for _, e := range benchEvents() {
		block.Append(&e)
	}
	return block.AppendNative(nil)
}

func BenchmarkParseAndCheck(b *testing.B) {
	data := benchNative()
	for b.Loop() {
		block, err := ParseNative(data)
		if err != nil || len(block.Check(benchNow)) > 0 {
			b.Fatal("the block is refused")
		}
	}
	perEvent(b, benchRows, len(data))
}

func benchDecode(b *testing.B, m *Message) {
	b.Helper()
	m.Organization, m.Trail, m.StreamSeq, m.RecordedAt = "acme", schema.Activity, 1, benchNow
	for b.Loop() {
		d, err := Decode(m, benchNow)
		if err != nil || d.Block.Rows() != benchRows {
			b.Fatalf("the message is refused: %v", err)
		}
	}
	perEvent(b, benchRows, len(m.Payload))
}

func BenchmarkDecodeBlock(b *testing.B) {
	benchDecode(b, &Message{ContentType: ContentBlock, ContentEncoding: EncodingSnappy, Payload: Compress(EncodingSnappy, benchNative(), nil)})
}

func BenchmarkDecodeNDJSON(b *testing.B) {
	var w sliceWriter
	if err := EncodeNDJSON(&w, benchEvents()); err != nil {
		b.Fatal(err)
	}
	benchDecode(b, &Message{ContentType: ContentNDJSON, Payload: w.buf})
}
