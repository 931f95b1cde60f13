// Package sample makes up audit events that look like those of real applications: about 500 bytes of JSON
// and two dozen fields each, skewed as people's work is, and with text that tries a writer of CSV.
//
// It is for the demo, tests and benchmarks. The same seed gives the same events.
package sample

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// Organizations are those the events belong to.
var Organizations = []string{"acme", "globex", "initech"}

// Source makes events. It is not safe for concurrent use.
type Source struct {
	rng *rand.Rand
	now func() time.Time
	n   uint64
}

// New returns a source; now is the clock of occurred_at, time.Now if nil.
func New(seed uint64, now func() time.Time) *Source {
	if now == nil {
		now = time.Now
	}
	return &Source{rng: rand.New(rand.NewPCG(seed, 0x6b616e7361)), now: now}
}

type kind struct {
	trail                 schema.Trail
	source, event, action string
	target                string
	describe              string
}

var kinds = []kind{
	{schema.Access, "reports", "report.viewed", "read", "report", "Opened report %s"},
	{schema.Activity, "reports", "report.published", "publish", "report", "Published report %s"},
	{schema.Activity, "reports", "report.exported", "export", "report", "Exported report %s"},
	{schema.Activity, "pipelines", "pipeline.updated", "update", "pipeline", "Changed pipeline %s"},
	{schema.Activity, "pipelines", "pipeline.scheduled", "schedule", "pipeline", "Scheduled pipeline %s"},
	{schema.Activity, "pipelines", "pipeline.deleted", "delete", "pipeline", "Deleted pipeline %s"},
	{schema.Activity, "catalogue", "dataset.imported", "import", "dataset", "Imported dataset %s"},
	{schema.Activity, "catalogue", "dataset.shared", "share", "dataset", "Shared dataset %s"},
	{schema.Access, "identity", "user.signed_in", "sign_in", "user", "Signed in as %s"},
	{schema.Activity, "identity", "user.role_granted", "update", "user", "Granted a role to %s"},
}

var names = []string{
	"Aiko Tanaka", "Björn Åkesson", "Chloé Dubois", "Daniel O'Neill", "Emilia Nowak", "Fatima al-Sayed", "Giulia \"Jules\" Rossi",
	"Hans Müller", "佐藤 花子", "Ivana Horvat", "João Silva", "Kwame Mensah",
}

var places = []string{"Tokyo, JP", "Berlin, DE", "São Paulo, BR", "Austin, US", "大阪, JP", ""}

var agents = []string{
	"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
	"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15",
	"kansa-sdk/1.0", "curl/8.5.0",
}

// Next returns the next event: complete and valid.
func (s *Source) Next() schema.Event {
	s.n++
	r := s.rng
	k := &kinds[skewed(r, len(kinds))]
	user := skewed(r, 5000)
	object := skewed(r, 20000)
	name := fmt.Sprintf("%s-%05d", k.target, object)
	e := schema.Event{
		ID: s.id(), OccurredAt: s.now().UTC().Truncate(time.Microsecond),
		Organization: Organizations[skewed(r, len(Organizations))], Trail: k.trail,
		Source: k.source, Event: k.event, Action: k.action, Outcome: outcome(r),
		Actor:  schema.Actor{Type: "user", ID: fmt.Sprintf("u-%05d", user), Name: names[user%len(names)]},
		Target: schema.Target{Type: k.target, ID: fmt.Sprintf("%c%09d", k.target[0], object), Name: name},
		AppID:  fmt.Sprintf("app-%02d", object%20),
		Context: schema.Context{
			IP: fmt.Sprintf("203.0.113.%d", user%254+1), UserAgent: agents[user%len(agents)],
			SessionID: fmt.Sprintf("%016x", uint64(user)*0x9e3779b97f4a7c15), Location: places[user%len(places)],
		},
		Description: fmt.Sprintf(k.describe, name),
	}
	switch s.n % 8 {
	case 0: // a change, with both states
		e.Before = fmt.Appendf(nil, `{"owner":"u-%05d","rows":%d}`, user, object)
		e.After = fmt.Appendf(nil, `{"owner":"u-%05d","rows":%d}`, (user+1)%5000, object+1)
	case 1: // text that a careless writer of CSV breaks
		e.Description += "\nwith a second line, \"quotes\", a\ttab; and ünïcödé ✓"
	case 2, 3:
		e.Attributes = map[string]string{"pipeline_id": fmt.Sprintf("p-%04d", object%1000), "domain_name": e.Organization + ".example"}
	}
	if s.n%3 == 0 {
		e.Data = fmt.Appendf(nil, `{"duration_ms":%d,"rows":%d,"format":"%s"}`, r.IntN(9000), object, []string{"pdf", "xlsx", "csv"}[object%3])
		e.DataType = "work.result.v1"
	}
	return e
}

// id is a UUIDv7 of the clock and the source's own random bits.
func (s *Source) id() (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[8:], s.rng.Uint64())
	binary.BigEndian.PutUint64(id[:8], uint64(s.now().UnixMilli())<<16|s.rng.Uint64()&0xffff)
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// skewed picks from n with the small numbers much more often.
func skewed(r *rand.Rand, n int) int {
	f := r.Float64()
	return int(f * f * float64(n))
}

func outcome(r *rand.Rand) schema.Outcome {
	switch r.IntN(50) {
	case 0:
		return schema.Failure
	case 1:
		return schema.Denied
	default:
		return schema.Success
	}
}
