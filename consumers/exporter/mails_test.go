package exporter

import (
	"errors"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
)

// Row 17: an organization's mails of a day are counted by all exporters together, and do not use up another's.
func TestMailsOfADayAreLimited(t *testing.T) {
	t.Parallel()
	kv, err := brokertest.SetUp(t).JS.KeyValue(t.Context(), broker.BucketExports)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 28, 23, 0, 0, 0, time.UTC)
	var all [2]*Exporter
	for i := range all {
		all[i] = New(nil, States{KV: kv}, Links{}, nil, nil, Config{MailsPerDay: 3, Now: func() time.Time { return now }})
	}
	for n := range 3 {
		if err := all[n%2].mayMail(t.Context(), "acme"); err != nil {
			t.Errorf("mail %d: %v", n, err)
		}
	}
	for _, x := range all {
		if err := x.mayMail(t.Context(), "acme"); !errors.Is(err, ErrMails) {
			t.Errorf("one too many: %v", err)
		}
	}
	if err := all[0].mayMail(t.Context(), "globex"); err != nil {
		t.Errorf("another organization: %v", err)
	}
	now = now.Add(time.Hour)
	if err := all[1].mayMail(t.Context(), "acme"); err != nil {
		t.Errorf("on the next day: %v", err)
	}
}
