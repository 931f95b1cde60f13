package relay

import (
	"strconv"
	"sync"
	"time"
)

// Bounds of what one credential may have on its way to the stream without an acknowledgement. The stream syncs some thousands of messages a
// second one after another, so this is what one publisher can put before the messages of others.
const (
	mostUnacked      = 1024
	mostUnackedBytes = 32 << 20
	// forgotten is how long an acknowledgement may take. A broker that was started again never sends those of before.
	forgotten = 30 * time.Second
)

// window knows what each credential has on its way.
type window struct {
	mu    sync.Mutex
	next  uint64
	sent  map[uint64]sent
	of    map[string]*unacked
	swept time.Time
}

type sent struct {
	credential string
	bytes      int
	at         time.Time
}

type unacked struct{ messages, bytes int }

func newWindow() *window {
	return &window{sent: map[uint64]sent{}, of: map[string]*unacked{}}
}

// take counts a message, and returns the token that gives it back; false if its credential has too much on its way.
func (w *window) take(credential string, bytes int, now time.Time) (token string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.swept) > time.Second {
		w.swept = now
		for id, s := range w.sent {
			if now.Sub(s.at) > forgotten {
				w.remove(id)
			}
		}
	}
	u := w.of[credential]
	if u == nil {
		u = &unacked{}
		w.of[credential] = u
	}
	if u.messages > 0 && (u.messages >= mostUnacked || u.bytes+bytes > mostUnackedBytes) {
		return "", false
	}
	u.messages++
	u.bytes += bytes
	w.next++
	w.sent[w.next] = sent{credential, bytes, now}
	return strconv.FormatUint(w.next, 36), true
}

// give gives back the message of a token, if it is on its way.
func (w *window) give(token string) {
	id, err := strconv.ParseUint(token, 36, 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(id)
}

// remove is called with the lock.
func (w *window) remove(id uint64) {
	s, ok := w.sent[id]
	if !ok {
		return
	}
	delete(w.sent, id)
	u := w.of[s.credential]
	u.messages--
	u.bytes -= s.bytes
	if u.messages == 0 {
		delete(w.of, s.credential)
	}
}
