// Package status is how a running process tells, over the broker, what it is, what its checks find and what its figures
// are, and how tools ask all processes at once.
//
// It owns the subject and the form of question and answers; it looks at nothing itself.
package status

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/health"
)

// Subject is where the question is asked. Every process listens, none instead of another.
const Subject = control.Prefix + "status"

// Process is what a process is.
type Process struct {
	ID      string    `json:"id"` // made at its start
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Version string    `json:"version,omitempty"`
	Roles   []string  `json:"roles"`
	Since   time.Time `json:"since"`
}

// Name tells a process from others, to people.
func (p *Process) Name() string { return fmt.Sprintf("%s/%d", p.Host, p.PID) }

// This is the process that asks.
func This(version string, roles []string) Process {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return Process{ID: rand.Text(), Host: host, PID: os.Getpid(), Version: version, Roles: roles, Since: time.Now().UTC().Truncate(time.Second)}
}

// Fact is something that is worth knowing and neither good nor bad.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Status is how a process is doing.
type Status struct {
	Health health.Report `json:"health"`
	Facts  []Fact        `json:"facts,omitempty"`
	// Figures are the metrics of the process, by name and labels as Prometheus writes them.
	Figures map[string]float64 `json:"figures"`
}

// Question says what is asked for besides figures.
type Question struct {
	// Checks has the process make its checks, and tell facts.
	Checks bool `json:"checks,omitempty"`
}

// answer is sent twice: at once, with who answers and its clock, and when Status is known.
type answer struct {
	Process
	At     time.Time `json:"at"`
	Status *Status   `json:"status,omitempty"`
}

// atOnce bounds the questions that are answered at the same time.
const atOnce = 4

// Serve answers until ctx ends, and returns when the last answer is given.
func Serve(ctx context.Context, nc *nats.Conn, me Process, look func(context.Context, Question) *Status) error {
	questions := make(chan *nats.Msg, 64)
	sub, err := nc.ChanSubscribe(Subject, questions)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", Subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails only when the connection is closed
	var answering sync.WaitGroup
	defer answering.Wait()
	room := make(chan struct{}, atOnce)
	respond := func(msg *nats.Msg, a answer) {
		if data, err := json.Marshal(a); err == nil {
			_ = msg.Respond(data) // who asked may be gone
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-questions:
			var q Question
			if json.Unmarshal(msg.Data, &q) != nil {
				continue
			}
			respond(msg, answer{Process: me, At: time.Now().UTC()})
			select {
			case <-ctx.Done():
				return nil
			case room <- struct{}{}:
			}
			answering.Go(func() {
				defer func() { <-room }()
				respond(msg, answer{Process: me, At: time.Now().UTC(), Status: look(ctx, q)})
			})
		}
	}
}

// Seen is a process that was found.
type Seen struct {
	Process
	// Status is nil if the process said that it is there and did not say how it is in time: it hangs.
	Status *Status `json:"status,omitempty"`
	// Ahead is how far its clock is ahead of the asking one, give or take Give.
	Ahead time.Duration `json:"ahead_ns"`
	Give  time.Duration `json:"give_ns"`
}

// Settle is how long Ask waits at least, for processes that are slow to say that they are there.
const Settle = 300 * time.Millisecond

// Ask asks all processes and returns those that answered within a limit, ordered by role and name. It returns as soon
// as all have answered that said at once that they are there.
func Ask(ctx context.Context, nc *nats.Conn, q Question, limit time.Duration) ([]Seen, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	asked := time.Now()
	if err := nc.PublishRequest(Subject, inbox, data); err != nil {
		return nil, fmt.Errorf("ask %s: %w", Subject, err)
	}
	seen := map[string]*Seen{}
	settled, end := asked.Add(min(Settle, limit)), asked.Add(limit)
	for {
		until := end
		if all := values(seen); len(all) > 0 && !slices.ContainsFunc(all, func(s Seen) bool { return s.Status == nil }) {
			until = settled
		}
		msg, err := next(ctx, sub, until)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return nil, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return values(seen), nil
		case err != nil:
			return nil, fmt.Errorf("wait for answers: %w", err)
		}
		var a answer
		if err := json.Unmarshal(msg.Data, &a); err != nil {
			return nil, fmt.Errorf("read an answer: %w", err)
		}
		s := seen[a.ID]
		if s == nil {
			give := time.Since(asked) / 2
			s = &Seen{Process: a.Process, Ahead: a.At.Sub(asked.Add(give)), Give: give}
			seen[a.ID] = s
		}
		if a.Status != nil {
			s.Status = a.Status
		}
	}
}

func next(ctx context.Context, sub *nats.Subscription, until time.Time) (*nats.Msg, error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

func values(seen map[string]*Seen) []Seen {
	all := make([]Seen, 0, len(seen))
	for _, s := range seen {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Seen) int {
		return cmp.Or(strings.Compare(strings.Join(a.Roles, ","), strings.Join(b.Roles, ",")), strings.Compare(a.Name(), b.Name()), strings.Compare(a.ID, b.ID))
	})
	return all
}
