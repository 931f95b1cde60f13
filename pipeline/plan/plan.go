// Package plan works out what a number of events a second takes, from what was measured. It is arithmetic on figures of
// bench/results, each with its source, and no measurement: what it says of many machines nobody has run.
package plan

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// Measured is a figure and where it is from.
type Measured struct {
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Source string  `json:"source"`
}

const full = "bench/results/2026-11-22-full.md, two cores of an AMD EPYC: "

// The figures. CPU is of the run in which all parts shared two cores, so that none had a cache to itself.
var (
	ProducerCPU = Measured{2.33, "µs an event", full + "columnar, producer"}
	GatewayCPU  = Measured{5.60, "µs an event", full + "NDJSON by HTTP, gateway"}
	BrokerCPU   = Measured{0.56, "µs an event", full + "columnar, broker"}
	WriterCPU   = Measured{1.37, "µs an event", full + "columnar, writer"}
	EngineCPU   = Measured{3.20, "µs an event", full + "columnar, engine, with its merges"}
	BrokerMost  = Measured{3.04e6, "events a second", full + "ceiling: broker alone, columnar, one stream, fsync before each acknowledgement"}
	EngineMost  = Measured{632e3, "events a second", full + "ceiling: engine alone, prepared blocks, two cores"}
	WriterMost  = Measured{261e3, "events a second", full + "columnar, the whole pipeline: the most that one consumer was seen to be drained at"}
	RollupMost  = Measured{212e3, "events a second", full + "rollup of one trail, two cores with the engine's"}

	StreamBytes  = Measured{94, "bytes an event", "300,000 sample events published by the SDK (Snappy): bytes of AUDIT"}
	TableBytes   = Measured{90, "bytes an event", "the same events: bytes on disk of audit_events, merged"}
	ArchiveBytes = Measured{94, "bytes an event", full + "17,520 partitions of 500 events, 824 MB"}
	EventBytes   = Measured{626, "bytes of JSON an event", full + "what the bytes above are of"}
)

const (
	// Use is how much of a processor, or of a ceiling, is planned for: the rest is for peaks, for merges that come together,
	// and for what a machine that is down leaves to the others.
	Use = 0.5
	// Replicas of a stream in a cluster: each event is stored by so many servers.
	Replicas = 3
	// keptFor is how long AUDIT keeps events: streams.audit_max_age.
	keptFor = 7 * 24 * time.Hour
)

// Question is what is asked.
type Question struct {
	EventsPerSecond float64
	Retention       time.Duration
	// BytesPerEvent is the size of an event as JSON; 0 is that of the measured ones. Bytes on disk follow it.
	BytesPerEvent float64
}

// Line is one part of the answer.
type Line struct {
	Part   string  `json:"part"`
	Number float64 `json:"number"`
	Unit   string  `json:"unit"`
	Reason string  `json:"reason"`
}

// Plan is the answer.
type Plan struct {
	EventsPerSecond float64    `json:"events_per_second"`
	RetentionDays   float64    `json:"retention_days"`
	BytesPerEvent   float64    `json:"bytes_per_event"`
	Lines           []Line     `json:"lines"`
	Figures         []Measured `json:"figures"`
	Caveats         []string   `json:"caveats"`
}

