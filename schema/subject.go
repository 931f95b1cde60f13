package schema

import "strings"

// Subjects on the broker. The organization is always the third token, so that an account can be
// given its own organization and no other by subject permissions.
const (
	SubjectEvents     = "audit.events"     // + .<org>.<trail>
	SubjectHours      = "audit.hours"      // + .tick
	SubjectPartitions = "audit.partitions" // + .<org>.<trail>
	SubjectExports    = "audit.exports"    // + .<org>
	SubjectDeadLetter = "audit.deadletter" // + .<org>
)

// Headers of the messages that Kansa writes.
const (
	HeaderContentType     = "Content-Type"
	HeaderContentEncoding = "Content-Encoding"

	// Of a dead letter: why, and where it came from.
	HeaderReason     = "Kansa-Reason"
	HeaderSubject    = "Kansa-Subject"
	HeaderStreamSeq  = "Kansa-Stream-Seq"
	HeaderBatchIndex = "Kansa-Batch-Index" // absent when the whole message was refused
	HeaderRecordedAt = "Kansa-Recorded-At"
)

// EventSubject is where the events of one organization and trail are published.
func EventSubject(organization string, trail Trail) string {
	return SubjectEvents + "." + organization + "." + string(trail)
}

// ParseEventSubject takes a subject of events apart. It returns a [*Fault] if the subject is not of
// the form audit.events.<organization>.<trail> with names that are valid.
func ParseEventSubject(subject string) (organization string, trail Trail, err error) {
	rest, ok := strings.CutPrefix(subject, SubjectEvents+".")
	org, tr, found := strings.Cut(rest, ".")
	if !ok || !found {
		return "", "", &Fault{
			Field: "subject", Value: subject, Problem: "is no subject for events",
			Remedy: "publish on audit.events.<organization>.<trail>",
		}
	}
	if f := CheckOrganization(org); f != nil {
		return "", "", f
	}
	if f := CheckTrail(Trail(tr)); f != nil {
		return "", "", f
	}
	return org, Trail(tr), nil
}
