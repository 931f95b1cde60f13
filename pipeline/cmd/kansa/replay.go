package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
)

type replayCmd struct {
	natsFlags
	Yes bool `help:"Do it. Without it, only say what would be given out again."`
}

func (*replayCmd) Help() string {
	return `For when ClickHouse has lost events: restore its backup first, if there is one. All that the stream still holds (streams.audit_max_age)
is given to the writers once more; what they find in the table they leave out, so nothing is stored twice. Writers end when they
notice, and have to be started again, as a service manager does; kansa up ends with them. Nothing is stored for as long as writer.ack_wait. Hours that
are sealed stay as they are. Dead letters appear once more.

  kansa replay --yes`
}

func (c *replayCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "replay")
	if err != nil {
		return err
	}
	defer client.Close()
	info, _, err := client.Writers(e.ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "the stream holds %s messages, from %s to %s\n", grouped(info.State.Msgs),
		info.State.FirstTime.UTC().Format("2006-01-02T15:04:05Z"), info.State.LastTime.UTC().Format("2006-01-02T15:04:05Z"))
	if !c.Yes {
		fmt.Fprintln(e.stdout, "kansa replay --yes gives them to the writers once more")
		return nil
	}
	return finished(e, client, client.Replay(e.ctx))
}

// shownWithin bounds the last look at the shards.
const shownWithin = 5 * time.Second

// finished reports how the stream is shared out now. That the broker ended before all was done is no failure: kansa up ends with its
// writers, and does the rest when it starts.
func finished(e *env, client *broker.Client, err error) error {
	if err == nil {
		// It is done; the broker may end at this moment.
		ctx, cancel := context.WithTimeout(e.ctx, shownWithin)
		defer cancel()
		err = printShards(ctx, e, client)
		if err != nil && e.ctx.Err() == nil && (!client.NC.IsConnected() || errors.Is(err, context.DeadlineExceeded)) {
			err = fmt.Errorf("%w (%w)", broker.ErrUnfinished, err)
		}
	}
	if errors.Is(err, broker.ErrUnfinished) {
		fmt.Fprintln(e.stdout, "It is decided and kept. The broker has ended, as kansa up does with its writers: start it again, if no service manager does, and it does the rest.")
		return nil
	}
	return err
}
