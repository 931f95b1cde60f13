// Package recordingtest turns the switches of trails for tests, without the rest of the pipeline.
package recordingtest

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
)

// Turn turns a switch and returns when the broker stored that.
func Turn(t testing.TB, js jetstream.JetStream, organization string, trail schema.Trail, on bool) (at time.Time) {
	t.Helper()
	kv, err := js.KeyValue(t.Context(), schema.RecordingBucket)
	if err != nil {
		t.Fatal(err)
	}
	var doc *schema.Recording
	was, err := kv.Get(t.Context(), organization)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		doc, err = schema.ParseRecording(nil, time.Time{})
	case err == nil:
		doc, err = schema.ParseRecording(was.Value(), was.Created())
	}
	if err != nil {
		t.Fatal(err)
	}
	doc.Turn(trail, on, "ann", "maintenance")
	data, err := doc.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), organization, data); err != nil {
		t.Fatal(err)
	}
	now, err := kv.Get(t.Context(), organization)
	if err != nil {
		t.Fatal(err)
	}
	return now.Created().UTC().Truncate(time.Microsecond)
}
