package producers

import (
	"context"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kansa-audit/kansa/schema/tracecontext"
)

// mostCallers bounds the spans that a message is linked to.
const mostCallers = 32

// calledBy notes the span in which an event of b was published. p.mu is held, and there is a tracer.
func (b *batch) calledBy(ctx context.Context) {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() || len(b.callers) >= mostCallers {
		return
	}
	if n := len(b.callers); n == 0 || !b.callers[n-1].Equal(span) {
		b.callers = append(b.callers, span)
	}
}

// trace begins the span of a message, which the message carries along. It is a child of the only span in which its
// events were published, or else linked to all of them.
func (p *Publisher) trace(b *batch, msg *nats.Msg) (end func(error)) {
	if p.tracer == nil {
		return func(error) {}
	}
	ctx := context.Background()
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("messaging.system", "nats"), attribute.String("messaging.destination.name", msg.Subject), attribute.Int("kansa.events", b.block.Rows()),
	)}
	if len(b.callers) == 1 {
		ctx = trace.ContextWithSpanContext(ctx, b.callers[0])
	}
	for _, c := range b.callers {
		if len(b.callers) > 1 {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: c}))
		}
	}
	ctx, span := p.tracer.Start(ctx, "publish", options...)
	tracecontext.Into(ctx, msg.Header)
	return func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}
