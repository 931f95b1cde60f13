package deadletter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
)

// Index counts dead letters by organization and kind, and keeps them within their bounds. It reads
// each letter's headers once, and those of an organization again only after some of its letters
// were removed. It is safe for concurrent use.
type Index struct {
	JS  jetstream.JetStream
	Now func() time.Time // default time.Now

	updating sync.Mutex // held while the stream is read
	last     uint64     // everything up to here was read
	recount  time.Time  // when organizations were counted again

	mu      sync.Mutex
	of      map[string]*lettersOf
	kinds   map[string]*kindCount
	letters uint64
	read    uint64
	dropped map[string]uint64 // by bound
}

// lettersOf are those of an organization, the oldest first.
type lettersOf struct {
	entries []entry
	bytes   int64
}

type entry struct {
	seq  uint64
	at   int64 // milliseconds
	size int64
	kind *kindCount
}

type kindCount struct {
	kind    string
	letters uint64
}

// Bounds are those of each organization's letters; 0 removes the bound.
type Bounds struct {
	MaxAge   time.Duration
	MaxBytes int64
}

// Names of the bounds.
const (
	BoundAge  = "age"
	BoundSize = "size"
)

const (
	keepEvery    = 5 * time.Second
	recountEvery = 15 * time.Second
	// overhead is what a letter takes besides its reason and its bytes.
	overhead = 512
	// roomLeft is the part of MaxBytes that is left when letters are dropped, so that they are
	// dropped many at once.
	roomLeft = 0.9
)

func (x *Index) now() time.Time {
	if x.Now != nil {
		return x.Now()
	}
	return time.Now()
}

// Update reads what has changed. If another call does so already, it returns at once. After an
// error, the next call goes on where this one stopped.
func (x *Index) Update(ctx context.Context) error {
	if !x.updating.TryLock() {
		return nil
	}
	defer x.updating.Unlock()
	return x.update(ctx)
}

func (x *Index) update(ctx context.Context) error {
	stream, err := x.JS.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	state := stream.CachedInfo().State
	if state.LastSeq < x.last { // the stream was made again
		x.trim(^uint64(0))
		x.last = 0
	}
	x.trim(state.FirstSeq)
	if state.LastSeq > x.last && state.Msgs > 0 {
		if err := Heads(ctx, x.JS, "", x.last+1, func(l Letter) bool {
			x.add(&l)
			x.last = l.Seq
			return true
		}); err != nil {
			return err
		}
	}
	x.last = max(x.last, state.LastSeq)
	if x.count() <= state.Msgs || x.now().Sub(x.recount) < recountEvery && state.Msgs > 0 {
		return nil
	}
	return x.again(ctx, stream)
}

// count is how many letters are known.
func (x *Index) count() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.letters
}

// again reads the letters of organizations of which some were removed.
func (x *Index) again(ctx context.Context, stream jetstream.Stream) error {
	x.recount = x.now()
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(schema.SubjectDeadLetter+".*"))
	if err != nil {
		return fmt.Errorf("count the dead letters: %w", err)
	}
	x.mu.Lock()
	var fewer []string
	for organization, l := range x.of {
		if uint64(len(l.entries)) > info.State.Subjects[schema.SubjectDeadLetter+"."+organization] {
			fewer = append(fewer, organization)
		}
	}
	x.mu.Unlock()
	for _, organization := range fewer {
		var there []Letter
		if info.State.Subjects[schema.SubjectDeadLetter+"."+organization] > 0 {
			if err := Heads(ctx, x.JS, organization, 0, func(l Letter) bool {
				there = append(there, l)
				return true
			}); err != nil {
				return err
			}
		}
		x.mu.Lock()
		x.removeLocked(organization, ^uint64(0))
		x.mu.Unlock()
		for i := range there {
			if there[i].Seq <= x.last {
				x.add(&there[i])
			}
		}
	}
	return nil
}

func (x *Index) add(l *Letter) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.of == nil {
		x.of, x.kinds = map[string]*lettersOf{}, map[string]*kindCount{}
	}
	x.read++
	of := x.of[l.Organization]
	if of == nil {
		of = &lettersOf{}
		x.of[l.Organization] = of
	}
	kind := Kind(l.Reason)
	if x.kinds[kind] == nil && len(x.kinds) >= mostCauses {
		kind = Others
	}
	k := x.kinds[kind]
	if k == nil {
		k = &kindCount{kind: kind}
		x.kinds[kind] = k
	}
	k.letters++
	x.letters++
	size := int64(l.Bytes + len(l.Reason) + overhead)
	of.bytes += size
	of.entries = append(of.entries, entry{l.Seq, l.Time.UnixMilli(), size, k})
}

// trim forgets letters before a number.
func (x *Index) trim(before uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for organization := range x.of {
		x.removeLocked(organization, before)
	}
}

