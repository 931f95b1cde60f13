package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Request says what of the table is to be restored from partitions.
type Request struct {
	Organization string       `json:"organization,omitempty"` // all if empty
	Trail        schema.Trail `json:"trail,omitempty"`        // both if empty
	// From and To bound the hours; zero is the first hour, and all that is sealed.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Replace removes events that were not sealed, and those that were changed before the sealed ones are stored. Without it,
	// missing events are stored alone.
	Replace bool `json:"replace,omitempty"`
	// DryRun changes nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// By is who asks for it.
	By string `json:"by,omitempty"`
}

// Restoration is a request and what became of it.
type Restoration struct {
	ID      string  `json:"id"`
	Request Request `json:"request"`
	// Hours counts the hours to look at, all trails together, and Done those that were.
	Hours uint64 `json:"hours"`
	Done  uint64 `json:"done"`
	// Partitions in which the table differed, with the events that differed, and what was done about them.
	Partitions uint64 `json:"partitions"`
	Missing    uint64 `json:"missing"`
	Changed    uint64 `json:"changed"`
	Added      uint64 `json:"added"`
	Stored     uint64 `json:"stored"`
	Removed    uint64 `json:"removed"`
	// Left are partitions that could not be restored, each with the reason; the first of them.
	Left   []string  `json:"left" nullable:"false"`
	Began  time.Time `json:"began"`
	Seen   time.Time `json:"seen"` // when this was written
	Ended  time.Time `json:"ended,omitzero"`
	Failed string    `json:"failed,omitempty"` // why it ended early
}

// mostLeft bounds what a restoration lists.
const mostLeft = 100

// ErrBusy means that another restoration is under way.
var ErrBusy = errors.New("another restoration is under way")

const (
	restorationKey = "restoration"
	reportEvery    = time.Second
	// aliveFor is how long a restoration counts as under way that says nothing.
	aliveFor = 30 * time.Second
	// A batch of events is inserted when it has as many rows or bytes.
	batchRows  = 200_000
	batchBytes = 64 << 20
)

// Last returns the last restoration, false if there was none.
func (k *Findings) Last(ctx context.Context) (r Restoration, ok bool, err error) {
	entry, err := k.KV.Get(ctx, restorationKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return r, false, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &r)
	}
	if err != nil {
		return r, false, fmt.Errorf("read the last restoration: %w", err)
	}
	if r.Ended.IsZero() && time.Since(r.Seen) > aliveFor {
		r.Ended, r.Failed = r.Seen, "the process that restored has ended: start it again, which leaves out what is done"
	}
	return r, true, nil
}

func (k *Findings) keep(ctx context.Context, r *Restoration) error {
	r.Seen = time.Now().UTC()
	data, err := json.Marshal(r)
	if err == nil {
		_, err = k.KV.Put(ctx, restorationKey, data)
	}
	if err != nil {
		return fmt.Errorf("keep how far the restoration has come: %w", err)
	}
	return nil
}

// Restorer restores the table. Run has to run for Start to do anything.
type Restorer struct {
	*Auditor
	jobs chan *Restoration
	once sync.Once
}

func (r *Restorer) init() { r.once.Do(func() { r.jobs = make(chan *Restoration) }) }

