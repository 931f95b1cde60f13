package exporter_test

import (
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// message is one that came from no stream. Only what a handler may look at is there.
type message struct {
	jetstream.Msg
	subject string
	data    []byte
}

func (message) Headers() nats.Header { return nil }

func (m message) Subject() string { return m.subject }
func (m message) Data() []byte    { return m.data }
