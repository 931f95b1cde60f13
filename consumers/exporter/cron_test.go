package exporter

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// fires are the instants of fourteen months at which a clock on the wall of a zone shows hour:minute on the days that
// want accepts; on a day on which it skips that time, the first instant after it. It looks at the clock every quarter
// of an hour where the zone's offset changes, and computes nothing.
func fires(zone *time.Location, from time.Time, hour, minute int, want func(day time.Time) bool) (all []time.Time) {
	for i := range 14 * 31 {
		day := time.Date(from.Year(), from.Month(), from.Day()+i-2, 0, 0, 0, 0, time.UTC) // its date alone counts
		if !want(day) {
			continue
		}
		begin, end := day.Add(-15*time.Hour), day.Add(39*time.Hour)
		_, before := begin.In(zone).Zone()
		_, after := end.In(zone).Zone()
		if before == after {
			all = append(all, day.Add(time.Duration(hour)*time.Hour+time.Duration(minute)*time.Minute-time.Duration(before)*time.Second))
			continue
		}
		wanted := fmt.Sprintf("%s %02d:%02d", day.Format(time.DateOnly), hour, minute)
		shown, first := false, time.Time{}
		for at := begin; at.Before(end); at = at.Add(15 * time.Minute) {
			switch clock := at.In(zone).Format("2006-01-02 15:04"); {
			case clock == wanted:
				all, shown = append(all, at), true
			case clock > wanted && first.IsZero() && !shown:
				first = at
			}
		}
		if !shown {
			all = append(all, first)
		}
	}
	return all
}

// changes are the offset of a zone at a time, and its changes within 14 months: zones that have the same are the same.
func changes(zone *time.Location, from time.Time) string {
	var text strings.Builder
	for at := from; at.Before(from.AddDate(0, 14, 0)); {
		_, offset := at.In(zone).Zone()
		fmt.Fprintf(&text, "%d %d;", at.Unix(), offset)
		_, end := at.In(zone).ZoneBounds()
		if end.IsZero() {
			break
		}
		at = end
	}
	return text.String()
}

// By a clock of the test, for twelve months, in every zone of the time zone database: each period is delivered exactly
// once, in order, and on the day that the schedule names, clock changes included.
func TestSchedulesRunOnTheirDayInEveryZone(t *testing.T) {
	t.Parallel()
	list, err := os.ReadFile("testdata/zones.txt")
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	every := func(time.Time) bool { return true }
	crons := []struct {
		cron         string
		hour, minute int
		want         func(day time.Time) bool
	}{
		{"0 30 0 * * *", 0, 30, every},
		{"0 15 1 * * *", 1, 15, every},
		{"0 30 2 * * *", 2, 30, every},
		{"0 15 23 * * *", 23, 15, every},
		{"0 0 9 * * 1", 9, 0, func(d time.Time) bool { return d.Weekday() == time.Monday }},
		{"0 30 0 * * 0", 0, 30, func(d time.Time) bool { return d.Weekday() == time.Sunday }},
		{"0 0 6 1 * *", 6, 0, func(d time.Time) bool { return d.Day() == 1 }},
	}
	names := strings.Fields(string(list))
	tried := map[string]bool{}
	for _, name := range names {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		key := changes(zone, from)
		if tried[key] {
			continue
		}
		tried[key] = true
		for _, c := range crons {
			s := Schedule{Cron: c.cron, TimeZone: name, Period: 24 * time.Hour}
			expected := fires(zone, from, c.hour, c.minute, c.want)
			clock, delivered := from, from
			for clock.Before(from.AddDate(1, 0, 0)) {
				due, err := s.NextRun(delivered, clock)
				if err != nil {
					t.Fatal(err)
				}
				if clock.Before(due) {
					clock = due
				}
				end := delivered.Add(s.Period)
				i, _ := slices.BinarySearchFunc(expected, end, time.Time.Compare)
				if !due.Equal(expected[i]) {
					t.Fatalf("%s, %s: the period that ends at %s is due at %s, want %s", name, c.cron, end, due, expected[i].In(zone))
				}
				delivered = end
			}
		}
	}
	t.Logf("%d zones, %d of them different", len(names), len(tried))
	if len(names) < 500 || len(tried) < 50 {
		t.Errorf("%d zones, %d of them different: the list is not whole", len(names), len(tried))
	}
}

// Times that the clock skips come after it was set forward, others when the clock shows them.
func TestScheduleOnTheDayOfAClockChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, cron, after, want string }{
		{"Europe/London", "0 15 1 * * *", "2027-03-28T00:00:00Z", "2027-03-28T02:00:00+01:00"},
		{"Europe/Lisbon", "0 15 1 * * *", "2027-03-28T00:00:00Z", "2027-03-28T02:00:00+01:00"},
		{"America/Santiago", "0 0 9 * * 1", "2027-09-05T12:00:00Z", "2027-09-06T09:00:00-03:00"},
		{"America/Santiago", "0 0 6 1 * *", "2027-09-05T12:00:00Z", "2027-10-01T06:00:00-03:00"},
		{"America/Santiago", "0 30 0 * * 0", "2027-09-04T12:00:00Z", "2027-09-05T01:00:00-03:00"},
		{"Africa/Cairo", "0 0 0 * * 5", "2027-04-29T12:00:00Z", "2027-04-30T01:00:00+03:00"},
		{"Australia/Lord_Howe", "0 15 2 * * *", "2027-10-02T12:00:00Z", "2027-10-03T02:30:00+11:00"},
		{"Australia/Lord_Howe", "0 15 9 * * *", "2027-10-02T12:00:00Z", "2027-10-03T09:15:00+11:00"},
		{"Australia/Lord_Howe", "0 15 9 * * *", "2027-04-03T12:00:00Z", "2027-04-04T09:15:00+10:30"},
		{"America/New_York", "0 30 1 * * *", "2027-11-07T04:00:00Z", "2027-11-07T01:30:00-04:00"},
		{"America/New_York", "0 0 * * * *", "2027-11-07T05:30:00Z", "2027-11-07T01:00:00-05:00"},
		{"", "0 15 1 * * *", "2027-11-07T01:15:00Z", "2027-11-08T01:15:00Z"},
	} {
		after, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		s := Schedule{Cron: c.cron, TimeZone: c.zone}
		next, err := s.Next(after)
		if got := next.Format(time.RFC3339); err != nil || got != c.want {
			t.Errorf("%s in %s after %s: %s, %v; want %s", c.cron, c.zone, c.after, got, err, c.want)
		}
	}
}
