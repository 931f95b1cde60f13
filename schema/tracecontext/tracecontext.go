// Package tracecontext carries the context of a trace in the headers of messages and requests, as W3C's traceparent.
//
// It owns the form of it, and makes no spans.
package tracecontext

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// carrier is a header of NATS or HTTP. NATS knows names as they are written, HTTP has another form of them.
type carrier map[string][]string

func (c carrier) Get(key string) string {
	for _, name := range [...]string{key, canonical[key]} {
		if v := c[name]; len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

func (c carrier) Set(key, value string) { c[key] = []string{value} }

func (c carrier) Keys() []string { return nil } // is not asked for

var canonical = map[string]string{"traceparent": "Traceparent", "tracestate": "Tracestate"}

// Into puts the span of ctx, if there is one, into the header of a message.
func Into(ctx context.Context, header map[string][]string) {
	propagation.TraceContext{}.Inject(ctx, carrier(header))
}

// From returns ctx with the span that a header names, or ctx itself.
func From(ctx context.Context, header map[string][]string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, carrier(header))
}

// Span returns the span that a header names; it is not valid if that is none.
func Span(header map[string][]string) trace.SpanContext {
	return trace.SpanContextFromContext(From(context.Background(), header))
}
