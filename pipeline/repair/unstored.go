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
	"github.com/kansa-audit/kansa/schema"
)

// errGone means that the stream does not have a message any more.
var errGone = errors.New("the stream does not have it any more")

// message reads a message from the stream.
func (r *Repairer) message(ctx context.Context, seq uint64) (*jetstream.RawStreamMsg, error) {
	stream, err := r.Client.JS.Stream(ctx, broker.StreamAudit)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", broker.StreamAudit, err)
	}
	msg, err := stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("read message %d: %w", seq, errGone)
	}
	if err != nil {
		return nil, fmt.Errorf("read message %d: %w", seq, err)
	}
	return msg, nil
}

// isOf reports whether a message is of a partition's organization and trail.
func (r *Repairer) isOf(msg *jetstream.RawStreamMsg, p schema.Partition) bool {
	organization, trail, err := schema.ParseEventSubject(msg.Subject)
	return err == nil && organization == p.Organization && trail == p.Trail
}

// unaccounted reports the messages that hold up sealing, and with fix stores those that the stream has.
func (r *Repairer) unaccounted(ctx context.Context, open *rollup.Open, fix bool) ([]Difference, error) {
	found := []Difference{}
	for _, l := range open.Lost {
		d := Difference{StreamSeq: l.First, Kind: Lost, Left: fmt.Sprintf("the stream has lost it and the ledger has no entry; if it is gone for good, kansa repair --accept %s --by NAME --reason TEXT goes on without it", l)}
		if l.Last > l.First {
			d.LastSeq = l.Last
		}
		found = append(found, d)
	}
	unstored := len(found)
	rows := map[uint64]uint64{}
	if len(open.Unstored) > 0 {
		if err := r.inTable(ctx, open.Unstored, rows); err != nil {
			return nil, err
		}
	}
	for i := range open.Unstored {
		u := &open.Unstored[i]
		p := schema.Partition{Organization: u.Organization, Trail: u.Trail, Hour: u.Recorded.UTC().Truncate(r.Hour), Length: r.Hour}
		d := Difference{
			Path: p.Path(), Organization: u.Organization, Trail: u.Trail, StreamSeq: u.Seq, RecordedAt: u.Recorded.UTC(), Kind: Unstored,
			Table: rows[u.Seq], Left: "kansa repair --fix stores it from the stream",
		}
		if d.Table > 0 {
			d.Left = "kansa repair --fix makes its ledger entry from the stream and stores what the table does not have"
		}
		if u.Late {
			d.Kind, d.Left = Late, fmt.Sprintf("it came after its hour was sealed and is in no partition; kansa repair --accept %d --by NAME --reason TEXT goes on and has the manifests say so", u.Seq)
		}
		found = append(found, d)
	}
	if fix {
		return found, r.store(ctx, found[unstored:])
	}
	return found, nil
}

// inTable counts the rows that the table has of messages.
func (r *Repairer) inTable(ctx context.Context, all []rollup.Unstored, rows map[uint64]uint64) error {
	from, to := all[0].Recorded, all[0].Recorded
	want := make(map[uint64]bool, len(all))
	for i := range all {
		want[all[i].Seq] = true
		if at := all[i].Recorded; at.Before(from) {
			from = at
		} else if at.After(to) {
			to = at
		}
	}
	has, err := r.Store.Tallies(ctx, from.Truncate(time.Microsecond), to.Add(time.Microsecond))
	for i := range has {
		if want[has[i].StreamSeq] {
			rows[has[i].StreamSeq] = has[i].Rows
		}
	}
	return err
}

// atOnce is how many messages are read before they are stored.
const atOnce = 500

// most bounds their bytes.
const most = 64 << 20