// removeLocked forgets letters of an organization before a number. x.mu is held.
func (x *Index) removeLocked(organization string, before uint64) {
	of := x.of[organization]
	n := sort.Search(len(of.entries), func(i int) bool { return of.entries[i].seq >= before })
	for _, e := range of.entries[:n] {
		of.bytes -= e.size
		x.letters--
		if e.kind.letters--; e.kind.letters == 0 {
			delete(x.kinds, e.kind.kind)
		}
	}
	if n == len(of.entries) {
		delete(x.of, organization)
		return
	}
	of.entries = slices.Delete(of.entries, 0, n)
}

// Kinds are how many letters there are of each kind, the most frequent first.
func (x *Index) Kinds() []Cause {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]Cause, 0, len(x.kinds))
	for _, k := range x.kinds {
		all = append(all, Cause{Kind: k.kind, Letters: k.letters})
	}
	slices.SortFunc(all, func(a, b Cause) int {
		return cmp.Or(cmp.Compare(b.Letters, a.Letters), cmp.Compare(a.Kind, b.Kind))
	})
	return all
}

// Read is how many letters were read so far, those that were read again included.
func (x *Index) Read() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.read
}

// Dropped is how many letters this index has dropped, by bound.
func (x *Index) Dropped() map[string]uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return map[string]uint64{BoundAge: x.dropped[BoundAge], BoundSize: x.dropped[BoundSize]}
}

// Keep keeps the letters of each organization within bounds until ctx ends.
func (x *Index) Keep(ctx context.Context, b Bounds, log *slog.Logger) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		if err := x.Bound(ctx, b, log); err != nil && ctx.Err() == nil {
			log.Warn("failed to bound the dead letters; trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// excess is what an organization has beyond a bound.
type excess struct {
	organization, bound string
	before              uint64 // letters before this number
	newest              time.Time
}

// Bound drops the oldest letters of organizations that exceed a bound. Letters of other
// organizations stay. Dropped letters are counted and logged.
func (x *Index) Bound(ctx context.Context, b Bounds, log *slog.Logger) error {
	x.updating.Lock()
	defer x.updating.Unlock()
	if err := x.update(ctx); err != nil {
		return err
	}
	var errs []error
	for _, e := range x.exceeding(b) {
		n, err := x.purge(ctx, e.organization, e.before)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		x.mu.Lock()
		x.removeLocked(e.organization, e.before)
		if x.dropped == nil {
			x.dropped = map[string]uint64{}
		}
		x.dropped[e.bound] += n
		x.mu.Unlock()
		if n > 0 {
			log.Warn("dead letters dropped: the organization has more than its bound; see kansa deadletter list", slog.String("organization", e.organization),
				slog.String("bound", e.bound), slog.Uint64("letters", n), slog.Time("newest_dropped", e.newest), slog.Int64("max_bytes", b.MaxBytes), slog.Duration("max_age", b.MaxAge))
		}
	}
	return errors.Join(errs...)
}

func (x *Index) exceeding(b Bounds) (all []excess) {
	x.mu.Lock()
	defer x.mu.Unlock()
	oldest := x.now().Add(-b.MaxAge).UnixMilli()
	for organization, of := range x.of {
		n, bound := 0, ""
		if b.MaxAge > 0 {
			if n = sort.Search(len(of.entries), func(i int) bool { return of.entries[i].at >= oldest }); n > 0 {
				bound = BoundAge
			}
		}
		if bytes := of.bytes; b.MaxBytes > 0 && bytes > b.MaxBytes {
			i := 0
			for ; i < len(of.entries) && float64(bytes) > roomLeft*float64(b.MaxBytes); i++ {
				bytes -= of.entries[i].size
			}
			if i > n {
				n, bound = i, BoundSize
			}
		}
		if n > 0 {
			last := of.entries[n-1]
			all = append(all, excess{organization, bound, last.seq + 1, time.UnixMilli(last.at).UTC()})
		}
	}
	return all
}

// purge removes an organization's letters before a number, and returns how many the stream removed:
// others may do the same.
func (x *Index) purge(ctx context.Context, organization string, before uint64) (uint64, error) {
	question, err := json.Marshal(map[string]any{"filter": schema.SubjectDeadLetter + "." + organization, "seq": before})
	if err != nil {
		return 0, fmt.Errorf("drop dead letters of %s: %w", organization, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	msg, err := x.JS.Conn().RequestWithContext(ctx, "$JS.API.STREAM.PURGE."+broker.StreamDeadLetter, question)
	if err != nil {
		return 0, fmt.Errorf("drop dead letters of %s: %w", organization, err)
	}
	var answer struct {
		Purged uint64              `json:"purged"`
		Error  *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return 0, fmt.Errorf("drop dead letters of %s: %w", organization, err)
	}
	if answer.Error != nil {
		return 0, fmt.Errorf("drop dead letters of %s: %w", organization, answer.Error)
	}
	return answer.Purged, nil
}
