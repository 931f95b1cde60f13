package relay

import (
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// The stream syncs some thousands of messages a second one after another, so what one publisher has on its way can be before the
// messages of others. Messages beyond what an organization may have at the stream wait here; beyond what a credential may have on its
// way in all, they are refused.
const (
	mostUnacked      = 1024     // messages of one credential
	mostUnackedBytes = 32 << 20 // of one credential
	mostAtStream     = 1 << 20  // bytes of one organization that the stream did not acknowledge yet
	// forgotten is how long an acknowledgement may take. A broker that was started again never sends those of before. overdue is how
	// long messages of the same organization wait for it.
	forgotten = 30 * time.Second
	overdue   = 5 * time.Second
)

// window knows what each credential and each organization has on its way.
type window struct {
	mu    sync.Mutex
	next  uint64
	sent  map[uint64]*sent
	of    map[string]*unacked // by credential
	at    map[string]*atStream
	swept time.Time
}

type sent struct {
	organization, credential string
	bytes                    int
	at                       time.Time
	message                  *nats.Msg // while it waits
	counted                  bool      // in what its organization has at the stream
}

type unacked struct{ messages, bytes int }

// atStream is what the stream was given of an organization, and what waits behind it.
type atStream struct {
	bytes   int
	waiting []uint64
}

func newWindow() *window {
	return &window{sent: map[uint64]*sent{}, of: map[string]*unacked{}, at: map[string]*atStream{}}
}

// take counts a message, and returns the token that gives it back; false if its credential has too much on its way.
func (w *window) take(organization, credential string, bytes int, now time.Time) (token string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.swept) > time.Second {
		w.swept = now
		for id, s := range w.sent {
			switch age := now.Sub(s.at); {
			case age > forgotten:
				w.remove(id)
			case age > overdue && s.counted:
				w.uncount(s)
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
	w.sent[w.next] = &sent{organization: organization, credential: credential, bytes: bytes, at: now}
	return strconv.FormatUint(w.next, 36), true
}

// forward has the message of a token wait for its turn, and returns the messages of its organization whose turn it is.
func (w *window) forward(token string, m *nats.Msg) []*nats.Msg {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, s := w.find(token)
	if s == nil {
		return nil
	}
	s.message = m
	a := w.at[s.organization]
	if a == nil {
		a = &atStream{}
		w.at[s.organization] = a
	}
	a.waiting = append(a.waiting, id)
	return w.due(s.organization)
}

// give gives back the message of a token, if it is on its way, and returns the messages whose turn it is now.
func (w *window) give(token string) []*nats.Msg {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, s := w.find(token)
	if s == nil {
		return nil
	}
	w.remove(id)
	return w.due(s.organization)
}

func (w *window) find(token string) (id uint64, s *sent) {
	id, err := strconv.ParseUint(token, 36, 64)
	if err != nil {
		return 0, nil
	}
	return id, w.sent[id]
}

// due returns the messages of an organization whose turn it is, and counts them. The caller holds mu.
func (w *window) due(organization string) (messages []*nats.Msg) {
	a := w.at[organization]
	if a == nil {
		return nil
	}
	for len(a.waiting) > 0 {
		s := w.sent[a.waiting[0]]
		if s != nil && a.bytes > 0 && a.bytes+s.bytes > mostAtStream {
			break
		}
		a.waiting = a.waiting[1:]
		if s == nil { // it was given up
			continue
		}
		a.bytes += s.bytes
		s.counted = true
		messages = append(messages, s.message)
		s.message = nil
	}
	w.forget(organization, a)
	return messages
}

func (w *window) uncount(s *sent) {
	a := w.at[s.organization]
	a.bytes -= s.bytes
	s.counted = false
	w.forget(s.organization, a)
}

func (w *window) forget(organization string, a *atStream) {
	if a.bytes == 0 && len(a.waiting) == 0 {
		delete(w.at, organization)
	}
}

// remove is called with the lock.
func (w *window) remove(id uint64) {
	s := w.sent[id]
	delete(w.sent, id)
	if s.counted {
		w.uncount(s)
	}
	u := w.of[s.credential]
	u.messages--
	u.bytes -= s.bytes
	if u.messages == 0 {
		delete(w.of, s.credential)
	}
}
