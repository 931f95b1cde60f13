package tracing

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Off unless somebody wants it; then a span reaches the collector.
func TestStart(t *testing.T) {
	for _, name := range []string{"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		t.Setenv(name, "")
	}
	if p, err := Start(t.Context(), "", "1"); p != nil || err != nil {
		t.Errorf("unasked: %v, %v", p, err)
	}
	got := make(chan string, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Method + " " + r.URL.Path }))
	defer collector.Close()
	send := func(endpoint string) {
		t.Helper()
		p, err := Start(t.Context(), endpoint, "1")
		if err != nil || p == nil {
			t.Fatal(p, err)
		}
		_, span := p.Tracer("test").Start(t.Context(), "a span")
		span.End()
		if err := p.Shutdown(t.Context()); err != nil { // sends what there is
			t.Fatal(err)
		}
		if r := <-got; r != "POST /v1/traces" {
			t.Errorf("the collector got %s", r)
		}
	}
	send(collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	send("")
	t.Setenv("OTEL_SDK_DISABLED", "true")
	if p, err := Start(t.Context(), collector.URL, "1"); p != nil || err != nil {
		t.Errorf("switched off: %v, %v", p, err)
	}
}
