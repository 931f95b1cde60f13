// Package recording knows which trails are switched off, for those who store events and seal hours: exactly, and not
// as it was a moment ago.
//
// It reads the switches and never turns one. What is recorded is a matter of the broker's clock alone: a message is
// left out if the broker stored it while the switch was off. A switch is turned when the broker has stored that, by the
// same clock. So whoever has a message and asks then, comes to the same result, whoever he is.
package recording

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
)

// ErrUnknown means that it is not known what is switched off.
var ErrUnknown = errors.New("the switches of the trails can not be read")

// State is what was switched off up to a moment. The zero value says that nothing was.
type State struct {
	of map[string]*schema.Recording
	// unknown are the organizations whose switches cannot be read.
	unknown map[string]error
}

// Unknown returns why it is not known what is switched off of an organization, or nil. Nothing of it is to be stored or sealed until that is
// known again; the others are not concerned.
func (s State) Unknown(organization string) error { return s.unknown[organization] }

// Complete reports whether the switches of every organization can be read.
func (s State) Complete() bool { return len(s.unknown) == 0 }

// AnyUnknown visits the organizations whose switches cannot be read.
func (s State) AnyUnknown(visit func(organization string, err error)) {
	for organization, err := range s.unknown {
		visit(organization, err)
	}
}

// Off tells whether what the broker stored of a trail at a time is left out.
func (s State) Off(organization string, trail schema.Trail, at time.Time) bool {
	r, ok := s.of[organization]
	return ok && r.Off(trail, at)
}

// Each visits the gaps of every trail that overlap an interval, cut to it.
func (s State) Each(from, to time.Time, visit func(organization string, trail schema.Trail, g schema.RecordingGap)) {
	for organization, r := range s.of {
		for trail := range r.Turns {
			for _, g := range r.Gaps(trail) {
				if !g.From.Before(to) || !g.To.IsZero() && !g.To.After(from) {
					continue
				}
				if g.From.Before(from) {
					g.From = from
				}
				if g.To.IsZero() || g.To.After(to) {
					g.To = to
				}
				visit(organization, trail, g)
			}
		}
	}
}

// Trails counts those whose switch is off.
func (s State) Trails() (off int) {
	for _, r := range s.of {
		for trail := range r.Turns {
			if !r.On(trail) {
				off++
			}
		}
	}
	return off
}

// Reader reads the switches. It remembers them, and asks each time what is new. It is safe for concurrent use.
type Reader struct {
	js jetstream.JetStream

	mu    sync.Mutex // held while somebody asks
	seq   uint64     // up to which all is read
	state State
}

// New returns a reader.
func New(js jetstream.JetStream) *Reader { return &Reader{js: js} }

// Now returns the state as it is when it is called, or a little later. It asks the stream's leader, for a copy may be
// behind: one short question, unless something is new.
func (r *Reader) Now(ctx context.Context) (State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copied := false
	for {
		m, err := r.after(ctx, r.seq)
		if err != nil {
			return State{}, err
		}
		if m == nil {
			return r.state, nil
		}
		if !copied { // those who have a state keep it
			of := make(map[string]*schema.Recording, len(r.state.of)+1)
			maps.Copy(of, r.state.of)
			unknown := make(map[string]error, len(r.state.unknown))
			maps.Copy(unknown, r.state.unknown)
			r.state.of, r.state.unknown, copied = of, unknown, true
		}
		organization, ok := strings.CutPrefix(m.Subject, schema.RecordingKeys+".")
		if !ok {
			return State{}, fmt.Errorf("%w: there is a message on %s", ErrUnknown, m.Subject)
		}
		of, err := schema.ParseRecording(m.Data, m.Time)
		if r.seq = m.Seq; err != nil {
			r.state.unknown[organization] = fmt.Errorf("%w: %s: %w", ErrUnknown, organization, err)
			continue
		}
		delete(r.state.unknown, organization)
		r.state.of[organization] = of
	}
}

type stored struct {
	Subject string    `json:"subject"`
	Seq     uint64    `json:"seq"`
	Data    []byte    `json:"data"`
	Time    time.Time `json:"time"`
}

// after returns the first message behind a sequence, or nil.
func (r *Reader) after(ctx context.Context, seq uint64) (*stored, error) {
	question, err := json.Marshal(map[string]any{"seq": seq + 1, "next_by_subj": schema.RecordingKeys + ".>"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *stored             `json:"message"`
	}
	o := r.js.Options()
	ctx, cancel := context.WithTimeout(ctx, o.DefaultTimeout)
	defer cancel()
	// The client's own GetMsg would ask any copy.
	msg, err := r.js.Conn().RequestWithContext(ctx, schema.JetStreamAPI(o.APIPrefix, o.Domain)+"STREAM.MSG.GET."+schema.RecordingStream, question)
	if errors.Is(err, nats.ErrNoResponders) {
		err = fmt.Errorf("nobody answers for stream %s", schema.RecordingStream)
	}
	if err == nil {
		err = json.Unmarshal(msg.Data, &answer)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case answer.Error != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnknown, answer.Error)
	case answer.Message == nil:
		return nil, fmt.Errorf("%w: the broker's answer has no message", ErrUnknown)
	}
	return answer.Message, nil
}
