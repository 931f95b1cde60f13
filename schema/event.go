package schema

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
)

// Event is one audit record: who did what to which target, when, and how it ended.
//
// Limits of each field are in [Fields]; an event is at most [MaxEventBytes] in all.
type Event struct {
	// ID identifies the event. UUIDv7 if Kansa makes it, any other UUID if the application has its own: then publishing the event
	// again within a day (writer.id_window) is harmless, and another event with the same ID is dead-lettered.
	ID uuid.UUID `json:"id,omitzero"`
	// OccurredAt is the producer's clock. It is kept to the microsecond, in UTC; a finer fraction
	// is cut off. More than [MaxClockAhead] in the future is refused, the past is not.
	OccurredAt time.Time `json:"occurred_at"`
	// Organization is the tenant: [A-Za-z0-9_-]{1,64}; see CheckOrganization for what it can't be.
	Organization string `json:"organization"`
	Trail        Trail  `json:"trail"`
	// Source is the service that speaks.
	Source string `json:"source"`
	// Event is the dotted code of the event type, such as report.published.
	Event string `json:"event"`
	// Action is what was done, in lower case: create, read, update, delete, …
	Action      string          `json:"action"`
	Outcome     Outcome         `json:"outcome,omitempty"`
	Actor       Actor           `json:"actor,omitzero"`
	Target      Target          `json:"target,omitzero"`
	AppID       string          `json:"app_id,omitempty"`
	Context     Context         `json:"context,omitzero"`
	Description string          `json:"description,omitempty"`
	Before      json.RawMessage `json:"before,omitempty"`
	After       json.RawMessage `json:"after,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`
	// DataType names the schema of Data.
	DataType   string            `json:"data_type,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Actor is who acted.
type Actor struct {
	Type string `json:"type,omitempty"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// Target is what was acted upon.
type Target struct {
	Type string `json:"type,omitempty"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// Context is where from and within what the actor acted.
type Context struct {
	IP        string `json:"ip,omitempty"`
	UserAgent string `json:"user_agent,omitempty"`
	SessionID string `json:"session_id,omitempty"`
	TraceID   string `json:"trace_id,omitempty"`
	Location  string `json:"location,omitempty"`
}

// Trail is one of the two logs an organization keeps.
type Trail string

// The trails (requirement Z1).
const (
	Activity Trail = "activity" // what was done
	Access   Trail = "access"   // who read or signed in
)

// Trails lists every trail, in the order in which people are shown them.
var Trails = []Trail{Activity, Access}

// Valid reports whether t is a trail that exists.
func (t Trail) Valid() bool { return t == Activity || t == Access }

// Outcome says how an action ended.
type Outcome string

// The outcomes. An event without one was a success. Unknown is for records of other systems that do not say
// how the action ended; a mapping never takes that for a success.
const (
	Success Outcome = "success"
	Failure Outcome = "failure"
	Denied  Outcome = "denied"
	Unknown Outcome = "unknown"
)

// Complete fills in what an event may leave out: a UUIDv7 of now for the id, success for the outcome. It
// brings OccurredAt to UTC and to the microsecond, which is all that is stored.
func (e *Event) Complete(now time.Time) {
	if e.ID == uuid.Nil {
		e.ID = NewID(now)
	}
	if e.Outcome == "" {
		e.Outcome = Success
	}
	e.OccurredAt = e.OccurredAt.UTC().Truncate(time.Microsecond)
}

// NewID returns a UUIDv7 (RFC 9562) of a time. Its 74 random bits are those of the runtime's generator
// (ChaCha8), which needs no system call; ids have to be different, not secret.
func NewID(now time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|rand.Uint64()&0xffff)
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}
