package gateway_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
)

const failedSignIn = `{"eventTime":"2026-11-22T04:05:06Z","eventSource":"signin.amazonaws.com","eventName":"ConsoleLogin","eventType":"AwsConsoleSignIn",` +
	`"responseElements":{"ConsoleLogin":"Failure"},"recipientAccountId":"111122223333"`

func TestRecordsAreMapped(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	records := `{"Records":[` + failedSignIn + `,"eventID":"6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5f60"},` + failedSignIn + `},{"eventName":7}]}`
	a := s.post(t, "?mapping=cloudtrail&organization=acme&results=all", "text/plain", []byte(records))
	if a.status != http.StatusMultiStatus || a.Accepted != 2 || a.Rejected != 1 || len(a.Results) != 3 || a.Results[2].Status != http.StatusUnprocessableEntity {
		t.Fatalf("%+v", a)
	}
	if a.Results[0].ID != "6f1c2a34-0b5d-4e6f-8a90-1b2c3d4e5f60" {
		t.Errorf("the record's id became %s", a.Results[0].ID)
	}
	events := s.stored(t, 2)
	for _, e := range events {
		if e.Organization != "acme" || e.Outcome != schema.Failure || e.Trail != schema.Access {
			t.Errorf("%+v", e)
		}
	}
	// Records without an id that are equal are two events, unless the request is the same.
	again := s.post(t, "?mapping=cloudtrail&organization=acme&results=all", "", []byte(failedSignIn+"}"))
	if again.status != http.StatusAccepted || again.Results[0].ID == a.Results[1].ID {
		t.Errorf("%+v", again)
	}
}

func TestMappingsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	for query, want := range map[string]string{
		"?mapping=nothing":                    "There is no such mapping.",
		"?zone=Asia/Tokyo":                    "A zone is for records of a mapping.",
		"?mapping=windows&zone=Mars/Phobos":   "It is not a time zone.",
		"?mapping=cloudtrail&organization=a":  "The body is not what the mapping cloudtrail reads: there is no record.",
		"?mapping=none&organization=a&trail=": "",
	} {
		a := s.post(t, query, "application/json", []byte(" "))
		if a.status != http.StatusBadRequest || !strings.Contains(a.Detail, want) {
			t.Errorf("%s: %d, %q, want %q", query, a.status, a.Detail, want)
		}
	}
}

// mapped is a client whose key names a mapping.
type mapped struct{ only }

func (mapped) Mapping() string        { return "sshd" }
func (m mapped) Organization() string { return string(m.only) }
func (m mapped) Authenticate(r *http.Request) (gateway.Client, error) {
	if _, err := m.only.Authenticate(r); err != nil {
		return nil, err
	}
	return m, nil
}

func TestMappingOfAKey(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{Access: mapped{"acme"}}, 0)
	line := "2026-11-22T04:05:06Z web1 sshd[1]: Failed password for root from 203.0.113.9 port 50122 ssh2\n2026-11-22T04:05:06Z web1 cron[1]: x\n"
	a := s.post(t, "", "text/plain", []byte(line), "Authorization", "Bearer good")
	if a.status != http.StatusAccepted || a.Accepted != 1 {
		t.Fatalf("%+v", a)
	}
	if e := s.stored(t, 1)[0]; e.Organization != "acme" || e.Outcome != schema.Failure || e.Context.IP != "203.0.113.9" {
		t.Errorf("%+v", e)
	}
	event := `{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"access","source":"s","event":"e","action":"a"}`
	if a := s.post(t, "?mapping=none", "application/json", []byte(event), "Authorization", "Bearer good"); a.status != http.StatusAccepted {
		t.Errorf("%+v", a)
	}
}

// stored reads the events that lie in the stream.
func (s *system) stored(t *testing.T, want int) (events []schema.Event) {
	t.Helper()
	for _, e := range s.Stored(t).Events {
		events = append(events, e)
	}
	if len(events) != want {
		t.Fatalf("%d events are stored, want %d", len(events), want)
	}
	return events
}