// store stores messages from the stream by the writer's own code.
func (r *Repairer) store(ctx context.Context, found []Difference) error {
	at := map[uint64]*Difference{}
	var some []*jetstream.RawStreamMsg
	bytes := 0
	flush := func() error {
		done, err := r.Writer.Restore(ctx, some)
		for _, m := range done {
			d := at[m.StreamSeq]
			d.Stream, d.Left = m.Rows, ""
			switch {
			case d.Table > 0 && d.Table >= m.Rows:
				d.Done = fmt.Sprintf("its ledger entry is made; the table had its %d events", d.Table)
			case m.Rejected > 0:
				d.Done = fmt.Sprintf("stored %d events from the stream, and %d are dead letters", m.Rows, m.Rejected)
			default:
				d.Done = fmt.Sprintf("stored %d events from the stream", m.Rows)
			}
		}
		some, bytes = some[:0], 0
		return err
	}
	for i := range found {
		d := &found[i]
		if d.Kind != Unstored && d.Kind != Unclear {
			continue
		}
		msg, err := r.message(ctx, d.StreamSeq)
		if errors.Is(err, errGone) {
			d.Left = err.Error()
			continue
		}
		if err != nil {
			return err
		}
		at[d.StreamSeq], some, bytes = d, append(some, msg), bytes+len(msg.Data)
		if len(some) == atOnce || bytes > most {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(some) == 0 {
		return nil
	}
	return flush()
}

// restoreAll makes ledger entries: of messages that have none, and of those whose entries contradict each other, which are removed
// before.
func (r *Repairer) restoreAll(ctx context.Context, p schema.Partition, found []Difference) error {
	wrong := map[uint64]bool{}
	for i := range found {
		d := &found[i]
		if d.Kind != Unclear {
			continue
		}
		if _, err := r.message(ctx, d.StreamSeq); err != nil {
			if !errors.Is(err, errGone) {
				return err
			}
			d.Left = err.Error() + ": which of its ledger entries is right cannot be said"
			continue
		}
		wrong[d.StreamSeq] = true
	}
	if len(wrong) > 0 {
		if err := (tally.Ledger{JS: r.Client.JS}).Forget(ctx, p.Hour, wrong); err != nil {
			return err
		}
	}
	return r.store(ctx, found)
}

// accept keeps accepted losses. Messages that the stream still has, or that are not missing, are refused.
func (r *Repairer) accept(ctx context.Context, open *rollup.Open, all []rollup.Loss) error {
	blocks, err := r.Progress.Blocks(ctx, r.Hour)
	if err != nil {
		return err
	}
	var losses []rollup.Loss
	for _, l := range all {
		if l.First == 0 || l.Last < l.First || l.By == "" || l.Reason == "" {
			return errors.New("to accept a loss, give the first and the last message, who answers for it, and why")
		}
		l.At = time.Now().UTC().Truncate(time.Second)
		for seq := l.First; seq <= l.Last; {
			part := l
			part.First = seq
			switch at := slices.IndexFunc(open.Lost, func(m rollup.Run) bool { return m.First <= seq && seq <= m.Last }); {
			case at >= 0:
				part.Last = min(l.Last, open.Lost[at].Last)
				part.Organization, part.Trail = ownerOf(blocks, part.First, part.Last)
			default:
				i := slices.IndexFunc(open.Unstored, func(u rollup.Unstored) bool { return u.Seq == seq })
				if i < 0 {
					return fmt.Errorf("accept %d-%d as lost: message %d is not missing: accept only what kansa repair reports as lost (now %s)", l.First, l.Last, seq, cmp.Or(rollup.Runs(open.Lost), "nothing"))
				}
				u := &open.Unstored[i]
				if !u.Late {
					return fmt.Errorf("accept %d-%d as lost: the stream still has message %d of %s/%s: kansa repair --fix stores it", l.First, l.Last, seq, u.Organization, u.Trail)
				}
				part.Last, part.Organization, part.Trail = seq, u.Organization, u.Trail
			}
			losses = append(losses, part)
			seq = part.Last + 1
		}
	}
	for _, l := range losses {
		if err := r.Progress.Accept(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// ownerOf is whose messages were, if that was known while the stream still had them.
func ownerOf(blocks []rollup.Block, first, last uint64) (string, schema.Trail) {
	for i := range blocks {
		for _, m := range blocks[i].Messages {
			if m.First <= first && last <= m.Last {
				return blocks[i].Organization, blocks[i].Trail
			}
		}
	}
	return "", ""
}
