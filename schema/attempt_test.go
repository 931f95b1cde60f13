package schema_test

import (
	"testing"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

func TestRecordedSince(t *testing.T) {
	t.Parallel()
	recorded := time.Date(2026, 11, 22, 4, 5, 6, 0, time.UTC)
	for name, tc := range map[string]struct {
		header string
		want   time.Time // zero: nothing is said
	}{
		"none":           {"", time.Time{}},
		"not a number":   {"yesterday", time.Time{}},
		"an hour before": {schema.FormatAttempt(recorded.Add(-time.Hour)), recorded.Add(-time.Hour - 5*time.Minute)},
		"clock ahead":    {schema.FormatAttempt(recorded.Add(time.Hour)), recorded.Add(-5 * time.Minute)},
		"1970":           {"0", recorded.AddDate(0, 0, -31)},
	} {
		got, ok := schema.RecordedSince(tc.header, recorded)
		if ok == tc.want.IsZero() || !got.Equal(tc.want) {
			t.Errorf("%s: %s, %t; want %s", name, got, ok, tc.want)
		}
	}
}
