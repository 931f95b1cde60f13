package metrics

import (
	"context"

	"github.com/kansa-audit/kansa/pipeline/deadletter"
)

// mostReasons bounds the values of the label.
const mostReasons = 20

// reasons are the dead letters by reason. The index reads those that are new, and counts the others
// without reading them again.
func (s *Sources) reasons(ctx context.Context, gauge gauger, count func(bound string, n uint64)) error {
	if s.DeadLetters == nil {
		return nil
	}
	err := s.DeadLetters.Update(ctx)
	others := uint64(0)
	for i, c := range s.DeadLetters.Kinds() {
		if i >= mostReasons || c.Kind == deadletter.Others {
			others += c.Letters
			continue
		}
		gauge(deadReasons, float64(c.Letters), c.Kind)
	}
	if others > 0 {
		gauge(deadReasons, float64(others), deadletter.Others)
	}
	for bound, n := range s.DeadLetters.Dropped() {
		count(bound, n)
	}
	return err
}
