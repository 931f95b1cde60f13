// Package relay is the NATS entry point for publishers that have a login of their own: it receives their messages of events and
// publishes them on the stream.
//
// Such a publisher cannot reach the stream itself, since a stream knows neither who published a message nor whose message id it
// carries. The relay owns what is added on the way: the name of the credential, as the server reports it, and a message id that is
// unique to the organization. It removes every other header that it does not know. It never reads an event, keeps nothing, and
// never acknowledges: the acknowledgement that it passes back is the stream's.
package relay

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/schema"
)

// Config holds the settings of a [Relay]. The zero value of a field means its default.
type Config struct {
	// Credential names who published, by the account and the user that the server reports. It is recorded with every event. Required.
	Credential func(account, user string) string
	// Limit returns an error if a publisher may not publish a message of so many bytes now, headers included; the publisher gets its
	// text. Default: no limit.
	Limit func(organization, credential string, bytes int) error
	// Bulk says whether a message of so many bytes goes into the bulk lane of the stream, which is stored after the messages of others. A
	// publisher may choose that lane itself. Default: never.
	Bulk func(organization string, bytes int) bool
	// MaxPending bounds the bytes of messages that wait for the relay; beyond it messages are dropped, and their publishers, who get no
	// acknowledgement, send them again. Default 256 MiB.
	MaxPending int
	Logger     *slog.Logger
}

// Relay is a running relay. Several may run, in any number of processes: each message goes to one of them.
type Relay struct {
	cfg  Config
	nc   *nats.Conn
	in   *nats.Subscription
	acks *nats.Subscription
	// inbox begins the reply subjects of what is published on the stream; a token of the window and the publisher's own reply subject
	// follow.
	inbox    string
	window   *window
	refusals refusals

	relayed, refused, limited, panics atomic.Uint64
}

// queue is the queue group of all relays.
const queue = "kansa"

// maxID bounds a message id; the broker keeps each one in memory for the duplicate window.
const maxID = 512

// passed are the headers that a publisher may set. All others, known to the server or to Kansa, are removed.
var passed = []string{schema.HeaderContentType, schema.HeaderContentEncoding, schema.HeaderFirstAttempt, schema.HeaderGivenIDs, "traceparent", "tracestate"}

// Start starts a relay on a connection of its own, which may use the stream. The connection is the caller's to close, after Close.
func Start(nc *nats.Conn, cfg Config) (*Relay, error) {
	if cfg.Credential == nil {
		return nil, errors.New("relay settings: Credential is missing: say how publishers are named")
	}
	if cfg.Limit == nil {
		cfg.Limit = func(string, string, int) error { return nil }
	}
	if cfg.Bulk == nil {
		cfg.Bulk = func(string, int) bool { return false }
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 256 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Relay{cfg: cfg, nc: nc, inbox: nats.NewInbox() + ".", window: newWindow()}
	var err error
	if r.acks, err = nc.Subscribe(r.inbox+">", r.acknowledge); err != nil {
		return nil, fmt.Errorf("subscribe to the stream's acknowledgements: %w", err)
	}
	if r.in, err = nc.QueueSubscribe(schema.SubjectRelay+".>", queue, r.relay); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to %s: %w", schema.SubjectRelay, err), r.acks.Unsubscribe())
	}
	for _, sub := range []*nats.Subscription{r.in, r.acks} {
		if err := sub.SetPendingLimits(math.MaxInt32, cfg.MaxPending); err != nil {
			return nil, errors.Join(fmt.Errorf("bound what waits for the relay: %w", err), r.in.Unsubscribe(), r.acks.Unsubscribe())
		}
	}
	// When the server answers, it has the subscriptions, and serves what is published from now on.
	if err := nc.FlushTimeout(10 * time.Second); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the relay's subscriptions: %w", err), r.in.Unsubscribe(), r.acks.Unsubscribe())
	}
	return r, nil
}

// Close stops receiving, and returns when what was forwarded is on its way to the stream. Messages that wait behind others of their
// organization are dropped; their publishers get no acknowledgement and send them again.
func (r *Relay) Close() error {
	if r.nc.IsClosed() {
		return nil
	}
	if err := r.in.Drain(); err != nil {
		return fmt.Errorf("stop the relay: %w", err)
	}
	deadline := time.NewTimer(3 * time.Second)
	defer deadline.Stop()
	closed := r.in.StatusChanged(nats.SubscriptionClosed)
	if r.in.IsValid() {
		select {
		case <-closed:
		case <-deadline.C:
		}
	}
	if err := r.nc.FlushTimeout(3 * time.Second); err != nil {
		// The broker is away. Messages that did not reach it are not acknowledged, so nothing is lost.
		r.cfg.Logger.Info("the relay stopped without the broker", slog.Any("error", err))
	}
	return nil
}

// Stats counts since the relay was started.
type Stats struct {
	Relayed uint64 // messages published on the stream
	Refused uint64 // messages refused because of their subject or headers
	Limited uint64 // messages refused because their publisher exceeded a limit
	Panics  uint64 // messages that made the relay panic
}

// Stats returns the counts.
func (r *Relay) Stats() Stats {
	return Stats{Relayed: r.relayed.Load(), Refused: r.refused.Load(), Limited: r.limited.Load(), Panics: r.panics.Load()}
}

