package gateway_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Requirement Z2: events of a trail that is switched off are taken and left out, and the answer says so of each; those
// of the other trail in the same request are recorded.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	js := s.Connect(t).JS
	body := func() []byte {
		both := line() + "\n" + strings.Replace(line(), `"activity"`, `"access"`, 1) + "\n{}\n"
		return []byte(both)
	}
	if a := s.post(t, "?results=all", codec.ContentNDJSON, body()); a.status != http.StatusMultiStatus || strings.Contains(a.raw, "not_recorded") {
		t.Fatalf("nothing is off: %d %s", a.status, a.raw)
	}
	recordingtest.Turn(t, js, "acme", schema.Access, false)
	var a answer
	for began := time.Now(); !strings.Contains(a.raw, "not_recorded"); a = s.post(t, "?results=all", codec.ContentNDJSON, body()) {
		if time.Since(began) > patience {
			t.Fatalf("recorded still: %s", a.raw)
		}
	}
	one := []byte(strings.Replace(line(), `"activity"`, `"access"`, 1))
	for began := time.Now(); ; {
		before := s.Stored(t).Messages
		a = s.post(t, "?results=all", codec.ContentNDJSON, body())
		b := s.post(t, "", codec.ContentJSON, one)
		if a.status != http.StatusMultiStatus || b.status != http.StatusAccepted {
			t.Fatalf("%d %s, %d %s", a.status, a.raw, b.status, b.raw)
		}
		said := strings.Contains(a.raw, `"accepted":2,"rejected":1,"not_recorded":1`) && strings.Contains(a.raw, `"status":202,"not_recorded":true},{"index":2`) &&
			strings.Count(a.raw, "not_recorded") == 2 && strings.Contains(b.raw, `"accepted":1,"not_recorded":1`)
		if now := s.Stored(t).Messages; said && now != before+1 {
			t.Errorf("%d messages, want that of the other trail", now-before)
		}
		if said {
			break
		}
		if time.Since(began) > patience { // it could not ask in time, and so left it to the writer
			t.Fatalf("the answers are %s and %s", a.raw, b.raw)
		}
	}
	if st := s.gateway.Stats(); st.Unrecorded < 2 {
		t.Errorf("counted %+v", st)
	}
}
