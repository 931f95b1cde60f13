package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// nextWithin bounds the wait for a message that is in the stream.
	nextWithin = 30 * time.Second
	// pulledAtOnce is how many messages one fetch asks for.
	pulledAtOnce = 256
)

// Pulled takes the messages of a consumer one after another and notices when one is lost on its way. It is for reading a
// stream, not for work: nothing is acknowledged.
type Pulled struct {
	Consumer jetstream.Consumer

	batch jetstream.MessageBatch
	read  uint64 // of the consumer
}

// Next returns the next message. Right after a consumer was made, not every server of a cluster knows of it.
func (p *Pulled) Next(ctx context.Context) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, nextWithin)
	defer cancel()
	var err error
	for {
		if p.batch != nil {
			select {
			case msg, ok := <-p.batch.Messages():
				if ok {
					meta, err := msg.Metadata()
					if err == nil && meta.Sequence.Consumer != p.read+1 {
						err = fmt.Errorf("message %d of the consumer was lost on its way", p.read+1)
					}
					p.read++
					return msg, err
				}
				err = p.batch.Error()
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), err)
			}
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), err)
			case <-time.After(50 * time.Millisecond):
			}
		}
		var fetchErr error
		if p.batch, fetchErr = p.Consumer.Fetch(pulledAtOnce, jetstream.FetchMaxWait(time.Second)); fetchErr != nil {
			p.batch, err = nil, fetchErr
		}
	}
}
