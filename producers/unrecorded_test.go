package producers_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

// messages counts those of a subject on the stream.
func messages(t *testing.T, js jetstream.JetStream, organization string, trail schema.Trail) uint64 {
	t.Helper()
	stream, err := js.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	subject := schema.EventSubject(organization, trail)
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Subjects[subject]
}

// Requirement Z2: the SDK stops at once with a switch, tells that it does, and goes on as soon as it is turned again;
// another organization and the other trail do not notice.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	js := s.Connect(t).JS
	var mu sync.Mutex
	told := map[string]int{}
	p, err := producers.New(js, producers.Config{Unrecorded: func(organization string, trail schema.Trail, events int) {
		mu.Lock()
		defer mu.Unlock()
		told[fmt.Sprint(organization, trail)] += events
	}})
	if err != nil {
		t.Fatal(err)
	}
	source := sample.New(3, nil)
	publish := func(organization string, trail schema.Trail) bool {
		t.Helper()
		e := source.Next()
		e.Organization, e.Trail = organization, trail
		ack, err := p.PublishAsync(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if err := ack.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !ack.Unrecorded()
	}
	until := func(organization string, trail schema.Trail, want bool) {
		t.Helper()
		for began := time.Now(); publish(organization, trail) != want; {
			if time.Since(began) > patience {
				t.Fatalf("not %t", want)
			}
		}
	}
	if !publish("acme", schema.Access) || !publish("globex", schema.Access) {
		t.Fatal("not recorded, and nothing is off")
	}
	for round := range 3 {
		recordingtest.Turn(t, js, "acme", schema.Access, false)
		until("acme", schema.Access, false)
		before, sent := messages(t, js, "acme", schema.Access), uint64(0)
		for left := 0; left < 10; {
			if publish("acme", schema.Access) { // it could not ask in time, and so left it to the writer
				sent++
			} else {
				left++
			}
			if !publish("acme", schema.Activity) || !publish("globex", schema.Access) {
				t.Fatalf("round %d: another trail is left out", round)
			}
		}
		if now := messages(t, js, "acme", schema.Access); now != before+sent || sent > 3 {
			t.Errorf("round %d: %d messages on the broker after it was switched off, and %d were said to be sent", round, now-before, sent)
		}
		recordingtest.Turn(t, js, "acme", schema.Access, true)
		until("acme", schema.Access, true)
	}
	recordingtest.Turn(t, js, "acme", schema.Access, false)
	until("acme", schema.Access, false)
	// A whole block, too; and a publisher that begins only now knows it from the first event on.
	fresh, err := producers.New(js, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := codec.TakeBlock()
	for range 3 {
		e := source.Next()
		e.Organization, e.Trail = "acme", schema.Access
		e.Complete(time.Now())
		b.Append(&e)
	}
	ack, err := fresh.PublishBlock(t.Context(), producers.Block{Organization: "acme", Trail: schema.Access, Events: b})
	if err != nil || !ack.Unrecorded() || ack.Wait(t.Context()) != nil || fresh.Stats().Unrecorded != 3 {
		t.Errorf("a new publisher: %v, %+v", err, fresh.Stats())
	}
	// While the broker is away, nobody knows whether it is off still: that is for the writer to say.
	for _, p := range []*producers.Publisher{p, fresh} {
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if st := p.Stats(); len(told) != 1 || uint64(told["acmeaccess"]) != st.Unrecorded || st.Unrecorded < 30 {
		t.Errorf("told of %v, counted %+v", told, st)
	}
}

// Without an answer everything is published: from a broker that knows no switches, and while none is there.
func TestSwitchesThatNobodyTells(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	js := s.Connect(t).JS
	recordingtest.Turn(t, js, "acme", schema.Access, false)
	p, err := producers.New(js, producers.Config{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	source := sample.New(4, nil)
	publish := func() bool {
		t.Helper()
		e := source.Next()
		e.Organization, e.Trail = "acme", schema.Access
		ack, err := p.PublishAsync(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if err := ack.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !ack.Unrecorded()
	}
	for began := time.Now(); publish(); {
		if time.Since(began) > patience {
			t.Fatal("off, and published")
		}
	}
	s.Stop()
	for began := time.Now(); !publish(); {
		if time.Since(began) > patience {
			t.Fatal("left out, and nobody knows whether it is off")
		}
	}
	if st := p.Stats(); st.Spooled == 0 {
		t.Errorf("counted %+v", st)
	}
	s.Start(t)
	for began := time.Now(); publish(); {
		if time.Since(began) > patience {
			t.Fatal("published, long after the broker is back")
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := js.DeleteKeyValue(t.Context(), schema.RecordingBucket); err != nil {
		t.Fatal(err)
	}
	if p, err = producers.New(js, producers.Config{}); err != nil {
		t.Fatal(err)
	}
	if !publish() {
		t.Error("left out, without a switch")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
