// Package deadletter is how people look at what could not be stored, and have it tried again.
//
// It owns the reading, the replay and the bounds of the DEADLETTER stream; the writer fills it.
package deadletter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Letter is one entry.
type Letter struct {
	Seq             uint64    `json:"seq"` // on DEADLETTER
	Time            time.Time `json:"time"`
	Organization    string    `json:"organization"`
	Reason          string    `json:"reason"`
	Subject         string    `json:"subject"`
	StreamSeq       uint64    `json:"stream_seq"`
	BatchIndex      *int      `json:"batch_index,omitempty"` // nil: the whole message
	RecordedBy      string    `json:"recorded_by,omitempty"` // the credential that published it
	ContentType     string    `json:"content_type,omitempty"`
	ContentEncoding string    `json:"content_encoding,omitempty"`
	Bytes           int       `json:"bytes"`
	Data            []byte    `json:"data,omitempty"`
}

// Invalid stands for the organization of letters whose subject names none.
const Invalid = "_invalid"

// ErrNotFound means that there is no letter of that number.
var ErrNotFound = errors.New("no such dead letter")

// Count returns how many letters there are.
func Count(ctx context.Context, js jetstream.JetStream) (uint64, error) {
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	return s.CachedInfo().State.Msgs, nil
}

// Each visits the letters of an organization (all if empty), the oldest first, until visit returns false.
func Each(ctx context.Context, js jetstream.JetStream, organization string, visit func(Letter) bool) error {
	if organization == "" {
		organization = "*"
	}
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	filter := schema.SubjectDeadLetter + "." + organization
	end := s.CachedInfo().State.LastSeq
	for seq := s.CachedInfo().State.FirstSeq; seq <= end; {
		msg, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read dead letter %d: %w", seq, err)
		}
		if msg.Sequence > end || !visit(letter(msg)) {
			return nil
		}
		seq = msg.Sequence + 1
	}
	return nil
}

// Get returns one letter.
func Get(ctx context.Context, js jetstream.JetStream, seq uint64) (Letter, error) {
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return Letter{}, fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	msg, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Letter{}, fmt.Errorf("%w: %d", ErrNotFound, seq)
	}
	if err != nil {
		return Letter{}, fmt.Errorf("read dead letter %d: %w", seq, err)
	}
	return letter(msg), nil
}

func letter(msg *jetstream.RawStreamMsg) Letter {
	l := read(msg.Subject, msg.Header)
	l.Seq, l.Time, l.Data, l.Bytes = msg.Sequence, msg.Time, msg.Data, len(msg.Data)
	return l
}

// read is what the headers of a letter say.
func read(subject string, h nats.Header) Letter {
	l := Letter{
		Organization: subject[len(schema.SubjectDeadLetter)+1:], Reason: h.Get(schema.HeaderReason), Subject: h.Get(schema.HeaderSubject),
		RecordedBy:  h.Get(schema.HeaderRecordedBy),
		ContentType: h.Get(schema.HeaderContentType), ContentEncoding: h.Get(schema.HeaderContentEncoding),
	}
	l.StreamSeq, _ = strconv.ParseUint(h.Get(schema.HeaderStreamSeq), 10, 64)
	if i, err := strconv.Atoi(h.Get(schema.HeaderBatchIndex)); err == nil {
		l.BatchIndex = &i
	}
	return l
}

// Replayed is a letter that was published again.
type Replayed struct {
	Letter  Letter
	Seq     uint64 // on AUDIT
	Subject string
	// Changed says that it is not what its publisher published; it is recorded under the person who
	// changed it.
	Changed bool
}

