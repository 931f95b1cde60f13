package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// verifyProof tells whether a proof proves its row.
func verifyProof(data []byte, o Options, r *Report) {
	fail := func(err error) { r.Faults = append(r.Faults, &Fault{File: r.Path, Problem: err.Error(), err: err}) }
	p, err := seal.DecodeProof(data)
	if err != nil {
		fail(err)
		return
	}
	rotations := make([][]byte, len(p.Rotations))
	for i, text := range p.Rotations {
		rotations[i] = []byte(text)
	}
	if o.Rotations != "" {
		rotations, err = goOn(rotations, o)
	}
	var ring *seal.Ring
	if err == nil {
		ring, err = seal.NewRing(o.Key, rotations...)
	}
	if err != nil {
		fail(fmt.Errorf("%w: %w", ErrKeys, err))
		return
	}
	r.Keys = ring.Keys()
	s, err := p.Verify(ring, codec.CSVColumns)
	if err != nil {
		fail(err)
		return
	}
	r.Rows, r.Hours, r.CSVBytes = 1, 1, int64(len(p.Row))
	r.Series = append(r.Series, Series{
		Organization: s.Organization, Trail: s.Trail, From: s.HourStart, To: s.HourEnd, First: s.Number, Last: s.Number, Continues: s.Previous, Hours: 1, Rows: 1,
	})
	r.Event = map[string]string{}
	rows := seal.NewRows(s.Partition(), codec.CSVColumns)
	rows.Each = func(row seal.Row) bool {
		for i, c := range codec.CSVColumns {
			if v := row.Field(i); len(v) > 0 {
				r.Event[c] = string(v)
			}
		}
		return false
	}
	_, _ = rows.Write(append(codec.AppendCSVHeader(nil), p.Row...)) // Verify has read it already
	r.Notes = append(r.Notes, fmt.Sprintf("it is row %d of %d in %s", p.Index+1, s.Rows, s.Partition().CSVKey()))
}

// Event names one event: by its id, or by its place in the stream.
type Event struct {
	ID         string // a UUID in lower case
	StreamSeq  uint64
	BatchIndex uint64
}

// ParsePlace reads an event's place in the stream, 123.4.
func ParsePlace(s string) (Event, error) {
	seq, index, _ := strings.Cut(s, ".")
	a, errA := strconv.ParseUint(seq, 10, 64)
	b, errB := strconv.ParseUint(index, 10, 32)
	if errA != nil || errB != nil || a == 0 {
		return Event{}, fmt.Errorf("%q is no place in the stream: write stream_seq.batch_index, such as 123.4", s)
	}
	return Event{StreamSeq: a, BatchIndex: b}, nil
}

func (e Event) String() string {
	if e.ID != "" {
		return e.ID
	}
	return fmt.Sprintf("%d.%d", e.StreamSeq, e.BatchIndex)
}

// ErrNoEvent means that an event is in none of the partitions.
var ErrNoEvent = errors.New("there is no such event")

// Prove makes the proof of an event from an archive, a partition store or a partition. The partition has
// to be what its manifest says; whether its manifest is signed by whom one trusts is for whoever verifies
// the proof.
func Prove(ctx context.Context, name string, e Event, o Options) (*seal.Proof, error) {
	kind, err := kindOf(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if kind == Proof || kind == Receipt {
		return nil, fmt.Errorf("%w: %s is a %s, and holds no events to prove", ErrUnreadable, name, kind)
	}
	r := newReport(name, kind)
	l, err := open(name, kind, o, r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	defer func() { _ = l.close() }()
	if len(r.Faults) > 0 {
		return nil, r.Faults[0]
	}
	return prove(ctx, l, e, o)
}

func prove(ctx context.Context, l *files, e Event, o Options) (*seal.Proof, error) {
	idColumn := len(codec.CSVColumns)
	for i, c := range codec.CSVColumns {
		if c == "id" {
			idColumn = i
		}
	}
	seq, index := strconv.FormatUint(e.StreamSeq, 10), strconv.FormatUint(e.BatchIndex, 10)
	is := func(row seal.Row) bool {
		if e.ID != "" {
			return string(row.Field(idColumn)) == e.ID
		}
		return string(row.Field(1)) == seq && string(row.Field(2)) == index
	}
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var mu sync.Mutex
	var proof *seal.Proof
	var bad error
	manifests := sorted(l.manifests)
	err := workers(ctx, o, len(manifests), func() *worker { return newWorker(func(int64) {}) }, func(w *worker, i int) error {
		p, err := proveIn(w, l, manifests[i], e, is)
		mu.Lock()
		defer mu.Unlock()
		if err != nil && bad == nil { // the event may be in another one, which is good
			bad = fmt.Errorf("%s: %w", manifests[i].name, err)
		}
		if p != nil {
			proof = p
			enough()
		}
		return nil
	})
	switch {
	case proof != nil:
	case bad != nil:
		return nil, bad
	case err != nil:
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %s in %d partitions", ErrNoEvent, e, len(manifests))
	}
	keys, err := l.keys()
	for _, rotation := range keys.Rotations {
		proof.Rotations = append(proof.Rotations, string(rotation))
	}
	return proof, err
}

func proveIn(w *worker, l *files, f file, e Event, is func(seal.Row) bool) (*seal.Proof, error) {
	data, err := f.small()
	if err != nil {
		return nil, err
	}
	m, err := seal.Parse(data)
	if err != nil {
		return nil, err
	}
	csv, there := l.csv[strings.TrimSuffix(f.name, schema.ManifestSuffix)]
	if m.Rows == 0 || !there || e.ID == "" && (e.StreamSeq < m.FirstSeq || e.StreamSeq > m.LastSeq) {
		return nil, nil
	}
	found := false // the same event may be there twice, if it was published twice
	rows, err := w.partition(m, csv, func(row seal.Row) bool {
		if found || !is(row) {
			return false
		}
		found = true
		return true
	})
	if err != nil {
		return nil, err
	}
	p, err := rows.Proof()
	if p != nil {
		p.Manifest = string(data)
	}
	return p, err
}
