package schema

import (
	"hash/fnv"
	"strconv"
	"strings"
)

// Subjects on the broker. The organization is always the third token, so that an account can be
// given its own organization and no other by subject permissions.
const (
	SubjectEvents     = "audit.events"     // + .<org>.<trail>, and perhaps .<slot> or .bulk.<slot>
	SubjectHours      = "audit.hours"      // + .tick
	SubjectPartitions = "audit.partitions" // + .<org>.<trail>
	SubjectExports    = "audit.exports"    // + .<org>
	SubjectDeadLetter = "audit.deadletter" // + .<org>
	// SubjectRelay is where the relay receives what publishers with a login of their own put on SubjectEvents.
	SubjectRelay = "audit.relay" // followed as SubjectEvents is
)

// Names that only Kansa itself may use: its own organization, and the source of the events that it records.
const (
	SystemOrganization = "kansa"
	SystemSource       = "kansa"
)

// Values of [HeaderRecordedBy] and of the column recorded_by that name no login.
const (
	RecordedBySystem    = "kansa"     // Kansa itself
	RecordedByAnonymous = "anonymous" // a program on this machine, where gateway.anonymous allows it
	RecordedByOperator  = "operator"  // a connection that may use the stream itself
)

// Headers of the messages that Kansa writes.
const (
	HeaderContentType     = "Content-Type"
	HeaderContentEncoding = "Content-Encoding"

	// HeaderRecordedBy names the credential that published a message of events. Only Kansa's own processes can set it: the relay
	// removes it from what others publish.
	HeaderRecordedBy = "Kansa-Recorded-By"

	// Of a message that has no events and is to have none: it marks a place in the stream.
	HeaderMark = "Kansa-Mark"
	// HeaderGivenIDs is on a message of which some events have ids that their producer gave them: the writer stores each of these
	// once (writer.id_window).
	HeaderGivenIDs = "Kansa-Given-Ids"

	// Of a dead letter: why, and where it came from.
	HeaderReason     = "Kansa-Reason"
	HeaderSubject    = "Kansa-Subject"
	HeaderStreamSeq  = "Kansa-Stream-Seq"
	HeaderBatchIndex = "Kansa-Batch-Index" // absent when the whole message was refused
	HeaderRecordedAt = "Kansa-Recorded-At"
)

// RecordedBy is the credential that published a message, by its [HeaderRecordedBy]. A message without the header comes from a
// connection that may use the stream itself.
func RecordedBy(header string) string {
	if header == "" {
		return RecordedByOperator
	}
	return strings.ToValidUTF8(header, "?")
}

// EventSubject is where the events of one organization and trail are published.
func EventSubject(organization string, trail Trail) string {
	return SubjectEvents + "." + organization + "." + string(trail)
}

// Slots is how many ways the events of the stream can be divided among writers, for good: what a subject of the stream
// says may never change, and the number of writers may. It is no power of what people would divide by, but has many
// divisors.
const Slots = 60

// SlotSubject is where the events of one organization and trail are published by who chooses their slot, from 0 up to
// Slots. What is published on [EventSubject] gets a slot from the stream, the same for all of an organization and trail.
func SlotSubject(organization string, trail Trail, slot int) string {
	return EventSubject(organization, trail) + "." + strconv.Itoa(slot)
}

// BulkToken precedes the slot in subjects of the bulk lane.
const BulkToken = "bulk"

// BulkSubject is where events are published that may be stored after those of others: what an organization publishes beyond its
// prompt share. The writer stores the two lanes independently, so a backlog in this one does not delay events in slots. slot is
// from 0 up to [Slots].
func BulkSubject(organization string, trail Trail, slot int) string {
	return EventSubject(organization, trail) + "." + BulkToken + "." + strconv.Itoa(slot)
}

// SlotOf is the slot of a message by its id, so that a message that is published again gets the same one.
func SlotOf(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return int(h.Sum32() % Slots)
}

// ParseEventSubject takes a subject of events apart. It returns a [*Fault] if the subject is not of
// the form audit.events.<organization>.<trail>, with or without a slot or bulk and a slot, with names that are valid.
func ParseEventSubject(subject string) (organization string, trail Trail, err error) {
	rest, ok := strings.CutPrefix(subject, SubjectEvents+".")
	org, rest, found := strings.Cut(rest, ".")
	tr, slot, slotted := strings.Cut(rest, ".")
	slot = strings.TrimPrefix(slot, BulkToken+".")
	if n, err := strconv.Atoi(slot); !ok || !found || slotted && (err != nil || n < 0 || n >= Slots) {
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
