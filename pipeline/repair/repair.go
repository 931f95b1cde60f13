// Package repair finds out why hours are not sealed, message by message, and repairs what it can: what is
// missing from the table or the ledger is taken from the stream while that has it, what is there twice is collapsed.
//
// It never touches a partition, a manifest or the stream of events. Rows are removed only on request (Replace),
// and nothing that the stream still has is given up as lost.
package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Request says what to repair.
type Request struct {
	// Fix mends; without it there is only a report.
	Fix bool `json:"fix"`
	// Replace lets Fix remove rows: of messages whose rows are others than the stream's, before they are
	// taken from the stream again; and of messages that the writer never took.
	Replace bool `json:"replace"`
	// Streams restores the settings of the broker's streams, and makes those again that are missing.
	Streams bool `json:"streams,omitempty"`
	// Accept goes on without messages that the stream has lost.
	Accept []rollup.Loss `json:"accept,omitempty"`
}

// Kinds of differences.
const (
	Missing  = "missing"  // the table has fewer rows than the stream had
	Doubled  = "doubled"  // it has them more than once
	Changed  = "changed"  // it has as many, and others
	Added    = "added"    // neither the ledger nor the stream has such a message
	Unstored = "unstored" // it was acknowledged and has no ledger entry; the stream has it
	Unclear  = "unclear"  // its ledger entries contradict each other
	Late     = "late"     // it came after its hour was sealed
	Lost     = "lost"     // the stream has lost it, and it has no ledger entry
)

// Difference is what is wrong with one message.
type Difference struct {
	Path         string       `json:"path,omitempty"` // of the partition
	Organization string       `json:"organization,omitempty"`
	Trail        schema.Trail `json:"trail,omitempty"`
	StreamSeq    uint64       `json:"stream_seq"`
	LastSeq      uint64       `json:"last_seq,omitempty"` // of several messages that are lost
	RecordedAt   time.Time    `json:"recorded_at,omitzero"`
	Kind         string       `json:"kind"`
	Stream       uint64       `json:"stream_rows"`
	Table        uint64       `json:"table_rows"`
	Done         string       `json:"done,omitempty"` // what was done about it
	Left         string       `json:"left,omitempty"` // or why nothing was, and what to do
}

// Report is the outcome.
type Report struct {
	// Blocked are the hours that wait, as paths of partitions.
	Blocked []string `json:"blocked"`
	// Stopped is why nothing is sealed at all, of any organization.
	Stopped     string       `json:"stopped,omitempty"`
	Differences []Difference `json:"differences"`
	// Streams is what was restored of the streams.
	Streams []string `json:"streams,omitempty"`
	// Total is how many differences there are, of which the report has the first.
	Total int `json:"total"`
}

// Well reports whether there is nothing to repair.
func (r *Report) Well() bool {
	return len(r.Blocked) == 0 && len(r.Differences) == 0 && r.Stopped == ""
}

// Repairer does it.
type Repairer struct {
	Store    *store.Store
	Client   *broker.Client
	Progress rollup.Progress
	Rollup   *rollup.Rollup
	// Writer stores what was never stored.
	Writer interface {
		Restore(ctx context.Context, msgs []*jetstream.RawStreamMsg) ([]writer.Restored, error)
	}
	Hour      time.Duration
	Retention func(organization string, recordedAt time.Time) time.Time
}

// mostDifferences bounds a report, which has to fit into a message.
const mostDifferences = 5000

