package pipeline_test

import (
	"context"
	"slices"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// One trace leads from the application's span over the message to the insert, and another one from a request to its
// delivery. An hour is a span, too.
func TestTraces(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	c := pipelinetest.Config(t)
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: c, Roles: pipeline.Roles, EngineCommand: pipelinetest.EngineCommand(t), Tracing: provider, Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := producers.New(s.Client.JS, producers.Config{Tracing: provider})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	app := provider.Tracer("application")
	publishing, root := app.Start(t.Context(), "application")
	event := schema.Event{OccurredAt: time.Now(), Organization: "acme", Trail: schema.Activity, Source: "test", Event: "thing.done", Action: "do"}
	if err := p.Publish(publishing, event); err != nil {
		t.Fatal(err)
	}
	root.End()
	asking, request := app.Start(t.Context(), "request")
	to := time.Now().UTC().Add(-time.Hour).Truncate(time.Hour)
	err = exporter.Submit(asking, s.Client.JS, exporter.Request{
		ID: "x1", Organization: "acme", Trails: schema.Trails, From: to.Add(-time.Hour), To: to, Destination: "nobody", RequestedBy: "a test",
	})
	if err != nil {
		t.Fatal(err)
	}
	request.End()

	// of finds a span of a name that is in a trace, or is linked to it.
	of := func(name string, id trace.TraceID) bool {
		return slices.ContainsFunc(spans.GetSpans(), func(s tracetest.SpanStub) bool {
			return s.Name == name && (s.SpanContext.TraceID() == id || slices.ContainsFunc(s.Links, func(l sdk.Link) bool { return l.SpanContext.TraceID() == id }))
		})
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		published, asked := root.SpanContext().TraceID(), request.SpanContext().TraceID()
		hour := slices.ContainsFunc(spans.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name == "seal hour" })
		saw := []bool{of("publish", published), of("store", published), of("deliver", asked), hour}
		return !slices.Contains(saw, false), saw
	})
}
