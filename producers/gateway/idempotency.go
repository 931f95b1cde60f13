package gateway

import (
	"crypto/sha256"
	"sync"
	"time"
)

// known remembers which body came with an Idempotency-Key, so that another one with the same key is refused.
// It is a courtesy: what keeps a repetition from being stored twice is on the broker, and holds across
// processes and restarts. What is remembered is bounded, the oldest half is forgotten first.
type known struct {
	window time.Duration

	mu        sync.Mutex
	now, last map[[32]byte]knownBody
	since     time.Time // of now
}

type knownBody struct {
	sum [32]byte
	at  time.Time
}

// maxKnown bounds each half.
const maxKnown = 1 << 16

// clashes reports whether another body came with this key within the window.
func (k *known) clashes(client, key string, sum [32]byte, at time.Time) bool {
	id := sha256.Sum256([]byte(client + "\x00" + key))
	k.mu.Lock()
	defer k.mu.Unlock()
	b, ok := k.now[id]
	if !ok {
		b, ok = k.last[id]
	}
	return ok && b.sum != sum && at.Sub(b.at) < k.window
}

// remember is for a body of which something was handed to the broker.
func (k *known) remember(client, key string, sum [32]byte, at time.Time) {
	id := sha256.Sum256([]byte(client + "\x00" + key))
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now == nil || len(k.now) >= maxKnown || at.Sub(k.since) >= k.window {
		k.last, k.now, k.since = k.now, map[[32]byte]knownBody{}, at
	}
	k.now[id] = knownBody{sum, at}
}
