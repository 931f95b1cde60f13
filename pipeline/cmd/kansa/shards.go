package main

import (
	"context"
	"fmt"

	"github.com/kansa-audit/kansa/pipeline/broker"
)

type shardsCmd struct {
	natsFlags
	Shards int `arg:"" optional:"" help:"How many there shall be, 1 to 60. Without it, only print how many there are."`
}

func (*shardsCmd) Help() string {
	return `Shares the stream of events out among another number of consumers, so that more writers than one consumer keeps busy can work on it.
Writers end when they notice, and have to be started again, as a service manager does. Nothing is stored for as long as
writer.ack_wait, nothing is lost, and nothing is stored twice. Cut off, it is finished by running it again. Start no process
of an older version meanwhile.

  kansa shards 4`
}

func (c *shardsCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "shards")
	if err != nil {
		return err
	}
	defer client.Close()
	if c.Shards != 0 {
		return finished(e, client, client.SetShards(e.ctx, c.Shards))
	}
	return printShards(e.ctx, e, client)
}

func printShards(ctx context.Context, e *env, client *broker.Client) error {
	_, shards, err := client.Writers(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%d shards\n", len(shards))
	for _, s := range shards {
		fmt.Fprintf(e.stdout, "  %-14s settled up to %d, %d messages wait\n", s.Name, s.AckFloor.Stream, s.NumPending+uint64(s.NumAckPending))
	}
	return nil
}
