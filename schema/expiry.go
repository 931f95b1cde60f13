package schema

import "time"

// Forever is when an event expires that is kept: the last day of the table's expires_at, which has 32 bits. Beyond it
// an event would expire at once.
var Forever = time.Date(2106, 2, 7, 0, 0, 0, 0, time.UTC)

// Expires is when an event that was recorded at a time may be removed, if it is kept for so many days.
func Expires(recordedAt time.Time, days int) time.Time {
	if at := recordedAt.AddDate(0, 0, days); at.Before(Forever) {
		return at
	}
	return Forever
}