// Run reports, and repairs if it is asked to.
func (r *Repairer) Run(ctx context.Context, q Request) (*Report, error) {
	report := &Report{Blocked: []string{}, Differences: []Difference{}}
	if q.Streams {
		var err error
		if report.Streams, err = r.Client.ResetStreams(ctx); err != nil {
			return nil, err
		}
		return report, r.Client.Tick(ctx)
	}
	open, err := r.Rollup.Unaccounted(ctx)
	if err != nil {
		return nil, err
	}
	if len(q.Accept) > 0 {
		if err := r.accept(ctx, open, q.Accept); err != nil {
			return nil, err
		}
		if open, err = r.Rollup.Unaccounted(ctx); err != nil {
			return nil, err
		}
	}
	if f := r.Rollup.Failing(); f != nil {
		report.Stopped = f.Err.Error()
	}
	report.Differences, err = r.unaccounted(ctx, open, q.Fix)
	if err != nil {
		return nil, err
	}
	known := map[uint64]bool{}
	for _, u := range open.Unstored {
		known[u.Seq] = true
	}
	blocked, err := r.Progress.Blocked(ctx, r.Hour)
	if err != nil {
		return nil, err
	}
	for _, p := range blocked {
		report.Blocked = append(report.Blocked, p.Path())
		found, err := r.compare(ctx, p, known)
		if err != nil {
			return nil, err
		}
		if q.Fix {
			if err := r.fix(ctx, p, found, q.Replace); err != nil {
				return nil, err
			}
		}
		report.Differences = append(report.Differences, found...)
	}
	if report.Total = len(report.Differences); report.Total > mostDifferences {
		report.Differences = report.Differences[:mostDifferences]
	}
	if q.Fix || len(q.Accept) > 0 {
		return report, r.Client.Tick(ctx) // so that the rollup looks again
	}
	return report, nil
}

// compare holds the writer's account of a partition's messages against the table.
// known are reported already.
func (r *Repairer) compare(ctx context.Context, p schema.Partition, known map[uint64]bool) ([]Difference, error) {
	took, _, err := tally.Ledger{JS: r.Client.JS}.Between(ctx, p.Hour, p.End())
	if err != nil {
		return nil, err
	}
	has, err := r.Store.Tallies(ctx, p.Hour, p.End())
	if err != nil {
		return nil, err
	}
	table := map[uint64]tally.Tally{}
	for _, t := range has {
		if t.Organization == p.Organization && t.Trail == p.Trail {
			table[t.StreamSeq] = t
		}
	}
	found := []Difference{}
	for i, s := range took {
		if s.Organization != p.Organization || s.Trail != p.Trail {
			continue
		}
		t := table[s.StreamSeq]
		d := Difference{Path: p.Path(), Organization: p.Organization, Trail: p.Trail, StreamSeq: s.StreamSeq, RecordedAt: s.RecordedAt, Stream: s.Rows, Table: t.Rows}
		if i > 0 && tally.Contradicts(&took[i-1], &s) != nil {
			if n := len(found); n > 0 && found[n-1].StreamSeq == s.StreamSeq { // what the first one says of it is not known to be true
				found = found[:n-1]
			}
			d.Kind = Unclear
			found = append(found, d)
			continue
		}
		switch {
		case t.Rows == s.Rows && t.Sum == s.Sum:
			continue
		case t.Rows < s.Rows:
			d.Kind = Missing
		case t.Rows > s.Rows:
			d.Kind = Doubled
		default:
			d.Kind = Changed
		}
		found = append(found, d)
	}
	for _, s := range took {
		delete(table, s.StreamSeq)
	}
	for seq, t := range table {
		if known[seq] {
			continue
		}
		d := Difference{Path: p.Path(), Organization: p.Organization, Trail: p.Trail, StreamSeq: seq, RecordedAt: t.RecordedAt, Kind: Added, Table: t.Rows}
		// If the stream has it, nobody added it: its ledger entry is gone.
		switch msg, err := r.message(ctx, seq); {
		case err == nil && msg.Time.UTC().Truncate(time.Microsecond).Equal(t.RecordedAt) && r.isOf(msg, p):
			d.Kind = Unstored
		case err != nil && !errors.Is(err, errGone):
			return nil, err
		}
		found = append(found, d)
	}
	slices.SortFunc(found, func(a, b Difference) int { return cmp.Compare(a.StreamSeq, b.StreamSeq) })
	return found, nil
}

