package consumers

import (
	"errors"
	"time"
)

// ErrPermanent marks an error that the same attempt would meet again.
var ErrPermanent = errors.New("permanent")

// Permanent marks err so that errors.Is(err, ErrPermanent) holds, and keeps its text.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err}
}

type permanent struct{ error }

func (p *permanent) Unwrap() error        { return p.error }
func (p *permanent) Is(target error) bool { return target == ErrPermanent }

// Later has the task tried again after a pause. That decides, even if err answers to ErrPermanent:
// what is permanent for one attempt may be corrected by an operator later.
func Later(err error, pause time.Duration) error { return &later{err, pause} }

type later struct {
	error
	pause time.Duration
}

func (l *later) Unwrap() error { return l.error }
