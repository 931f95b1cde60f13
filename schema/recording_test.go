package schema_test

import (
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Requirement Z2: off at once, on again soon, and what was before stays.
func TestRecordingGaps(t *testing.T) {
	t.Parallel()
	at := func(seconds float64) time.Time {
		return time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
	}
	r, err := schema.ParseRecording(nil, time.Time{})
	if err != nil || !r.On(schema.Access) || r.Off(schema.Access, at(0)) {
		t.Fatalf("without a document: %+v, %v", r, err)
	}
	// Each document is stored at the time of its turn, which only the next one says.
	stored := at(0)
	for _, turn := range []struct {
		at float64
		on bool
	}{{10, false}, {11, false}, {20, true}, {21, false}, {30, true}, {60, false}} {
		r.Turn(schema.Access, turn.on, "ann", "why")
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if turn.at != 11 { // which changed nothing, so that it is not stored
			stored = at(turn.at)
		}
		if r, err = schema.ParseRecording(data, stored); err != nil {
			t.Fatal(err)
		}
	}
	if r.On(schema.Access) || !r.On(schema.Activity) || len(r.Gaps(schema.Access)) != 3 {
		t.Errorf("got %+v", r.Gaps(schema.Access))
	}
	for seconds, off := range map[float64]bool{
		0: false, 9.999999: false, 10: true, 19: true, 20: true, 20.5: true, 21: true, 29: true, 31.999999: true, 32: false, 59: false, 60: true, 1e6: true,
	} {
		if r.Off(schema.Access, at(seconds)) != off || r.Off(schema.Activity, at(seconds)) {
			t.Errorf("after %v s: off is %t", seconds, !off)
		}
	}
	if _, err := schema.ParseRecording([]byte(`{"version":2}`), stored); err == nil {
		t.Error("a document of a newer program was read")
	}
}
