package schema

import (
	"strconv"
	"time"
)

// HeaderFirstAttempt is of a message that a producer kept while the broker did not answer: when it was first
// tried to publish it, in microseconds since 1970. The same message, byte for byte, may have been recorded since,
// longer ago than the broker knows it by its id.
const HeaderFirstAttempt = "Kansa-First-Attempt"

const (
	// clocksDiffer is how far a producer's clock may be from the broker's.
	clocksDiffer = 5 * time.Minute
	// mostKept bounds how far back anybody looks, whatever a header says.
	mostKept = 31 * 24 * time.Hour
)

// FormatAttempt is the value of HeaderFirstAttempt.
func FormatAttempt(first time.Time) string { return strconv.FormatInt(first.UnixMicro(), 10) }

// RecordedSince returns the instant since which a message that was recorded at a time may have been recorded
// before, by the value of its HeaderFirstAttempt; and false if the header is not there or says nothing.
func RecordedSince(header string, recordedAt time.Time) (time.Time, bool) {
	micros, err := strconv.ParseInt(header, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	since := time.UnixMicro(micros)
	if since.After(recordedAt) { // the producer's clock is ahead
		since = recordedAt
	}
	since = since.Add(-clocksDiffer)
	if earliest := recordedAt.Add(-mostKept); since.Before(earliest) {
		since = earliest
	}
	return since.UTC(), true
}
