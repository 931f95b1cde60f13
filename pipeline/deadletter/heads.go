package deadletter

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/schema"
)

const (
	// headsAtOnce is how many are asked for at once.
	headsAtOnce = 1000
	headsWait   = 10 * time.Second
)

// Heads visits the letters of an organization (all if empty) from a number on, the oldest first, without their bytes,
// until visit returns false: what is read of each is its headers, so that many are looked through at once.
func Heads(ctx context.Context, js jetstream.JetStream, organization string, from uint64, visit func(Letter) bool) (err error) {
	if organization == "" {
		organization = "*"
	}
	stream, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	// One that is forgotten here ends by itself.
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject: schema.SubjectDeadLetter + "." + organization, HeadersOnly: true, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1), InactiveThreshold: 2 * headsWait,
	})
	if err != nil {
		return fmt.Errorf("look through the dead letters: %w", err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(end, consumer.CachedInfo().Name) // or it ends by itself
	}()
	for waiting := consumer.CachedInfo().NumPending; waiting > 0; {
		batch, err := consumer.Fetch(int(min(waiting, headsAtOnce)), jetstream.FetchMaxWait(headsWait))
		if err != nil {
			return fmt.Errorf("look through the dead letters: %w", err)
		}
		got := uint64(0)
		stop := false
		for msg := range batch.Messages() { // to its end: what is left in it has a goroutine
			got++
			if stop || ctx.Err() != nil {
				continue
			}
			l, err := head(msg)
			if err != nil {
				return err
			}
			stop = !visit(l)
		}
		if err := errors.Join(batch.Error(), ctx.Err()); err != nil {
			return fmt.Errorf("look through the dead letters: %w", err)
		}
		if stop || got == 0 { // others were replayed or removed meanwhile
			return nil
		}
		waiting -= min(got, waiting)
	}
	return nil
}

func head(msg jetstream.Msg) (Letter, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Letter{}, fmt.Errorf("look through the dead letters: %w", err)
	}
	l := read(msg.Subject(), msg.Headers())
	l.Seq, l.Time = meta.Sequence.Stream, meta.Timestamp.UTC()
	l.Bytes, _ = strconv.Atoi(msg.Headers().Get(nats.MsgSize))
	return l, nil
}

// values are what makes reasons differ that are the same to people: what is in quotes, and numbers behind words.
var values = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\b(byte|row|event|index|has|is|of|at|than) \d+\b`)

// Kind is a reason without the values in it: those of a kind have one cause.
func Kind(reason string) string {
	kind := values.ReplaceAllStringFunc(reason, func(v string) string {
		if v[0] == '"' {
			return `"…"`
		}
		return v[:strings.IndexByte(v, ' ')] + " …"
	})
	if len(kind) > longestKind {
		kind = strings.ToValidUTF8(kind[:longestKind], "") + "…"
	}
	return kind
}

const longestKind = 160

// Like tells whether a letter is one of those that a person means by a reason: its kind, or words of it.
func (l *Letter) Like(reason string) bool {
	return reason == "" || Kind(l.Reason) == reason || strings.Contains(l.Reason, reason)
}

// Cause is how many letters there are of a kind.
type Cause struct {
	Kind    string    `json:"kind"`
	Letters uint64    `json:"letters"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// Example is a reason in full.
	Example string `json:"example"`
}

// Census is what the letters of an organization are there for.
type Census struct {
	Causes []Cause `json:"causes" nullable:"false"`
	// Looked is how many letters were looked at, the oldest ones; More tells that there are others.
	Looked uint64 `json:"looked"`
	More   bool   `json:"more"`
}

const (
	mostLooked = 100_000
	mostCauses = 100
	// Others is the kind of all that are too rare to have one of their own.
	Others = "…"
)

// tally counts letters by kind.
type tally struct {
	causes []Cause
	at     map[string]int
}

func (t *tally) add(l *Letter) {
	if t.at == nil {
		t.at = map[string]int{}
	}
	kind := Kind(l.Reason)
	i, ok := t.at[kind]
	if !ok && len(t.at) >= mostCauses {
		kind = Others
		i, ok = t.at[kind]
	}
	if !ok {
		i = len(t.causes)
		t.at[kind] = i
		t.causes = append(t.causes, Cause{Kind: kind, First: l.Time, Example: l.Reason})
	}
	t.causes[i].Letters++
	t.causes[i].Last = l.Time
}

// sorted are the causes, the most frequent first.
func (t *tally) sorted() []Cause {
	slices.SortStableFunc(t.causes, func(a, b Cause) int { return int(b.Letters) - int(a.Letters) })
	return append([]Cause{}, t.causes...)
}

// Causes counts the letters of an organization (all if empty) by kind, the most frequent first.
func Causes(ctx context.Context, js jetstream.JetStream, organization string) (*Census, error) {
	c := &Census{}
	var t tally
	err := Heads(ctx, js, organization, 0, func(l Letter) bool {
		if c.Looked == mostLooked {
			c.More = true
			return false
		}
		c.Looked++
		t.add(&l)
		return true
	})
	c.Causes = t.sorted()
	return c, err
}
