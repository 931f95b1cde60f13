package gateway_test

import (
	"bytes"
	"compress/gzip"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// packing is a way of compressing a body.
type packing struct{ name, encoding string }

var encodings = []packing{{"plain", ""}, {"gzip", "gzip"}, {"snappy", "snappy"}, {"snappy stream", "snappy"}, {"zstd", "zstd"}, {"zstd stream", "zstd"}}

func (p packing) header() []string {
	if p.encoding == "" {
		return nil
	}
	return []string{"Content-Encoding", p.encoding}
}

func (p packing) pack(t testing.TB, data []byte) []byte { return pack(t, p.name, data) }

func pack(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	switch name {
	case "gzip":
		w := gzip.NewWriter(&out)
		_, err := w.Write(data)
		check(err)
		check(w.Close())
	case "snappy":
		return s2.EncodeSnappy(nil, data)
	case "snappy stream":
		w := s2.NewWriter(&out, s2.WriterSnappyCompat(), s2.WriterConcurrency(1))
		_, err := w.Write(data)
		check(err)
		check(w.Close())
	case "zstd":
		w, err := zstd.NewWriter(nil)
		check(err)
		return w.EncodeAll(data, nil)
	case "zstd stream":
		w, err := zstd.NewWriter(&out, zstd.WithWindowSize(4<<20), zstd.WithEncoderConcurrency(1))
		check(err)
		for len(data) > 0 { // flushed, so that the size is not known
			n := min(len(data), 8<<10)
			_, err = w.Write(data[:n])
			check(err)
			check(w.Flush())
			data = data[n:]
		}
		check(w.Close())
	default:
		return data
	}
	return out.Bytes()
}
