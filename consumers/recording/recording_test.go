package recording_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Requirement Z2: a switch is known as soon as it is turned, to whoever asks then, and by the broker's clock.
func TestReader(t *testing.T) {
	t.Parallel()
	c := brokertest.Connect(t, brokertest.Start(t).URL())
	r := recording.New(c.JS)
	if _, err := r.Now(t.Context()); !errors.Is(err, recording.ErrUnknown) {
		t.Errorf("without the bucket: %v", err)
	}
	if err := c.Setup(t.Context(), broker.Settings{DuplicateWindow: time.Minute, AckWait: time.Minute, Hour: time.Hour}); err != nil {
		t.Fatal(err)
	}
	before, err := r.Now(t.Context())
	if err != nil || before.Off("acme", schema.Access, time.Now()) {
		t.Fatalf("nothing is off: %v", err)
	}
	turn := func(organization string, on bool) time.Time {
		t.Helper()
		return recordingtest.Turn(t, c.JS, organization, schema.Access, on)
	}
	off := turn("acme", false)
	turn("globex", false)
	for name, reader := range map[string]*recording.Reader{"who asked before": r, "who asks for the first time": recording.New(c.JS)} {
		state, err := reader.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if state.Off("acme", schema.Access, off.Add(-time.Microsecond)) || !state.Off("acme", schema.Access, off) || state.Off("acme", schema.Activity, off) || state.Trails() != 2 {
			t.Errorf("%s is told something else", name)
		}
	}
	on := turn("acme", true)
	after, err := r.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begins := on.Add(schema.RecordingDelay)
	if !after.Off("acme", schema.Access, begins.Add(-time.Microsecond)) || after.Off("acme", schema.Access, begins) || before.Off("acme", schema.Access, off) || after.Trails() != 1 {
		t.Error("after it is on again")
	}
	// Requirement N2: the gap of an hour is what lies in it.
	var gaps []schema.RecordingGap
	hour := begins.Add(-time.Second)
	after.Each(hour, hour.Add(time.Hour), func(organization string, trail schema.Trail, g schema.RecordingGap) {
		if organization == "acme" {
			gaps = append(gaps, g)
		}
	})
	if len(gaps) != 1 || !gaps[0].From.Equal(hour) || !gaps[0].To.Equal(begins) || gaps[0].By != "ann" {
		t.Errorf("got %+v", gaps)
	}
}