// For works it out.
func For(q Question) (*Plan, error) {
	if q.EventsPerSecond <= 0 || math.IsInf(q.EventsPerSecond, 0) || math.IsNaN(q.EventsPerSecond) {
		return nil, fmt.Errorf("%g events a second: give a positive number", q.EventsPerSecond)
	}
	if q.Retention < 24*time.Hour {
		return nil, fmt.Errorf("a retention of %s: give one day at least", q.Retention)
	}
	if q.BytesPerEvent < 0 || math.IsNaN(q.BytesPerEvent) {
		return nil, errors.New("bytes an event: give a positive number")
	}
	if q.BytesPerEvent == 0 {
		q.BytesPerEvent = EventBytes.Value
	}
	p := &Plan{EventsPerSecond: q.EventsPerSecond, RetentionDays: q.Retention.Hours() / 24, BytesPerEvent: q.BytesPerEvent}
	add := func(part string, number float64, unit, reason string, v ...any) {
		p.Lines = append(p.Lines, Line{part, number, unit, fmt.Sprintf(reason, v...)})
	}
	n, wide := q.EventsPerSecond, q.BytesPerEvent/EventBytes.Value
	// Larger events cost more of everything, as their bytes are checked, summed, copied and compressed.
	cores := func(m Measured) float64 { return n * m.Value * wide / 1e6 / Use }
	count := func(most float64) float64 { return math.Ceil(n * wide / (most * Use)) }

	streams := count(BrokerMost.Value)
	add("streams", streams, "of their own account and Kansa each", "one stream took %s; a stream has one leader, and %.0f%% of that is planned for", rate(BrokerMost.Value), 100*Use)
	shards := math.Ceil(n * wide / streams / (WriterMost.Value * Use))
	for shards < schema.Slots && math.Mod(schema.Slots, shards) != 0 {
		shards++
	}
	add("shards of each stream", min(shards, schema.Slots), "consumers (kansa shards)", "one was drained at %s; as many as divide the %d slots evenly", rate(WriterMost.Value), schema.Slots)
	replicas := 1.0
	if streams > 1 || n*wide > WriterMost.Value*Use {
		replicas = Replicas
	}
	add("servers of NATS", max(1, streams*replicas), "", "%.0f for each stream: R%.0f, each on a machine and disk of its own", replicas, replicas)
	add("cores for NATS", cores(BrokerCPU)*replicas, "", "%.2f µs an event, on each of %.0f replicas", BrokerCPU.Value, replicas)
	add("network into each server of NATS", n*StreamBytes.Value*wide/streams*8/1e9, "Gbit/s", "%.0f bytes an event as sent; the leader sends each to %.0f others, and to a writer", StreamBytes.Value*wide, replicas-1)
	add("cores for gateways", cores(GatewayCPU), "", "%.2f µs an event; none for applications that use the SDK, which takes %.2f of theirs", GatewayCPU.Value, ProducerCPU.Value)
	add("cores for writers", cores(WriterCPU), "", "%.2f µs an event", WriterCPU.Value)
	add("shards of ClickHouse", max(streams, count(EngineMost.Value/2*16)), "machines of 16 cores", "one for each stream at least; two cores took %s and nothing else, which makes %s for 16 if they scale, which was not measured", rate(EngineMost.Value), rate(EngineMost.Value*8))
	add("cores for ClickHouse", cores(EngineCPU), "", "%.2f µs an event, with merges; queries come on top", EngineCPU.Value)
	add("cores for rollups", n*wide*2/RollupMost.Value/Use, "", "two cores, the engine's among them, seal %s", rate(RollupMost.Value))

	day := n * 86400
	disk := func(bytes float64) float64 { return bytes / 1e12 }
	add("disk for NATS", disk(day*keptFor.Hours()/24*StreamBytes.Value*wide*replicas), "TB", "%.0f bytes an event, %.0f days (streams.audit_max_age), %.0f replicas", StreamBytes.Value*wide, keptFor.Hours()/24, replicas)
	add("disk for ClickHouse", disk(day*p.RetentionDays*TableBytes.Value*wide), "TB", "%.0f bytes an event; each replica of a table as much again", TableBytes.Value*wide)
	add("disk or object store for partitions", disk(day*p.RetentionDays*ArchiveBytes.Value*wide), "TB", "%.0f bytes an event, compressed", ArchiveBytes.Value*wide)
	add("written to the disk of each server of NATS", n*StreamBytes.Value*wide/streams/1e6, "MB/s", "in the order of the stream, synced before each acknowledgement")

	p.Figures = []Measured{ProducerCPU, GatewayCPU, BrokerCPU, WriterCPU, EngineCPU, BrokerMost, EngineMost, WriterMost, RollupMost, StreamBytes, TableBytes, ArchiveBytes, EventBytes}
	p.Caveats = []string{
		"It is worked out, not run: everything was measured on two cores, over loopback, where fsync is cheap. Measure one stream of yours with make bench before you buy.",
		fmt.Sprintf("%.0f%% of each figure is planned for. A second replica of everything but NATS is not in it.", 100*Use),
	}
	if streams > 1 {
		p.Caveats = append(p.Caveats, "More than one stream is more than one Kansa: each has organizations of its own, its own writers, table, chain of hours and archives. "+
			"An organization that is more than a stream is divided by its applications.")
	}
	return p, nil
}

func rate(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.3g million events/s", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.3g thousand events/s", n/1e3)
	default:
		return fmt.Sprintf("%.3g events/s", n)
	}
}
