package producers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// exampleBroker stands in for the broker of an installation.
func exampleBroker(ctx context.Context) (client *broker.Client, stop func()) {
	dir, err := os.MkdirTemp("", "kansa-example-")
	if err != nil {
		log.Fatal(err)
	}
	server, err := broker.StartServer(ctx, broker.ServerOptions{Dir: dir, LogIn: brokertest.Anyone})
	if err != nil {
		log.Fatal(err)
	}
	client, err = broker.Connect(ctx, broker.Options{URL: server.URL(), Name: "example"})
	if err != nil {
		log.Fatal(err)
	}
	if err := client.Setup(ctx, broker.Settings{DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour}); err != nil {
		log.Fatal(err)
	}
	return client, func() {
		client.Close()
		server.Close()
		if err := os.RemoveAll(dir); err != nil {
			log.Fatal(err)
		}
	}
}

// Publish returns when the event is on the broker's disk.
func ExamplePublisher_Publish() {
	ctx := context.Background()
	client, stop := exampleBroker(ctx)
	defer stop()
	publisher, err := producers.New(client.JS, producers.Config{})
	if err != nil {
		log.Fatal(err)
	}
	err = publisher.Publish(ctx, schema.Event{
		OccurredAt: time.Now(), Organization: "acme", Trail: schema.Activity,
		Source: "reports", Event: "report.published", Action: "publish",
		Actor:  schema.Actor{Type: "user", ID: "u-1", Name: "Aiko Tanaka"},
		Target: schema.Target{Type: "report", ID: "r-7", Name: "Q3"},
		Data:   json.RawMessage(`{"pages":12}`),
	})
	fmt.Println("published:", err == nil)

	// An event that breaks a rule is refused, with all that is wrong with it.
	err = publisher.Publish(ctx, schema.Event{
		OccurredAt: time.Now(), Organization: "acme", Trail: "audit", Source: "reports", Event: "report.published", Action: "Publish",
	})
	fmt.Println(err)
	fmt.Println("closed:", publisher.Close(ctx) == nil)
	// Output:
	// published: true
	// trail "audit" is no trail: use activity or access; action "Publish" contains upper case: write publish
	// closed: true
}

// PublishAsync does not wait for the broker; Flush does, for all events at once.
func ExamplePublisher_PublishAsync() {
	ctx := context.Background()
	client, stop := exampleBroker(ctx)
	defer stop()
	publisher, err := producers.New(client.JS, producers.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 1000 {
		_, err := publisher.PublishAsync(ctx, schema.Event{
			OccurredAt: time.Now(), Organization: "acme", Trail: schema.Access,
			Source: "reports", Event: "report.viewed", Action: "read",
			Target: schema.Target{Type: "report", ID: fmt.Sprintf("r-%d", i)},
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := publisher.Flush(ctx); err != nil {
		log.Fatal(err) // some event is not stored: its Ack tells which
	}
	fmt.Println(publisher.Stats().Acked, "events are on disk")
	if err := publisher.Close(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: 1000 events are on disk
}
