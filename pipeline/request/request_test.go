package request_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/pipeline/request"
)

// A well-formed id is taken, any other is replaced; answer and log line say the same one.
func TestHandler(t *testing.T) {
	t.Parallel()
	for given, taken := range map[string]bool{
		"": false, "abc-1.2_3": true, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "a b": false, "a\"b": false, "a;b": false, "監査": false,
	} {
		var text bytes.Buffer
		log := request.Logs(slog.New(slog.NewTextHandler(&text, nil))).With("part", "test")
		var id string
		h := request.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			id = request.ID(r.Context())
			log.InfoContext(r.Context(), "looked")
		}), nil)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set(request.Header, given)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if id == "" || (id == given) != taken || w.Header().Get(request.Header) != id || !strings.Contains(text.String(), "request_id="+id) {
			t.Errorf("given %q: %q, answered %q, logged %s", given, id, w.Header().Get(request.Header), text.String())
		}
	}
	if id := request.ID(request.With(t.Context(), "a b")); id != "" {
		t.Errorf("%q was taken along", id)
	}
}
