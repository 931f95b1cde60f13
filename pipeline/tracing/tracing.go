// Package tracing sends the spans of a process to a collector, if the standard variables of OpenTelemetry or the
// configuration name one.
//
// It owns the connection to the collector; what a span is of, those decide who make them.
package tracing

import (
	"context"
	"fmt"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// Start returns a provider whose spans go to the collector at an endpoint, http://host:4318, or where
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT say; and nil if neither is given, or
// OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER=none says that there are to be none. Headers, timeouts, sampling and the
// service's name have their standard variables, too. Shutdown it when the last span has ended.
func Start(ctx context.Context, endpoint, version string) (*trace.TracerProvider, error) {
	if !wanted(endpoint, os.Getenv) {
		return nil, nil
	}
	var options []otlptracehttp.Option
	if endpoint != "" {
		options = append(options, otlptracehttp.WithEndpointURL(endpoint+"/v1/traces"))
	}
	exporter, err := otlptracehttp.New(ctx, options...) // it connects when there is something to send
	if err != nil {
		return nil, fmt.Errorf("set up the export of traces: %w", err)
	}
	own, err := resource.New(ctx, resource.WithHost(), resource.WithProcessPID(),
		resource.WithAttributes(attribute.String("service.name", "kansa"), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describe this process to the collector: %w", err)
	}
	return trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(own)), nil
}

func wanted(endpoint string, env func(string) string) bool {
	if env("OTEL_SDK_DISABLED") == "true" || env("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return endpoint != "" || env("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}
