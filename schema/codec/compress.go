package codec

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/kansa-audit/kansa/schema"
)

// Content encodings of a message; none is the third choice.
const (
	// EncodingSnappy is one block in the form of Snappy. It costs a third of the time of zstd and is half
	// as large again.
	EncodingSnappy = "snappy"
	EncodingZstd   = "zstd" // RFC 8878
)

// A shared decoder is safe for concurrent DecodeAll. Its limit is what makes a small payload that
// claims to be huge harmless.
var zstdDecoder, _ = zstd.NewReader(nil,
	zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(schema.MaxMessageBytes), zstd.WithDecodeAllCapLimit(false))

var zstdEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true))

// Compress returns data in an encoding, in scratch if there is room. It panics if the encoding is not one of
// this package's.
func Compress(encoding string, data, scratch []byte) []byte {
	switch encoding {
	case "":
		return data
	case EncodingSnappy:
		return s2.EncodeSnappy(scratch[:cap(scratch)], data)
	case EncodingZstd:
		return zstdEncoder.EncodeAll(data, scratch[:0])
	}
	panic("codec: encoding " + encoding + " is not known")
}

// DecodedLen is what a payload says that it holds, or 0 if it does not say, or is not compressed.
func DecodedLen(encoding string, payload []byte) int {
	switch encoding {
	case EncodingSnappy:
		if n, err := s2.DecodedLen(payload); err == nil {
			return n
		}
	case EncodingZstd:
		var h zstd.Header
		if err := h.Decode(payload); err == nil && h.HasFCS && h.FrameContentSize <= schema.MaxMessageBytes {
			return int(h.FrameContentSize)
		}
	}
	return 0
}

// decompress returns what a payload holds, up to schema.MaxMessageBytes of it, in scratch if there is room.
func decompress(encoding string, payload, scratch []byte) (data []byte, err error) {
	switch encoding {
	case "":
		data = payload
	case EncodingSnappy:
		// The length comes first, so that a lie is found before anything is allocated.
		var n int
		if n, err = s2.DecodedLen(payload); err == nil && n > schema.MaxMessageBytes {
			err = errors.New("it is too long")
		}
		if err == nil {
			data, err = s2.Decode(scratch[:cap(scratch)], payload)
		}
	case EncodingZstd:
		data, err = zstdDecoder.DecodeAll(payload, scratch[:0])
	default:
		return nil, fmt.Errorf("%w: content encoding %.64q is not known: use %s, %s or none", ErrMalformed, encoding, EncodingSnappy, EncodingZstd)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: decompress: %w", ErrMalformed, err)
	}
	if len(data) > schema.MaxMessageBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(data), schema.MaxMessageBytes)
	}
	return data, nil
}