// Start begins a restoration and returns at once.
func (r *Restorer) Start(ctx context.Context, q Request) (*Restoration, error) {
	r.init()
	if q.Organization != "" {
		if err := schema.CheckOrganization(q.Organization); err != nil {
			return nil, err
		}
	}
	if q.Trail != "" && !slices.Contains(schema.Trails, q.Trail) {
		return nil, &schema.Fault{Field: "trail", Value: string(q.Trail), Problem: "is not a trail", Remedy: "give activity or access"}
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return nil, &schema.Fault{Field: "to", Value: q.To.Format(time.RFC3339), Problem: "is not after from", Remedy: "give a later time"}
	}
	last, ok, err := r.Findings.Last(ctx)
	if err != nil {
		return nil, err
	}
	if ok && last.Ended.IsZero() {
		return nil, fmt.Errorf("%w since %s: %d of %d hours are done", ErrBusy, last.Began.Format(time.RFC3339), last.Done, last.Hours)
	}
	job := &Restoration{ID: uuid.NewString(), Request: q, Left: []string{}, Began: time.Now().UTC()}
	copied := *job
	select {
	case r.jobs <- job:
	case <-time.After(time.Second):
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &copied, nil
}

// Run restores what is started until ctx ends.
func (r *Restorer) Run(ctx context.Context) error {
	r.init()
	for {
		select {
		case <-ctx.Done():
			return nil
		case job := <-r.jobs:
			r.restore(ctx, job)
		}
	}
}

// restore carries one request out, and keeps how far it has come.
func (r *Restorer) restore(ctx context.Context, job *Restoration) {
	keep := func() {
		if err := r.Findings.keep(context.WithoutCancel(ctx), job); err != nil {
			r.Logger.Warn("restoration goes on", "error", err)
		}
	}
	keep()
	kept := time.Now()
	err := r.hours(ctx, job, func() {
		if time.Since(kept) >= reportEvery {
			keep()
			kept = time.Now()
		}
	})
	if err != nil {
		job.Failed = err.Error()
		r.Logger.Error("restoration failed: start it again, which leaves out what is done", "error", err)
	}
	job.Ended = time.Now().UTC()
	keep()
	outcome := schema.Success
	if job.Failed != "" || len(job.Left) > 0 {
		outcome = schema.Failure
	}
	if job.Request.DryRun {
		return
	}
	data, err := json.Marshal(job)
	if err != nil {
		r.Logger.Error("a record has no data", "error", err)
	}
	r.Record(context.WithoutCancel(ctx), schema.Event{
		Event: "table.restored", Action: "restore", Outcome: outcome, Target: schema.Target{Type: "table", ID: "audit_events"},
		Description: fmt.Sprintf("%d events stored and %d removed in %d partitions", job.Stored, job.Removed, job.Partitions),
		Data:        data, DataType: "kansa.table.restored.v1", Actor: schema.Actor{Type: "operator", ID: job.Request.By},
	})
}

// hours goes through the sealed hours of a request, the oldest first.
func (r *Restorer) hours(ctx context.Context, job *Restoration, said func()) error {
	q := job.Request
	ring, err := integrity.Manifests{Bucket: r.Bucket}.Ring(ctx)
	if err != nil || ring == nil {
		return err
	}
	until, err := r.Progress.Next(ctx)
	if err != nil {
		return err
	}
	if !q.To.IsZero() && q.To.Before(until) {
		until = q.To
	}
	all, err := r.Progress.Beginnings(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(b rollup.Beginning) bool {
		return q.Organization != "" && b.Organization != q.Organization || q.Trail != "" && b.Trail != q.Trail
	})
	slices.SortFunc(all, func(a, b rollup.Beginning) int { return a.First.Compare(b.First) })
	if len(all) == 0 {
		return nil
	}
	blocked, err := r.Auditor.blocked(ctx)
	if err != nil {
		return err
	}
	from := all[0].First
	if q.From.After(from) {
		from = q.From.Truncate(r.Hour)
	}
	if from.Before(until) {
		job.Hours = uint64((until.Sub(from) + r.Hour - 1) / r.Hour)
	}
	b := &batch{restorer: r, job: job}
	for hour := from; hour.Before(until); hour = hour.Add(r.Hour) {
		counts, err := r.Table.Counts(ctx, hour, hour.Add(r.Hour), true)
		if err != nil {
			return err
		}
		table := map[trail]seal.Digest{}
		for _, c := range counts {
			table[trail{c.Organization, c.Trail}] = c.Digest
		}
		for _, s := range all {
			of := trail{s.Organization, s.Trail}
			if stuck, ok := blocked[of]; s.First.After(hour) || ok && !hour.Before(stuck) {
				continue
			}
			p := schema.Partition{Organization: s.Organization, Trail: s.Trail, Hour: hour, Length: r.Hour}
			if err := r.partition(ctx, ring, p, table[of], b); err != nil {
				if ctx.Err() != nil {
					return err
				}
				if len(job.Left) < mostLeft {
					job.Left = append(job.Left, p.Path()+": "+err.Error())
				}
			}
			said()
		}
		job.Done++
		said()
		if len(b.of) >= mostOpen {
			if err := b.flush(ctx); err != nil {
				return err
			}
		}
	}
	return b.flush(ctx)
}

// mostOpen bounds the partitions whose hourly counts are corrected at once.
const mostOpen = 500

// partition restores one partition, if the table differs.
func (r *Restorer) partition(ctx context.Context, ring *seal.Ring, p schema.Partition, table seal.Digest, b *batch) error {
	m, err := integrity.Manifests{Bucket: r.Bucket}.Open(ctx, ring, p)
	if err != nil {
		return err
	}
	if m.Digest == table {
		return nil
	}
	if removed, err := r.removed(ctx, p); err != nil || removed {
		return err
	}
	if r.Expires(p.Organization, p.Hour).Before(time.Now()) {
		return nil
	}
	// Nothing is taken of a file that is not what was sealed, so it is read twice.
	whole, err := openSealed(ctx, r.Bucket, m)
	if err == nil {
		err = whole.Close()
	}
	if err != nil {
		return err
	}
	b.job.Partitions++
	b.of, b.p = append(b.of, p), p
	sealed, err := openSealed(ctx, r.Bucket, m)
	if err != nil {
		return err
	}
	defer sealed.Close()
	if table.Rows == 0 {
		return b.all(ctx, sealed)
	}
	rows, err := r.Table.CSV(ctx, p, true)
	if err != nil {
		return err
	}
	defer rows.Close()
	err = differences(sealed, rows, func(kind Kind, e *codec.Stored) error { return b.differs(ctx, p, kind, e) })
	return errors.Join(err, b.remove(ctx, p))
}

// batch collects what is to be stored and removed.
type batch struct {
	restorer *Restorer
	job      *Restoration
	in       codec.Insert
	part     *codec.Part        // is being filled
	of       []schema.Partition // whose hourly counts are corrected after the insert
	month    string
	p        schema.Partition // of the events that are added
	gone     []codec.Place
}

// all stores a whole partition.
func (b *batch) all(ctx context.Context, sealed io.Reader) error {
	for s := newStored(sealed); ; {
		if err := s.next(); err != nil || s.ended {
			return err
		}
		b.job.Missing++
		if err := b.store(ctx, &s.Stored); err != nil {
			return err
		}
	}
}

func (b *batch) differs(ctx context.Context, p schema.Partition, kind Kind, e *codec.Stored) error {
	switch kind {
	case Missing:
		b.job.Missing++
		return b.store(ctx, e)
	case Changed:
		b.job.Changed++
	case Added:
		b.job.Added++
	}
	if !b.job.Request.Replace {
		return nil
	}
	b.gone = append(b.gone, e.Place())
	if kind == Changed {
		if err := b.store(ctx, e); err != nil {
			return err
		}
	}
	if len(b.gone) >= mostRemoved {
		return b.remove(ctx, p)
	}
	return nil
}

// mostRemoved bounds the events that one statement removes.
const mostRemoved = 10_000

// remove removes what is to be removed of a partition. What takes its place is inserted later.
func (b *batch) remove(ctx context.Context, p schema.Partition) error {
	if len(b.gone) == 0 {
		return nil
	}
	if !b.job.Request.DryRun {
		if err := b.restorer.Table.RemoveEvents(ctx, p, b.gone); err != nil {
			return err
		}
		b.job.Removed += uint64(len(b.gone))
	}
	b.gone = b.gone[:0]
	return nil
}

// store adds an event to what is inserted.
func (b *batch) store(ctx context.Context, e *codec.Stored) error {
	if b.job.Request.DryRun {
		return nil
	}
	month := e.RecordedAt.Format("200601")
	if b.part == nil || b.part.StreamSeq != e.StreamSeq || b.part.Organization != b.p.Organization || b.part.Trail != b.p.Trail || !b.part.RecordedAt.Equal(e.RecordedAt) {
		b.close()
		// An insert is of one month, which is one partition of the table.
		if b.in.Rows() >= batchRows || b.in.Bytes() >= batchBytes || b.month != month && b.in.Rows() > 0 {
			// What is to be removed has the same keys as what takes its place.
			if err := b.remove(ctx, b.p); err != nil {
				return err
			}
			if err := b.insert(ctx); err != nil {
				return err
			}
		}
		b.month = month
		b.part = &codec.Part{ // the reader uses the memory of e's texts again
			Organization: b.p.Organization, Trail: b.p.Trail, RecordedAt: e.RecordedAt, StreamSeq: e.StreamSeq, RecordedBy: strings.Clone(e.RecordedBy),
			ExpiresAt: b.restorer.Expires(b.p.Organization, e.RecordedAt), Block: codec.NewBlock(), Index: []uint32{},
		}
	}
	b.part.Block.Append(&e.Event)
	b.part.Index = append(b.part.Index, e.BatchIndex)
	return nil
}

func (b *batch) close() {
	if b.part != nil {
		b.in.Add(*b.part)
		b.part = nil
	}
}

// insert stores what was added. A token that is used once: a retry finds out what is there.
func (b *batch) insert(ctx context.Context) error {
	n := b.in.Rows()
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := b.restorer.Table.Insert(ctx, "restore:"+uuid.NewString(), &b.in); err != nil {
		return err
	}
	b.job.Stored += uint64(n)
	b.in = codec.Insert{}
	return nil
}

// flush stores what is left, corrects the hourly counts, and compares what was restored once more: that ends what was found, or says
// what is left.
func (b *batch) flush(ctx context.Context) error {
	b.close()
	if err := b.insert(ctx); err != nil || b.job.Request.DryRun {
		return err
	}
	hours := map[time.Time]bool{}
	for _, p := range b.of {
		if err := b.restorer.Table.Recount(ctx, p); err != nil {
			return err
		}
		hours[p.Hour] = true
	}
	b.of = nil
	for hour := range hours {
		if err := b.restorer.compareHour(ctx, hour); err != nil {
			return err
		}
	}
	return nil
}
