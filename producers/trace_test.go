package producers

import "testing"

// Without tracing, a message costs nothing for it.
func TestTracingThatIsOffAllocatesNothing(t *testing.T) {
	p := &Publisher{}
	if n := testing.AllocsPerRun(100, func() { p.trace(nil, nil)(nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
