package main

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// poolEvents is how many different events there are; the same everywhere, so that the pipeline and its
// ceilings get the same rows. More than one insert holds, so that no compressor sees a row twice.
const poolEvents = 1 << 18

// blockEvents and blockBytes are the SDK's own bounds of a message.
const (
	blockEvents = 5000
	blockBytes  = 1 << 20
)

// eachEvent makes the first n events of the pool.
func eachEvent(n int, visit func(e *schema.Event)) {
	source := sample.New(1, nil)
	for range n {
		e := source.Next()
		visit(&e)
	}
}

// prepareEvents makes n events of the pool as an application has them in its hands: without ids, as most
// leave them out, so that making them is part of what is measured; and their values side by side, for an
// application has just made the event and does not look for its parts all over 200 MB.
func prepareEvents(n int) []schema.Event {
	pool := make([]schema.Event, 0, n)
	eachEvent(n, func(e *schema.Event) {
		size := 0
		for i := range schema.Fields {
			if f := &schema.Fields[i]; f.Kind == schema.KindText || f.Kind == schema.KindJSON {
				size += len(f.Text(e))
			}
		}
		values := make([]byte, 0, size)
		for i := range schema.Fields {
			if f := &schema.Fields[i]; f.Kind == schema.KindText || f.Kind == schema.KindJSON {
				at := len(values)
				values = append(values, f.Text(e)...)
				f.SetText(e, unsafe.String(unsafe.SliceData(values[at:]), len(values)-at))
			}
		}
		e.ID = [16]byte{}
		pool = append(pool, *e)
	})
	return pool
}

type lane struct {
	organization string
	trail        schema.Trail
}

// preparedBlock is what one columnar message holds.
type preparedBlock struct {
	lane
	block *codec.Block
}

// prepareBlocks packs n events of the pool as the SDK does under load.
func prepareBlocks(n int) []preparedBlock {
	var full []preparedBlock
	open := map[lane]*codec.Block{}
	eachEvent(n, func(e *schema.Event) {
		l := lane{e.Organization, e.Trail}
		b := open[l]
		if b == nil {
			b = codec.NewBlock()
			open[l] = b
		}
		b.Append(e)
		if b.Rows() >= blockEvents || b.Bytes() >= blockBytes {
			full = append(full, preparedBlock{l, b})
			delete(open, l)
		}
	})
	for _, org := range sample.Organizations {
		for _, trail := range schema.Trails {
			if b := open[lane{org, trail}]; b != nil {
				full = append(full, preparedBlock{lane{org, trail}, b})
			}
		}
	}
	return full
}

// preparedMessage is a message ready to be sent, but for its id.
type preparedMessage struct {
	subject, contentType, encoding string
	data                           []byte
	events                         int
}

// ndjsonEvents is how many events an NDJSON message holds.
const ndjsonEvents = 2000

// prepareMessages makes n events of the pool into messages of one kind.
func prepareMessages(n int, kind string) ([]preparedMessage, error) {
	var all []preparedMessage
	if kind == kindColumnar {
		for _, b := range prepareBlocks(n) {
			all = append(all, preparedMessage{
				schema.EventSubject(b.organization, b.trail), codec.ContentBlock, codec.EncodingSnappy,
				codec.Compress(codec.EncodingSnappy, b.block.AppendNative(nil), nil), b.block.Rows(),
			})
		}
		return all, nil
	}
	perMessage, contentType := ndjsonEvents, codec.ContentNDJSON
	before, after := "", "\n"
	switch kind {
	case kindSingle:
		perMessage, contentType, after = 1, codec.ContentJSON, ""
	case kindFlat:
		perMessage, contentType, before, after = flatEvents, codec.ContentJSON, ",", ""
	}
	open := map[lane]*preparedMessage{}
	var err error
	eachEvent(n, func(e *schema.Event) {
		l := lane{e.Organization, e.Trail}
		m := open[l]
		if m == nil {
			m = &preparedMessage{subject: schema.EventSubject(l.organization, l.trail), contentType: contentType}
			open[l] = m
		}
		m.data = append(m.data, before...)
		var failed error
		if kind == kindFlat {
			var one []byte
			one, failed = flatJSON(e)
			m.data = append(m.data, one...)
		} else {
			m.data, failed = codec.AppendJSON(m.data, e)
		}
		if failed != nil {
			err = fmt.Errorf("encode an event: %w", failed)
		}
		m.data = append(m.data, after...)
		if m.events++; m.events == perMessage {
			if kind == kindFlat { // an array: the first comma becomes its beginning
				m.data[0] = '['
				m.data = append(m.data, ']')
			}
			all = append(all, *m)
			delete(open, l)
		}
	})
	return all, err // what is left in open would be small messages, which the stream has none of under load
}

// jsonBytes is the mean size of the pool's events as JSON, the measure of MB/s.
func jsonBytes() float64 {
	const n = 5000
	total := 0
	var buf []byte
	eachEvent(n, func(e *schema.Event) {
		if out, err := codec.AppendJSON(buf[:0], e); err == nil {
			buf = out
			total += len(out)
		}
	})
	return float64(total) / n
}

// expires is when the rows of a ceiling do.
func expires(recorded time.Time) time.Time { return recorded.AddDate(2, 0, 0) }