func (r *Repairer) fix(ctx context.Context, p schema.Partition, found []Difference, replace bool) error {
	doubled := slices.ContainsFunc(found, func(d Difference) bool { return d.Kind == Doubled })
	if doubled {
		if err := r.Store.Collapse(ctx, p.Hour); err != nil {
			return err
		}
	}
	if err := r.restoreAll(ctx, p, found); err != nil {
		return err
	}
	for i := range found {
		d := &found[i]
		switch {
		case d.Kind == Unstored, d.Kind == Unclear:
		case d.Kind == Doubled:
			d.Done = "collapsed; look again whether it is one of each now"
		case d.Kind == Missing && d.Table == 0:
			d.Done, d.Left = r.restore(ctx, p, d)
		case d.Kind == Added && !replace:
			d.Left = "neither the ledger nor the stream has such a message: --replace removes its rows"
		case !replace:
			d.Left = "its rows are not those of the stream: --replace removes them and takes the stream's"
		default:
			if d.Kind != Added {
				// First see that there is something to put in their place.
				if _, err := r.part(ctx, p, d.StreamSeq); err != nil {
					d.Left = err.Error()
					continue
				}
			}
			if err := r.Store.RemoveMessage(ctx, p, d.StreamSeq); err != nil {
				return err
			}
			d.Done = "removed"
			if d.Kind != Added {
				d.Done, d.Left = r.restore(ctx, p, d)
			}
		}
	}
	return r.Store.Recount(ctx, p)
}

// restore inserts a message's rows from the stream.
func (r *Repairer) restore(ctx context.Context, p schema.Partition, d *Difference) (done, left string) {
	part, err := r.part(ctx, p, d.StreamSeq)
	if err != nil {
		return "", err.Error()
	}
	var in codec.Insert
	in.Add(*part)
	token := fmt.Sprintf("REPAIR:%d:%d", d.StreamSeq, time.Now().UnixNano())
	if err := r.Store.Insert(ctx, token, &in); err != nil {
		return "", err.Error()
	}
	return fmt.Sprintf("restored %d events from the stream", in.Rows()), ""
}

// part reads a message from the stream as the writer does.
func (r *Repairer) part(ctx context.Context, p schema.Partition, seq uint64) (*codec.Part, error) {
	msg, err := r.message(ctx, seq)
	if err != nil {
		return nil, err
	}
	m := codec.Message{
		Organization: p.Organization, Trail: p.Trail, Payload: msg.Data, StreamSeq: seq,
		ContentType: msg.Header.Get(schema.HeaderContentType), ContentEncoding: msg.Header.Get(schema.HeaderContentEncoding),
		RecordedAt: msg.Time.UTC().Truncate(time.Microsecond), RecordedBy: schema.RecordedBy(msg.Header.Get(schema.HeaderRecordedBy)),
	}
	if !r.isOf(msg, p) {
		return nil, fmt.Errorf("message %d is on %s", seq, msg.Subject)
	}
	decoded, err := codec.Decode(&m, m.RecordedAt)
	if err != nil {
		return nil, fmt.Errorf("read message %d: %w", seq, err)
	}
	part := codec.Part{
		Organization: m.Organization, Trail: m.Trail, RecordedAt: m.RecordedAt, StreamSeq: seq, RecordedBy: m.RecordedBy,
		ExpiresAt: r.Retention(m.Organization, m.RecordedAt), Block: decoded.Block, Index: decoded.Index,
	}
	// As the writer did, without what an earlier message brought.
	if since, kept := schema.RecordedSince(msg.Header.Get(schema.HeaderFirstAttempt), m.RecordedAt); kept {
		stored, err := r.Store.StoredElsewhere(ctx, []codec.Part{part}, since)
		if err != nil {
			return nil, err
		}
		if rows := stored[seq]; len(rows) > 0 {
			part.Drop(rows)
		}
	}
	return &part, nil
}