// relay publishes a message on the stream. The stream acknowledges to the inbox, with the publisher's reply subject behind it.
func (r *Relay) relay(m *nats.Msg) {
	defer func() {
		if p := recover(); p != nil {
			r.panics.Add(1)
			r.cfg.Logger.Error("a message made the relay panic: this is a fault of the program, please report it",
				slog.String("subject", m.Subject), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			r.refuse(m, 500, "a fault of the relay: see its log")
		}
	}()
	rest, _ := strings.CutPrefix(m.Subject, schema.SubjectRelay)
	out := &nats.Msg{Subject: schema.SubjectEvents + rest, Data: m.Data, Header: nats.Header{}}
	organization, trail, err := schema.ParseEventSubject(out.Subject)
	if err == nil {
		if f := schema.CheckReserved(organization, ""); f != nil {
			err = f
		}
	}
	if err != nil {
		r.refused.Add(1)
		r.refuse(m, 400, err.Error())
		return
	}
	credential := r.credential(m)
	if err := r.cfg.Limit(organization, credential, size(m)); err != nil {
		r.limited.Add(1)
		r.refuseLater(m, credential, err.Error())
		return
	}
	for _, name := range passed {
		if v := m.Header[name]; len(v) > 0 {
			out.Header[name] = v[:1]
		}
	}
	if id := m.Header.Get(nats.MsgIdHdr); len(id) > maxID {
		r.refused.Add(1)
		r.refuse(m, 400, fmt.Sprintf("%s has %d bytes: shorten it to %d", nats.MsgIdHdr, len(id), maxID))
		return
	} else if id != "" {
		out.Header.Set(nats.MsgIdHdr, organization+"/"+id)
	}
	out.Header.Set(schema.HeaderRecordedBy, credential)
	token, ok := r.window.take(organization, credential, size(m), time.Now())
	if !ok {
		r.limited.Add(1)
		r.refuseLater(m, credential, fmt.Sprintf("%s has too much on its way without an acknowledgement: wait for acknowledgements, and publish again", credential))
		return
	}
	if r.cfg.Bulk(organization, size(m)) {
		out.Subject = schema.BulkSubject(organization, trail, schema.SlotOf(cmp.Or(m.Header.Get(nats.MsgIdHdr), token)))
	}
	out.Reply = r.inbox + token
	if m.Reply != "" {
		out.Reply += "." + m.Reply
	}
	r.forward(r.window.forward(token, out))
}

// forward publishes messages on the stream.
func (r *Relay) forward(messages []*nats.Msg) {
	for len(messages) > 0 {
		m := messages[0]
		messages = messages[1:]
		if err := r.nc.PublishMsg(m); err != nil {
			token, _, _ := strings.Cut(strings.TrimPrefix(m.Reply, r.inbox), ".")
			messages = append(messages, r.window.give(token)...)
			// Its publisher gets no acknowledgement, and sends it again.
			r.cfg.Logger.Warn("relay failed, the publisher will send the message again", slog.String("subject", m.Subject), slog.Any("error", err))
			continue
		}
		r.relayed.Add(1)
	}
}

// size is what a message takes in the stream. Headers count: a message without data can have 64 KiB of them.
func size(m *nats.Msg) int {
	n := len(m.Subject) + len(m.Data)
	for name, values := range m.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// credential names the publisher of m, as the server states it. A publisher cannot state it: the server replaces the header.
func (r *Relay) credential(m *nats.Msg) string {
	var client struct {
		Account string `json:"acc"`
		User    string `json:"user"`
	}
	if err := json.Unmarshal([]byte(m.Header.Get("Nats-Request-Info")), &client); err != nil {
		return r.cfg.Credential("", "")
	}
	return r.cfg.Credential(client.Account, client.User)
}

// acknowledge passes an acknowledgement of the stream, or its error, on to the publisher.
func (r *Relay) acknowledge(m *nats.Msg) {
	rest, ok := strings.CutPrefix(m.Subject, r.inbox)
	if !ok {
		return
	}
	token, reply, _ := strings.Cut(rest, ".")
	r.forward(r.window.give(token))
	if reply == "" { // the publisher wants no acknowledgement
		return
	}
	if err := r.nc.PublishMsg(&nats.Msg{Subject: reply, Data: m.Data, Header: m.Header}); err != nil {
		r.cfg.Logger.Warn("an acknowledgement was not passed on, the publisher will send the message again", slog.Any("error", err))
	}
}

// refuseLater refuses a message that exceeds a limit: at once, or after a while if its credential is refused again and again.
func (r *Relay) refuseLater(m *nats.Msg, credential, description string) {
	if r.refusals.often(credential, time.Now()) {
		later := &nats.Msg{Reply: m.Reply} // without the data, which can be large
		time.AfterFunc(refusalDelay, func() {
			r.refusals.waiting.Add(-1)
			r.refuse(later, 429, description)
		})
		return
	}
	r.refuse(m, 429, description)
}

// refuse answers as the stream does when it refuses a message.
func (r *Relay) refuse(m *nats.Msg, code int, description string) {
	if m.Reply == "" || r.nc.IsClosed() {
		return
	}
	var answer struct {
		Error struct {
			Code        int    `json:"code"`
			ErrCode     int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	answer.Error.Code, answer.Error.ErrCode, answer.Error.Description = code, errCode, description
	data, err := json.Marshal(answer)
	if err == nil {
		err = r.nc.Publish(m.Reply, data)
	}
	if err != nil {
		r.cfg.Logger.Warn("a refusal was not passed on", slog.Any("error", err))
	}
}

// errCode is not among the codes of JetStream, so that clients do not take a refusal for one of its
// errors. Clients read it into 16 bits: with a larger code they report an invalid answer in place
// of the reason.
const errCode = 60_000
