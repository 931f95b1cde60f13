// Package repair finds out why an hour's accounts disagree, message by message, and mends what it can: what is
// missing from the table is taken from the stream while that has it, what is there twice is collapsed.
//
// It never touches a partition, a manifest or the stream. What is there and should not be is removed only when
// somebody says so.
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
	// Accept answers for messages that the stream has lost.
	Accept *rollup.Loss `json:"accept,omitempty"`
}

// Kinds of differences.
const (
	Missing = "missing" // the table has fewer rows than the stream had
	Doubled = "doubled" // it has them more than once
	Changed = "changed" // it has as many, and others
	Added   = "added"   // the writer took no such message
	Lost    = "lost"    // the message is in neither
)

// Difference is what is wrong with one message.
type Difference struct {
	Path       string    `json:"path,omitempty"` // of the partition
	StreamSeq  uint64    `json:"stream_seq"`
	RecordedAt time.Time `json:"recorded_at,omitzero"`
	Kind       string    `json:"kind"`
	Stream     uint64    `json:"stream_rows"`
	Table      uint64    `json:"table_rows"`
	Done       string    `json:"done,omitempty"` // what was done about it
	Left       string    `json:"left,omitempty"` // or why nothing was
}

// Report is the outcome.
type Report struct {
	// Blocked are the hours that wait, as paths of partitions.
	Blocked     []string     `json:"blocked"`
	Differences []Difference `json:"differences"`
}

// Repairer does it.
type Repairer struct {
	Store     *store.Store
	Client    *broker.Client
	Progress  rollup.Progress
	Hour      time.Duration
	Retention func(organization string, recordedAt time.Time) time.Time
}

// mostDifferences bounds a report, which has to fit into a message.
const mostDifferences = 5000

// Run reports, and mends if it is asked to.
func (r *Repairer) Run(ctx context.Context, q Request) (*Report, error) {
	if l := q.Accept; l != nil {
		if l.First == 0 || l.Last < l.First || l.By == "" || l.Reason == "" {
			return nil, errors.New("to accept a loss, give the first and the last message, who answers for it, and why")
		}
		l.At = time.Now().UTC().Truncate(time.Second)
		if err := r.Progress.Accept(ctx, *l); err != nil {
			return nil, err
		}
	}
	blocked, err := r.Progress.Blocked(ctx, r.Hour)
	if err != nil {
		return nil, err
	}
	report := &Report{Blocked: []string{}, Differences: []Difference{}}
	for _, p := range blocked {
		report.Blocked = append(report.Blocked, p.Path())
		found, err := r.compare(ctx, p)
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
	lost, err := r.lost(ctx)
	if err != nil {
		return nil, err
	}
	report.Differences = append(report.Differences, lost...)
	if len(report.Differences) > mostDifferences {
		report.Differences = report.Differences[:mostDifferences]
	}
	if q.Fix || q.Accept != nil {
		return report, r.Client.Tick(ctx) // so that the rollup looks again
	}
	return report, nil
}

// compare holds the writer's account of a partition's messages against the table.
func (r *Repairer) compare(ctx context.Context, p schema.Partition) ([]Difference, error) {
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
	for _, s := range took {
		if s.Organization != p.Organization || s.Trail != p.Trail {
			continue
		}
		t := table[s.StreamSeq]
		delete(table, s.StreamSeq)
		d := Difference{Path: p.Path(), StreamSeq: s.StreamSeq, RecordedAt: s.RecordedAt, Stream: s.Rows, Table: t.Rows}
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
	for seq, t := range table {
		found = append(found, Difference{Path: p.Path(), StreamSeq: seq, RecordedAt: t.RecordedAt, Kind: Added, Table: t.Rows})
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
	for i := range found {
		d := &found[i]
		switch {
		case d.Kind == Doubled:
			d.Done = "collapsed; look again whether it is one of each now"
		case d.Kind == Missing && d.Table == 0:
			d.Done, d.Left = r.restore(ctx, p, d)
		case !replace:
			d.Left = "its rows are not those of the stream: --replace removes them and takes the stream's"
			if d.Kind == Added {
				d.Left = "the writer took no such message: --replace removes its rows"
			}
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
	stream, err := r.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	msg, err := stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("the stream does not have message %d any more", seq)
	}
	if err != nil {
		return nil, fmt.Errorf("read message %d: %w", seq, err)
	}
	m := codec.Message{
		Organization: p.Organization, Trail: p.Trail, Payload: msg.Data, StreamSeq: seq,
		ContentType: msg.Header.Get(schema.HeaderContentType), ContentEncoding: msg.Header.Get(schema.HeaderContentEncoding),
		RecordedAt: msg.Time.UTC().Truncate(time.Microsecond), RecordedBy: schema.RecordedBy(msg.Header.Get(schema.HeaderRecordedBy)),
	}
	if organization, trail, err := schema.ParseEventSubject(msg.Subject); err != nil || organization != p.Organization || trail != p.Trail {
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

// lost lists the messages of the hours that are not rolled up which nobody has: the writer's account has a hole
// where the stream has one.
func (r *Repairer) lost(ctx context.Context) ([]Difference, error) {
	next, err := r.Progress.Next(ctx)
	if err != nil || next.IsZero() {
		return nil, err
	}
	took, _, err := tally.Ledger{JS: r.Client.JS}.Between(ctx, next.Add(-r.Hour), time.Now().Add(time.Hour))
	if err != nil {
		return nil, err
	}
	accepted, err := r.Progress.Losses(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := r.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	var found []Difference
	for i := 1; i < len(took); i++ {
		for seq := took[i-1].StreamSeq + 1; seq < took[i].StreamSeq && len(found) < mostDifferences; seq++ {
			if slices.ContainsFunc(accepted, func(l rollup.Loss) bool { return l.First <= seq && seq <= l.Last }) {
				continue
			}
			_, err := stream.GetMsg(ctx, seq)
			switch {
			case errors.Is(err, jetstream.ErrMsgNotFound):
				found = append(found, Difference{
					StreamSeq: seq, RecordedAt: took[i-1].RecordedAt, Kind: Lost,
					Left: "it was recorded at this time or a little later, and is gone; kansa repair --accept goes on without it, and has the manifests say so",
				})
			case err != nil:
				return nil, fmt.Errorf("look at message %d: %w", seq, err)
			}
		}
	}
	return found, nil
}
