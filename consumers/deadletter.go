package consumers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// DeadLetter is a message, or one event of it, that can't be stored.
type DeadLetter struct {
	Reason          error
	Subject         string // where it came from
	StreamSeq       uint64
	BatchIndex      int // within the message; -1 for the whole message
	RecordedAt      time.Time
	RecordedBy      string // the credential that published it
	ContentType     string
	ContentEncoding string
	Data            []byte // its bytes, whole
}

// maxHeader bounds one header; the broker takes 64 KiB of all together.
const maxHeader = 8 << 10

// DeadLetters puts dead letters on the DEADLETTER stream.
type DeadLetters struct{ JS jetstream.JetStream }

// Put returns nil when all letters are on the broker's disk. Putting one again changes nothing.
func (d DeadLetters) Put(ctx context.Context, letters []DeadLetter) error {
	acks := make([]jetstream.PubAckFuture, 0, len(letters))
	for i := range letters {
		// The number in flight is bounded by the publisher; it blocks when it is reached.
		ack, err := d.JS.PublishMsgAsync(letters[i].message(), jetstream.WithStallWait(30*time.Second))
		if err != nil {
			return fmt.Errorf("put dead letter of stream sequence %d: %w", letters[i].StreamSeq, err)
		}
		acks = append(acks, ack)
	}
	var errs []error
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			errs = append(errs, err)
		case <-ctx.Done():
			return fmt.Errorf("put dead letters: %w", ctx.Err())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("put %d of %d dead letters: %w", len(errs), len(letters), err)
	}
	return nil
}

func (l *DeadLetter) message() *nats.Msg {
	org, _, err := schema.ParseEventSubject(l.Subject)
	if err != nil {
		org = "_invalid"
	}
	msg := nats.NewMsg(schema.SubjectDeadLetter + "." + org)
	msg.Data = l.Data
	id := strconv.FormatUint(l.StreamSeq, 10)
	// What a stranger wrote is cut and has one line, so that the headers stay within what the broker takes.
	set := func(k, v string) {
		if v = codec.OneLine(v[:min(len(v), maxHeader)]); v != "" {
			msg.Header.Set(k, v)
		}
	}
	set(schema.HeaderReason, l.Reason.Error())
	set(schema.HeaderSubject, l.Subject)
	set(schema.HeaderStreamSeq, id)
	if l.BatchIndex >= 0 {
		id += "-" + strconv.Itoa(l.BatchIndex)
		set(schema.HeaderBatchIndex, strconv.Itoa(l.BatchIndex))
	}
	set(schema.HeaderRecordedAt, l.RecordedAt.UTC().Format(time.RFC3339Nano))
	set(schema.HeaderRecordedBy, l.RecordedBy)
	set(schema.HeaderContentType, l.ContentType)
	set(schema.HeaderContentEncoding, l.ContentEncoding)
	set(nats.MsgIdHdr, id)
	return msg
}
