package writer

import (
	"sync"

	"github.com/kansa-audit/kansa/schema"
)

// Memory that messages are decompressed into is used again: clearing new memory would cost as much as
// decompressing. It comes in multiples of scratchStep, so that little of it is held for nothing.
const scratchStep = 256 << 10

var scratches [schema.MaxMessageBytes / scratchStep]sync.Pool

// getScratch returns memory for size bytes, or nil if there is no size that is known to be allowed.
func getScratch(size int) []byte {
	if size <= 0 || size > schema.MaxMessageBytes {
		return nil
	}
	if size < scratchStep/4 {
		return make([]byte, 0, size) // and not kept: see putScratch
	}
	class := (size - 1) / scratchStep
	if b, ok := scratches[class].Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 0, (class+1)*scratchStep)
}

func putScratch(b []byte) {
	if n := cap(b); n > 0 && n%scratchStep == 0 {
		scratches[n/scratchStep-1].Put(&b)
	}
}
