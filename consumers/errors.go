package consumers

import "errors"

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
