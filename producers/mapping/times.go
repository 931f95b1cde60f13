package mapping

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones of mappings are the same on every machine

	"github.com/kansa-audit/kansa/schema"
)

// unitTimes are the forms of a time that is a number: how many of its units a second has, and where it begins.
var unitTimes = map[string]struct {
	perSecond int64
	epoch     int64 // seconds from 1970
}{
	"unix": {1, 0}, "unix_ms": {1e3, 0}, "unix_us": {1e6, 0}, "unix_ns": {1e9, 0},
	"filetime": {1e7, -11644473600}, // [MS-DTYP] 2.3.3
	"ticks":    {1e7, -62135596800}, // System.DateTime.Ticks
}

// loadZone returns the zone of a name or an offset; nil for an empty name.
func loadZone(name string) (*time.Location, error) {
	if name == "" {
		return nil, nil
	}
	if strings.ContainsAny(name[:1], "+-") {
		t, err := time.Parse("-07:00", name)
		if err != nil {
			return nil, fmt.Errorf("%q is not an offset: write it as +09:00", name)
		}
		_, offset := t.Zone()
		return time.FixedZone(name, offset), nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil || name == "Local" {
		return nil, fmt.Errorf("there is no time zone %q: use a name of the tz database such as Asia/Tokyo, or an offset such as +09:00", name)
	}
	return zone, nil
}

// checkTimeForm refuses layouts with which a time loses something.
func checkTimeForm(form string) error {
	if _, ok := unitTimes[form]; ok || form == "rfc3339" {
		return nil
	}
	want := time.Date(2026, 11, 22, 13, 5, 6, 0, time.UTC)
	got, err := time.Parse(form, want.Format(form))
	if err == nil && !hasYear(form) {
		got = got.AddDate(want.Year()-got.Year(), 0, 0)
	}
	if err != nil || !got.Equal(want) {
		return fmt.Errorf("%q is neither rfc3339, unix, unix_ms, unix_us, unix_ns, filetime, ticks nor a layout of Go with month, day, hour, minute and second (such as \"02/Jan/2006:15:04:05 -0700\")", form)
	}
	return nil
}

func hasYear(layout string) bool { return strings.Contains(layout, "06") }

var (
	errNoZone  = errors.New("does not say its time zone")
	errNoForm  = errors.New("has none of the forms")
	errUnknown = errors.New("has an abbreviation of a time zone that is unknown there")
)

// parseTime reads a time that has one of forms. zone is that of times that do not say theirs; nil if it is not
// known. zoneUsed tells that it was needed.
func parseTime(v string, forms []string, zone *time.Location, now time.Time) (t time.Time, zoneUsed bool, err error) {
	if len(forms) == 0 {
		forms = []string{"rfc3339"}
	}
	err = errNoForm
	for _, form := range forms {
		var e error
		if unit, ok := unitTimes[form]; ok {
			t, e = unitTime(v, unit.perSecond, unit.epoch)
		} else {
			t, zoneUsed, e = layoutTime(v, form, zone, now)
		}
		if e == nil {
			return t.UTC(), zoneUsed, nil
		}
		if !errors.Is(e, errNoForm) {
			err = e
		}
	}
	return time.Time{}, false, err
}

// unitTime reads a decimal number of units since an epoch, without rounding above a microsecond.
func unitTime(v string, perSecond, epoch int64) (time.Time, error) {
	if len(v) > 64 || strings.Trim(v, "0123456789.-+eE") != "" {
		return time.Time{}, errNoForm
	}
	if _, exponent, found := strings.Cut(strings.ToLower(v), "e"); found {
		if n, err := strconv.Atoi(exponent); err != nil || n > 30 || n < -30 { // a large one takes all memory
			return time.Time{}, errNoForm
		}
	}
	n, ok := new(big.Rat).SetString(v)
	if !ok {
		return time.Time{}, errNoForm
	}
	n.Mul(n, big.NewRat(1_000_000_000, perSecond))
	nanos := new(big.Int).Quo(n.Num(), n.Denom())
	seconds, rest := new(big.Int).DivMod(nanos, big.NewInt(1_000_000_000), new(big.Int))
	// A time beyond all calendars has another unit than the rule says.
	if !seconds.IsInt64() || seconds.Int64()+epoch > 253402300799 || seconds.Int64()+epoch < -62135596800 {
		return time.Time{}, errNoForm
	}
	return time.Unix(seconds.Int64()+epoch, rest.Int64()), nil
}

func layoutTime(v, form string, zone *time.Location, now time.Time) (t time.Time, zoneUsed bool, err error) {
	location := zone
	if location == nil {
		location = time.UTC
	}
	if form == "rfc3339" {
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999Z0700", "2006-01-02 15:04:05.999999999Z0700"} {
			if t, err := time.Parse(layout, v); err == nil {
				return t, false, nil
			}
		}
		for _, layout := range []string{"2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"} {
			if t, err := time.ParseInLocation(layout, v, location); err == nil {
				if zone == nil {
					return t, false, errNoZone
				}
				return t, true, nil
			}
		}
		return t, false, errNoForm
	}
	if hasYear(form) {
		t, err = time.ParseInLocation(form, v, location)
	} else {
		t, err = withYear(v, form, location, now)
	}
	if err != nil {
		return t, false, errNoForm
	}
	switch {
	case strings.Contains(form, "Z07") || strings.Contains(form, "-07"):
		return t, false, nil
	case strings.Contains(form, "MST"):
		// time.Parse makes up a zone without an offset for an abbreviation that its location does not have.
		name, offset := t.Zone()
		if t.Location() != location && offset == 0 && name != "UTC" && name != "GMT" {
			return t, false, fmt.Errorf("%w: %s", errUnknown, name)
		}
		return t, false, nil
	case zone == nil:
		return t, false, errNoZone
	}
	return t, true, nil
}

// withYear reads a time that has no year: the latest that is not more than a day ahead.
func withYear(v, form string, location *time.Location, now time.Time) (time.Time, error) {
	var last error
	for year := now.Year() + 1; year > now.Year()-9; year-- { // nine years have a 29 February
		t, err := time.ParseInLocation(form+" 2006", fmt.Sprintf("%s %d", v, year), location)
		if err == nil && !t.After(now.Add(schema.MaxClockAhead)) {
			return t, nil
		}
		last = err
	}
	if last == nil {
		last = errNoForm
	}
	return time.Time{}, last
}

// timeFault says what is wrong with a time, and what helps.
func timeFault(v string, forms []string, err error) *schema.Fault {
	if len(forms) == 0 {
		forms = []string{"rfc3339"}
	}
	f := &schema.Fault{Field: "occurred_at", Value: v, Problem: err.Error()}
	switch {
	case errors.Is(err, errNoZone):
		f.Remedy = "name it in input.zone of the mapping, or by --zone"
	case errors.Is(err, errUnknown):
		f.Remedy = "abbreviations are ambiguous: set input.zone to a zone that has it, or replace it by an offset in the mapping"
	default:
		f.Problem = "does not have the form " + strings.Join(forms, ", ")
		f.Remedy = "set time in the mapping's rule for occurred_at to its form: rfc3339, unix, unix_ms, unix_us, unix_ns, filetime, ticks or a Go layout"
	}
	return f
}
