package broker_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
)

// A full disk: publishing fails, nothing acknowledged is lost, and when there is room again the server takes
// messages, on the same address, without anybody's help. JetStream alone would refuse until it is started again.
func TestServerThatCouldNotWriteComesBack(t *testing.T) {
	t.Parallel()
	dir, fill, free := pipelinetest.SmallDisk(t, 16<<20)
	s, err := broker.StartServer(t.Context(), broker.ServerOptions{Dir: filepath.Join(dir, "nats"), LogIn: brokertest.Anyone})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c, err := broker.Connect(t.Context(), broker.Options{URL: s.URL(), Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Setup(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	var acked []uint64
	publish := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ack, err := c.JS.Publish(ctx, schema.EventSubject("acme", schema.Activity), make([]byte, 10<<10))
		if err == nil {
			acked = append(acked, ack.Sequence)
		}
		return err
	}
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	fill()
	if err := publish(); err == nil {
		t.Fatal("acknowledged on a full disk")
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return s.Err() != nil, "it says that it can write" })
	free()
	pipelinetest.Until(t, time.Minute, func() (bool, any) { err := publish(); return err == nil, err })
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return s.Err() == nil, s.Err() })
	if s.Restarts() == 0 {
		t.Error("it was not started again: then what is all this for?")
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range acked {
		if _, err := stream.GetMsg(t.Context(), seq); err != nil {
			t.Errorf("message %d was acknowledged: %v", seq, err)
		}
	}
}
