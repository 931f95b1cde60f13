// Package control carries what people's tools ask of a running system, over the broker both are connected
// to: a tool needs neither the engine's address nor a key, and a rule is checked in one place.
//
// It owns the form of questions and answers, and knows none of them.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema/tracecontext"
)

// Prefix is that of every subject of requests. Who may publish on it may do all that an operator may.
const Prefix = "kansa."

// ErrNobody means that no running system answers a request. The error names the role that would.
var ErrNobody = errors.New("nobody answers")

// ErrRefused is what the errors of the answering side are to the asking one.
var ErrRefused = errors.New("refused")

// refusal is an error of the answering side. It answers to that side's sentinel, too, which is known by its text.
type refusal struct{ text, kind string }

func (r refusal) Error() string { return r.text }
func (r refusal) Is(target error) bool {
	return target == ErrRefused || r.kind != "" && target.Error() == r.kind
}

type answer struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
	// Kind is the text of the first of Kinds to which the error answers.
	Kind string `json:"kind,omitempty"`
}

// Kinds are errors that the asking side tells apart with errors.Is, too.
type Kinds []error

// Busy counts the requests that were refused in this process because too many of their organization were under way.
func Busy() uint64 { return refusedBusy.Load() }

var refusedBusy atomic.Uint64

func (k Kinds) of(err error) string {
	for _, kind := range k {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return ""
}

// Verb is one thing that can be asked for. Make it with [On].
type Verb struct {
	name   string
	limit  time.Duration
	handle func(ctx context.Context, data []byte) (any, error)
	share  func(data []byte) string
}

// On is a verb that answers questions of one type, each within a limit.
func On[Q, A any](name string, limit time.Duration, handle func(ctx context.Context, q Q) (A, error)) Verb {
	share := func(data []byte) string {
		var q Q
		shared, ok := any(&q).(Shared)
		if !ok || json.Unmarshal(data, &q) != nil {
			return ""
		}
		return shared.Share()
	}
	return Verb{name: name, limit: limit, share: share, handle: func(ctx context.Context, data []byte) (any, error) {
		var q Q
		if err := json.Unmarshal(data, &q); err != nil {
			return nil, fmt.Errorf("read the question: %w", err)
		}
		return handle(ctx, q)
	}}
}

// Bounds of what is answered at once.
const (
	mostAtOnce  = 64 // of one verb
	mostOfShare = 4  // of one verb and one share
)

// ErrBusy means that too many requests of the same kind are under way for the same organization.
var ErrBusy = errors.New("too many requests of this kind are under way")

// Shared is a question that counts against an organization's share of a verb. It does not hold up other organizations.
type Shared interface{ Share() string }

// Serve answers until ctx ends, and returns when the last answer is given. Questions are answered at once, so many of a verb and fewer of each
// share; of several systems one answers each. A question that makes its handler panic is answered with an error.
func Serve(ctx context.Context, nc *nats.Conn, kinds Kinds, log *slog.Logger, verbs ...Verb) error {
	kinds = append(kinds, ErrBusy)
	var served sync.WaitGroup
	defer served.Wait()
	for _, v := range verbs {
		questions := make(chan *nats.Msg, mostAtOnce)
		sub, err := nc.ChanQueueSubscribe(Prefix+v.name, "kansa", questions)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", Prefix+v.name, err)
		}
		served.Go(func() {
			defer func() { _ = sub.Unsubscribe() }() // it fails only when the connection is closed
			v.serve(ctx, questions, kinds, log)
		})
	}
	<-ctx.Done()
	return nil
}

// serve answers the questions of one verb.
func (v Verb) serve(ctx context.Context, questions <-chan *nats.Msg, kinds Kinds, log *slog.Logger) {
	var answering sync.WaitGroup
	defer answering.Wait()
	all := make(chan struct{}, mostAtOnce)
	var mu sync.Mutex
	shares := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case all <- struct{}{}:
		}
		select {
		case <-ctx.Done():
			return
		case msg := <-questions:
			share := v.share(msg.Data)
			mu.Lock()
			busy := share != "" && shares[share] >= mostOfShare
			if !busy {
				shares[share]++
			}
			mu.Unlock()
			answering.Go(func() {
				defer func() { <-all }()
				ctx := tracecontext.From(request.With(ctx, msg.Header.Get(request.Header)), msg.Header)
				if busy {
					refusedBusy.Add(1)
					_ = msg.Respond(encode(answer{Error: fmt.Sprintf("%v for %s: try again when one has ended", ErrBusy, share), Kind: ErrBusy.Error()})) // who asked may be gone
					return
				}
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					if shares[share]--; shares[share] == 0 {
						delete(shares, share)
					}
				}()
				_ = msg.Respond(v.answer(ctx, msg.Data, kinds, log)) // who asked may be gone
			})
		}
	}
}

func (v Verb) answer(ctx context.Context, question []byte, kinds Kinds, log *slog.Logger) []byte {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	var a answer
	got, err := v.handled(ctx, question, log)
	if err == nil {
		a.Answer, err = json.Marshal(got)
	}
	if err != nil {
		a.Error, a.Kind = err.Error(), kinds.of(err)
	}
	return encode(a)
}

// handled calls the handler, and makes an error of a panic.
func (v Verb) handled(ctx context.Context, question []byte, log *slog.Logger) (got any, err error) {
	defer func() {
		if request.Caught(ctx, log, "request "+v.name, recover()) != nil {
			got, err = nil, fmt.Errorf("answer %s: a fault of the program: see its log", v.name)
		}
	}()
	return v.handle(ctx, question)
}

func encode(a answer) []byte {
	data, err := json.Marshal(a)
	if err != nil {
		return []byte(`{"error":"the answer cannot be encoded"}`)
	}
	return data
}

// Ask asks a running system and waits no longer than limit. role is the one that answers, for the error that says
// that none does.
func Ask[A, Q any](ctx context.Context, nc *nats.Conn, role, verb string, limit time.Duration, q Q) (A, error) {
	var got A
	data, err := json.Marshal(q)
	if err != nil {
		return got, fmt.Errorf("encode the question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	question := nats.NewMsg(Prefix + verb)
	question.Data = data
	if id := request.ID(ctx); id != "" {
		question.Header.Set(request.Header, id)
	}
	tracecontext.Into(ctx, question.Header)
	msg, err := nc.RequestMsgWithContext(ctx, question)
	if errors.Is(err, nats.ErrNoResponders) {
		return got, fmt.Errorf("%w: no %s is running: start kansa up, or kansa run %s, and ask again", ErrNobody, role, role)
	}
	if err != nil {
		return got, fmt.Errorf("ask %s: %w", verb, err)
	}
	var a answer
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return got, fmt.Errorf("read the answer: %w", err)
	}
	if a.Error != "" {
		return got, refusal{a.Error, a.Kind}
	}
	if err := json.Unmarshal(a.Answer, &got); err != nil {
		return got, fmt.Errorf("read the answer: %w", err)
	}
	return got, nil
}