// Replay publishes a letter again, changed by c, and removes it when that is on disk. If it still
// cannot be stored, it comes back as a new letter: see [Outcome]. A letter that is replayed
// unchanged is recorded under the credential that published it first, and any other under by. The
// error answers to ErrUnfit if the change does not fit the letter, and to producers.ErrStreamFull
// if the stream is full; in both cases the letter stays.
func Replay(ctx context.Context, js jetstream.JetStream, l Letter, c Change, by string) (*Replayed, error) {
	out, err := c.apply(&l)
	if err != nil {
		return nil, err
	}
	msg := nats.NewMsg(out.subject)
	msg.Data = out.data
	recordedBy := l.RecordedBy
	id := fmt.Sprintf("replay-%d-%d", l.Time.UnixNano(), l.Seq)
	if out.changed {
		recordedBy = by
		// Another change of the same letter is another message.
		sum := sha256.Sum256(append([]byte(out.subject+"\x00"), out.data...))
		id += "-" + hex.EncodeToString(sum[:8])
	}
	msg.Header.Set(nats.MsgIdHdr, id)
	for k, v := range map[string]string{schema.HeaderContentType: out.contentType, schema.HeaderContentEncoding: out.encoding, schema.HeaderRecordedBy: recordedBy} {
		if v != "" {
			msg.Header.Set(k, v)
		}
	}
	ack, err := js.PublishMsg(ctx, msg)
	if err != nil {
		return nil, fmt.Errorf("replay dead letter %d on %s: %w", l.Seq, out.subject, producers.StreamFull(err))
	}
	if err := remove(ctx, js, l.Seq); err != nil {
		return nil, fmt.Errorf("remove dead letter %d after its replay: %w", l.Seq, err)
	}
	return &Replayed{Letter: l, Seq: ack.Sequence, Subject: out.subject, Changed: out.changed}, nil
}

func remove(ctx context.Context, js jetstream.JetStream, seq uint64) error {
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	if err := s.DeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return err
	}
	return nil
}

// Discard removes a letter that is not wanted, after record has taken the event that says who did
// so and why, with the digest of its bytes. If record fails, the letter stays. e has the actor and
// the organization.
func Discard(ctx context.Context, js jetstream.JetStream, l Letter, why string, e schema.Event, record func(context.Context, schema.Event) error) error {
	if strings.TrimSpace(why) == "" {
		return fmt.Errorf("discard dead letter %d: the reason is empty: say why it is not wanted", l.Seq)
	}
	e.Trail, e.Event, e.Action, e.Outcome = schema.Activity, "deadletter.discarded", "delete", schema.Success
	e.Target = schema.Target{Type: "deadletter", ID: strconv.FormatUint(l.Seq, 10)}
	attributes := l.attributes()
	attributes["why"] = cut(why)
	maps.Copy(attributes, e.Attributes)
	e.Attributes = attributes
	if err := record(ctx, e); err != nil {
		return fmt.Errorf("record that dead letter %d is discarded, so that it stays: %w", l.Seq, err)
	}
	if err := remove(ctx, js, l.Seq); err != nil {
		return fmt.Errorf("discard dead letter %d: %w", l.Seq, err)
	}
	return nil
}

// attributes are what an event about a letter says of it.
func (l *Letter) attributes() map[string]string {
	sum := sha256.Sum256(l.Data)
	all := map[string]string{
		"seq": strconv.FormatUint(l.Seq, 10), "subject": cut(l.Subject), "reason": cut(l.Reason), "stream_seq": strconv.FormatUint(l.StreamSeq, 10),
		"bytes": strconv.Itoa(l.Bytes), "sha256": hex.EncodeToString(sum[:]), "dead_lettered_at": l.Time.UTC().Format(time.RFC3339Nano),
	}
	if l.RecordedBy != "" {
		all["recorded_by"] = cut(l.RecordedBy)
	}
	return all
}

// Event completes an event about a letter that was replayed. e has the actor and the organization.
func (r *Replayed) Event(e schema.Event) schema.Event {
	e.Trail, e.Event, e.Action, e.Outcome = schema.Activity, "deadletter.replayed", "replay", schema.Success
	attributes := r.Letter.attributes()
	if r.Changed {
		attributes["mended"], attributes["to"] = "true", r.Subject
	}
	maps.Copy(attributes, e.Attributes)
	e.Attributes = attributes
	return e
}

const mostInAttribute = 1000

func cut(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), mostInAttribute)], "?")
}
