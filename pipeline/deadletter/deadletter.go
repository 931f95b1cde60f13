// Package deadletter is how people look at what could not be stored, and have it tried again.
//
// It owns the reading and the replay of the DEADLETTER stream; the writer fills it.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
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

// Replay publishes a letter where it came from, its data replaced if data is not nil, and removes it when
// that is on disk. If it still cannot be stored, it comes back as a new letter. A letter that is replayed unchanged is recorded under the credential
// that published it first, and other data under the one who gives it, by.
func Replay(ctx context.Context, js jetstream.JetStream, l Letter, data []byte, by string) error {
	msg := nats.NewMsg(l.Subject)
	msg.Data = l.Data
	recordedBy := l.RecordedBy
	if data != nil {
		msg.Data, recordedBy = data, by
	}
	msg.Header.Set(nats.MsgIdHdr, fmt.Sprintf("replay-%d-%d", l.Time.UnixNano(), l.Seq))
	for k, v := range map[string]string{schema.HeaderContentType: l.ContentType, schema.HeaderContentEncoding: l.ContentEncoding, schema.HeaderRecordedBy: recordedBy} {
		if v != "" {
			msg.Header.Set(k, v)
		}
	}
	if _, err := js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("replay dead letter %d on %s: %w", l.Seq, l.Subject, err)
	}
	s, err := js.Stream(ctx, broker.StreamDeadLetter)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", broker.StreamDeadLetter, err)
	}
	if err := s.DeleteMsg(ctx, l.Seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("remove dead letter %d after its replay: %w", l.Seq, err)
	}
	return nil
}
