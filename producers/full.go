package producers

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrStreamFull means that the broker refused events because their stream has no room: it holds as
// many bytes or messages as it may. A refused event is not stored. It is taken again when older
// messages have aged out or the bound is raised.
var ErrStreamFull = errors.New("the stream of events is full")

// StreamFull wraps err so that it answers to [ErrStreamFull], if it is JetStream's answer that a
// stream or its account has no room. It returns any other error unchanged.
func StreamFull(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || errors.Is(err, ErrStreamFull) || !IsFull(api) {
		return err
	}
	return &fullError{api}
}

// Codes of the server that the client does not name.
const (
	codeStoreFailed   jetstream.ErrorCode = 10077 // its description says why
	codeAccountLimits jetstream.ErrorCode = 10002
)

// IsFull reports whether an answer of JetStream says that a stream or its account has no room.
func IsFull(api *jetstream.APIError) bool {
	switch api.ErrorCode {
	case codeStoreFailed:
		return strings.HasPrefix(api.Description, "maximum ") // bytes, messages, messages per subject
	case codeAccountLimits:
		return true
	}
	return false
}

// fullError is the answer of a broker whose stream is full.
type fullError struct{ api *jetstream.APIError }

func (e *fullError) Error() string {
	return ErrStreamFull.Error() + " (" + e.api.Description + "): raise streams.audit_max_bytes, or wait until streams.audit_max_age makes room"
}

func (e *fullError) Unwrap() []error { return []error{ErrStreamFull, e.api} }

// trouble is why events wait that are not acknowledged yet: the broker's last answer, if it was an
// error.
type trouble struct{ last atomic.Pointer[error] }

func (t *trouble) is(err error) { t.last.Store(&err) }

func (t *trouble) over() { t.last.Store(nil) }

func (t *trouble) err() error {
	if err := t.last.Load(); err != nil {
		return *err
	}
	return nil
}

// because adds the broker's last answer to an error that only says that the time is over.
func because(err error, answers ...*trouble) error {
	for _, t := range answers {
		if answer := t.err(); answer != nil && !errors.Is(err, answer) {
			return fmt.Errorf("%w: the broker's last answer: %w", err, answer)
		}
	}
	return err
}

// answered reports whether err is an answer of the broker, not the lack of one.
func answered(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api)
}
