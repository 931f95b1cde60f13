package exporter

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"
	_ "time/tzdata" // a machine or a container may have no time zones of its own

	"github.com/robfig/cron/v3"
)

// cronFields are the six fields of a schedule, and the words for the usual ones.
var cronFields = cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// cronText is what a cron may consist of: six fields, or a word. The parser takes more, such as time zones within the text, and ends the
// process on some of it.
var cronText = regexp.MustCompile(`^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[0-9A-Za-z*?,/-]{1,100}( +[0-9A-Za-z*?,/-]{1,100}){5})$`)

// parseCron reads a cron, and refuses one that never comes.
func parseCron(text string) (due cron.Schedule, err error) {
	defer func() {
		if p := recover(); p != nil { // the parser is not maintained
			due, err = nil, fmt.Errorf("it cannot be read: %v", p)
		}
	}()
	if !cronText.MatchString(text) {
		return nil, errors.New("it does not have six fields of digits, names and * ? , / -")
	}
	if due, err = cronFields.Parse(text); err != nil {
		return nil, err
	}
	if due.Next(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() { // not within five years
		return nil, errors.New("it never comes")
	}
	return due, nil
}

// locations are time zones that were read before, by name.
var locations sync.Map

func location(name string) (*time.Location, error) {
	if zone, ok := locations.Load(name); ok {
		return zone.(*time.Location), nil
	}
	zone, err := time.LoadLocation(name)
	if err == nil {
		locations.Store(name, zone)
	}
	return zone, err
}

// Next is the first time after another one at which the schedule is due.
func (s *Schedule) Next(after time.Time) (time.Time, error) {
	if s.Every != 0 {
		return after.UTC().Truncate(s.Every).Add(s.Every), nil
	}
	zone, err := location(s.TimeZone)
	if err != nil {
		return time.Time{}, fmt.Errorf("time zone %q: %w: use an IANA name such as Asia/Tokyo", s.TimeZone, err)
	}
	due, err := parseCron(s.Cron)
	if err != nil {
		return time.Time{}, fmt.Errorf("cron %q: %w: give six fields, seconds first, such as 0 15 1 * * *", s.Cron, err)
	}
	next := nextIn(due, zone, after)
	if next.IsZero() {
		return next, fmt.Errorf("cron %q: it never comes after %s: give another one", s.Cron, after.UTC().Format(time.DateOnly))
	}
	return next, nil
}

// Due is when the archive of a period that ends at a time is due: the first time of the schedule then or later.
func (s *Schedule) Due(end time.Time) (time.Time, error) {
	return s.Next(end.Add(-time.Nanosecond))
}

// nextIn finds when the wall clock of a zone next shows a time of due. Between two changes of its offset a wall clock
// runs like UTC, so that the parser, which knows changes of whole hours only, is asked there alone. A time that a
// clock skips as it is set forward comes as soon as it is: a daily archive is made on every day.
func nextIn(due cron.Schedule, zone *time.Location, after time.Time) time.Time {
	for at := after.In(zone); ; {
		_, offset := at.Zone()
		_, end := at.ZoneBounds()
		ahead := time.Duration(offset) * time.Second
		wall := due.Next(after.UTC().Add(ahead))
		if wall.IsZero() {
			return wall
		}
		if next := wall.Add(-ahead); end.IsZero() || next.Before(end) {
			return next.In(zone)
		}
		end = end.In(zone)
		_, offset = end.Zone()
		if wall.Before(end.UTC().Add(time.Duration(offset) * time.Second)) {
			return end // the clock was set forward over it
		}
		at, after = end, end.Add(-time.Second)
	}
}
