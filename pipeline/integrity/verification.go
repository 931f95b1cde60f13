package integrity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
)

// ErrBusy means that a verification is under way.
var ErrBusy = errors.New("another verification is under way: wait until it has ended")

// ErrNothing means that there is nothing to verify.
var ErrNothing = errors.New("nothing is sealed in this range")

// Request says what to verify.
type Request struct {
	Trails []schema.Trail `json:"trails,omitempty" doc:"Both if left out"`
	From   time.Time      `json:"from,omitzero" doc:"The first sealed hour if left out"`
	To     time.Time      `json:"to,omitzero" doc:"The end of the last sealed hour if left out"`
	Key    string         `json:"key,omitempty" maxLength:"500" doc:"The verifier key that is trusted, as seal.pub has it: an auditor gives his own copy. The store's own if left out"`
}

// Verification is one that was asked for.
type Verification struct {
	ID           string `json:"id"`
	Organization string `json:"organization"`
	Request
	By      string    `json:"by"`
	State   string    `json:"state" enum:"running,done,failed"`
	Started time.Time `json:"started"`
	Updated time.Time `json:"updated"`
	// Done is how many bytes of files are read, of Total.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	// OK tells that everything holds; what does not, is in Faults.
	OK      bool            `json:"ok"`
	Error   string          `json:"error,omitempty"` // why it could not be done
	Hours   uint64          `json:"hours"`
	Rows    uint64          `json:"rows"`
	Series  []verify.Series `json:"series,omitempty"`
	Faults  []*verify.Fault `json:"faults,omitempty"` // the first ones
	Faulty  int             `json:"faulty"`           // how many there are
	Notes   []string        `json:"notes,omitempty"`
	Seconds float64         `json:"seconds"`
}

const (
	running, done, failed = "running", "done", "failed"

	// mostDays bounds a verification; mostTime bounds it, too.
	mostDays = 366
	mostTime = time.Hour
	// mostTold bounds the faults and notes that are kept.
	mostTold = 100
	// progressEvery is how often the state of one under way is kept; after lost it is not under way any more.
	progressEvery = time.Second
	lost          = 30 * time.Second
	// reads is how many partitions are read at once: what else runs here comes first.
	reads = 2
)

// Start has a stretch verified, from when the trails were first sealed to when they are now if nothing is said. One is
// under way at a time, of each organization and of each process.
func (d *Desk) Start(ctx context.Context, organization, by string, q Request) (*Verification, error) {
	if len(q.Trails) == 0 {
		q.Trails = schema.Trails
	}
	if q.Key = strings.TrimSpace(q.Key); q.Key != "" {
		if _, err := note.NewVerifier(q.Key); err != nil {
			return nil, &schema.Fault{Field: "key", Value: q.Key, Problem: "is no verifier key", Remedy: "give the line of seal.pub, as kansa key show prints it"}
		}
	}
	var first, until time.Time
	var trails []schema.Trail
	reaches := map[schema.Trail]reach{}
	for _, t := range q.Trails {
		if f := schema.CheckTrail(t); f != nil {
			return nil, f
		}
		r, err := d.reach(ctx, organization, t)
		if err != nil {
			return nil, err
		}
		if r.first.IsZero() || !r.first.Before(r.until) {
			continue // there is nothing of it
		}
		if first.IsZero() || r.first.Before(first) {
			first = r.first
		}
		if r.until.After(until) {
			until = r.until
		}
		if _, twice := reaches[t]; !twice {
			trails = append(trails, t)
		}
		reaches[t] = r
	}
	q.Trails = trails
	if q.From = q.From.UTC().Truncate(d.hour); q.From.Before(first) {
		q.From = first
	}
	if q.To = q.To.UTC().Truncate(d.hour); q.To.IsZero() || q.To.Year() < 1970 || q.To.After(until) {
		q.To = until
	}
	if len(trails) == 0 || !q.From.Before(q.To) {
		return nil, ErrNothing
	}
	if q.To.Sub(q.From) > mostDays*24*time.Hour {
		return nil, &schema.Fault{Field: "from", Value: q.From.Format(time.RFC3339), Problem: fmt.Sprintf("is more than %d days before to", mostDays), Remedy: "verify a year at a time, or an archive with kansa verify"}
	}
	before, revision, err := d.last(ctx, organization)
	if err != nil {
		return nil, err
	}
	now := d.now().UTC()
	if before != nil && before.State == running {
		return nil, ErrBusy
	}
	var stretches []verify.Stretch
	for _, t := range trails {
		s := verify.Stretch{Organization: organization, Trail: t, From: q.From, To: q.To}
		if r := reaches[t]; s.From.Before(r.first) {
			s.From = r.first
		}
		if r := reaches[t]; s.To.After(r.until) {
			s.To = r.until
		}
		if s.From.Before(s.To) {
			stretches = append(stretches, s)
		}
	}
	v := Verification{ID: uuid.NewString(), Organization: organization, Request: q, By: by, State: running, Started: now, Updated: now}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the verification: %w", err)
	}
	if _, err := consumers.Replace(ctx, d.kept, organization, data, revision); err != nil {
		if errors.Is(err, consumers.ErrReplaced) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("keep the verification: %w", err)
	}
	select {
	case d.jobs <- job{v, stretches}:
		return &v, nil
	case <-time.After(time.Second): // Run is about to take it, or is at another one
	case <-ctx.Done():
	}
	v.State, v.Error = failed, ErrBusy.Error()
	d.keep(context.WithoutCancel(ctx), &v)
	return nil, ErrBusy
}

