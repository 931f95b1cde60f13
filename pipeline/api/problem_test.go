package api

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/consumers/exporter"
)

// A body that breaks a rule is not repeated in the answer, which proxies and browsers keep: it may hold a password.
func TestProblemsRepeatNoSecrets(t *testing.T) {
	t.Parallel()
	problems()
	var p *Problem
	if err := huma.NewError(http.StatusUnprocessableEntity, "validation failed",
		&huma.ErrorDetail{Message: "expected required property name to be present", Location: "body", Value: map[string]any{"sftp": map[string]any{"password": "hunter2"}}},
		&huma.ErrorDetail{Message: "expected string", Location: "body.sftp.password", Value: 12345.0},
		&huma.ErrorDetail{Message: "expected number", Location: "body.days", Value: "many"},
	); !errors.As(err, &p) {
		t.Fatalf("%T", err)
	}
	for i, want := range []any{nil, nil, "many"} {
		if got := p.Errors[i].Value; got != want {
			t.Errorf("%s: repeats %v, want %v", p.Errors[i].Location, got, want)
		}
	}
}

// An organization that has used up the exports of a day learns when to ask again.
func TestExportQuotaHasRetryAfter(t *testing.T) {
	t.Parallel()
	var h huma.HeadersError
	if err := problem(fmt.Errorf("%w: 3 of 3", exporter.ErrQuota)); !errors.As(err, &h) || h.GetHeaders().Get("Retry-After") == "" {
		t.Errorf("%#v", err)
	}
}
