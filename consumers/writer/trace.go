package writer

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// mostLinks bounds the messages that the span of an insert is linked to.
const mostLinks = 128

// trace begins the span of an insert: a child of its message's if it has one alone, or else linked to those of all.
func (w *Writer) trace(ctx context.Context, items []*item) (_ context.Context, end func(rows int, err error)) {
	if w.tracer == nil {
		return ctx, func(int, error) {}
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attribute.Int("kansa.messages", len(items)))}
	var links []trace.Link
	for _, it := range items {
		if it.span.IsValid() && len(links) < mostLinks {
			links = append(links, trace.Link{SpanContext: it.span})
		}
	}
	if len(items) == 1 && len(links) == 1 {
		ctx = trace.ContextWithRemoteSpanContext(ctx, links[0].SpanContext)
	} else {
		options = append(options, trace.WithNewRoot(), trace.WithLinks(links...))
	}
	ctx, span := w.tracer.Start(ctx, "store", options...)
	return ctx, func(rows int, err error) {
		span.SetAttributes(attribute.Int("kansa.events", rows))
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}