// last is what was verified last of an organization, or is now.
func (d *Desk) last(ctx context.Context, organization string) (*Verification, uint64, error) {
	entry, err := d.kept.Get(ctx, organization)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return nil, 0, nil
	}
	v := new(Verification)
	if err == nil {
		err = json.Unmarshal(entry.Value(), v)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the last verification: %w", err)
	}
	if v.State == running && d.now().Sub(v.Updated) > lost {
		v.State, v.Error = failed, "it was cut off"
	}
	return v, entry.Revision(), nil
}

func (d *Desk) keep(ctx context.Context, v *Verification) {
	v.Updated = d.now().UTC()
	data, err := json.Marshal(v)
	if err == nil {
		_, err = d.kept.Put(ctx, v.Organization, data)
	}
	if err != nil {
		d.log.WarnContext(ctx, "state of a verification not kept", slog.String("organization", v.Organization), slog.Any("error", err))
	}
}

// Run verifies what is asked for, one after another, until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-d.jobs:
			d.verify(ctx, &j.Verification, j.stretches)
		}
	}
}

// job is a verification and what it reads.
type job struct {
	Verification
	stretches []verify.Stretch
}

func (d *Desk) verify(ctx context.Context, v *Verification, stretches []verify.Stretch) {
	var read, total atomic.Int64
	told := make(chan struct{})
	work, stop := context.WithTimeout(ctx, mostTime)
	defer stop()
	go func() {
		defer close(told)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-work.Done():
				return
			case <-tick.C:
				now := *v
				now.Done, now.Total = read.Load(), total.Load()
				d.keep(work, &now)
			}
		}
	}()
	r, err := verify.Stored(work, d.bucket, stretches, verify.Options{
		Key: v.Key, Parallel: reads, Progress: func(n, of int64) { read.Store(n); total.Store(of) },
	})
	stop()
	<-told
	v.Done, v.Total = read.Load(), total.Load()
	if err != nil {
		if v.State, v.Error = failed, err.Error(); ctx.Err() != nil {
			v.Error = "it was cut off"
		}
	} else {
		v.State, v.OK, v.Hours, v.Rows, v.Series, v.Faulty, v.Seconds = done, r.OK, r.Hours, r.Rows, r.Series, len(r.Faults), r.Seconds
		v.Faults, v.Notes = r.Faults[:min(len(r.Faults), mostTold)], r.Notes[:min(len(r.Notes), mostTold)]
		v.Key = r.Key
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	d.keep(end, v)
}
