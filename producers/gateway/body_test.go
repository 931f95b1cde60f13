package gateway

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Whatever comes, what is read is no longer than the limit, and all memory is given back.
func FuzzRead(f *testing.F) {
	text := bytes.Repeat([]byte("some lines of text\n"), 100)
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, uint8(0))
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xffKLJ\x06\x00\xc2A$5\x03\x00\x00\x00"), uint8(1))
	f.Add(s2.EncodeSnappy(nil, text), uint8(2))
	f.Add([]byte(snappyStream+"\x01\x07\x00\x00\x00\x00\x00\x00abc"), uint8(2))
	f.Add(z.EncodeAll(text, nil), uint8(3))
	f.Add(z.EncodeAll(make([]byte, 1<<20), nil), uint8(3))
	const all = 64 << 20
	m := newMemory(all, all)
	f.Fuzz(func(t *testing.T, body []byte, way uint8) {
		for _, size := range []int64{int64(len(body)), -1} {
			const limit = 1 << 16
			l := &lease{m: m, client: "c"}
			b := &bodyReader{ctx: t.Context(), lease: l, limit: limit, body: bytes.NewReader(body), size: size}
			data, err := b.read(append([]string{""}, encodings...)[int(way)%4])
			var p *problem
			switch {
			case err != nil && !errors.As(err, &p):
				t.Errorf("%v", err)
			case len(data) > limit:
				t.Errorf("%d bytes", len(data))
			case err == nil && int64(len(data)) > l.held:
				t.Errorf("%d bytes, %d held", len(data), l.held)
			}
			b.release()
			l.keep(0)
		}
		if len(m.clients) > 0 || !m.all.TryAcquire(all) {
			t.Fatal("memory is not given back")
		}
		m.all.Release(all)
	})
}
