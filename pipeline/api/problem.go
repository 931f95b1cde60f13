package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// Problem is an answer that says what is wrong, as RFC 9457 has it.
type Problem struct {
	huma.ErrorModel
	RequestID string `json:"request_id,omitempty" doc:"Name it when you ask those who run Kansa: the log and the trail have it, too"`
}

// withRequestID is a huma.Transformer.
func withRequestID(ctx huma.Context, _ string, v any) (any, error) {
	if p, ok := v.(*Problem); ok {
		said := *p
		said.RequestID = request.ID(ctx.Context())
		return &said, nil
	}
	return v, nil
}

// problems answers in the form of RFC 9457. A parameter that is unknown or malformed is a 400, a body that breaks a
// rule a 422. The library has one way for the process, which is set once.
var problems = sync.OnceFunc(func() {
	plain := huma.NewError
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		err := plain(status, msg, errs...)
		if m, ok := err.(*huma.ErrorModel); ok {
			for _, d := range m.Errors {
				withoutSecrets(d)
			}
			return &Problem{ErrorModel: *m}
		}
		return err
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if status == http.StatusUnprocessableEntity && ctx != nil && ctx.Method() == http.MethodGet {
			status = http.StatusBadRequest
		}
		return huma.NewError(status, msg, errs...)
	}
})

// busyFor is how long to wait where other requests of the organization are under way.
const busyFor = 5 * time.Second

// untilMidnight is how long quotas of a day hold.
func untilMidnight(now time.Time) time.Duration {
	return now.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
}

// withoutSecrets removes what a fault of a body repeats of the body: all of it, where a property is missing, with passwords and keys.
func withoutSecrets(d *huma.ErrorDetail) {
	switch d.Value.(type) {
	case nil, bool, float64, int, int64, string:
	default:
		d.Value = nil
	}
	for _, name := range []string{"password", "secret", "token", "private_key", "passphrase"} {
		if strings.Contains(d.Location, name) {
			d.Value = nil
		}
	}
}

// problem is the answer to an error.
func problem(err error) error {
	if err == nil {
		return nil
	}
	var fault *schema.Fault
	var known huma.StatusError
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, access.ErrUnknown), errors.Is(err, access.ErrFirst):
		return huma.Error401Unauthorized(err.Error())
	case errors.Is(err, access.ErrForbidden):
		return huma.Error403Forbidden(err.Error())
	case errors.Is(err, store.ErrNoEvent), errors.Is(err, verify.ErrNoEvent), errors.Is(err, access.ErrNone), errors.Is(err, exporter.ErrNoExport),
		errors.Is(err, exporter.ErrNoDestination), errors.Is(err, deadletter.ErrNotFound), errors.Is(err, analyst.ErrNone):
		return huma.Error404NotFound(err.Error())
	case errors.Is(err, access.ErrTaken), errors.Is(err, settings.ErrKeptOn), errors.Is(err, verify.ErrNotSealed), errors.Is(err, integrity.ErrBusy), errors.Is(err, analyst.ErrTaken):
		return huma.Error409Conflict(err.Error())
	case errors.Is(err, settings.ErrChanged):
		return huma.Error412PreconditionFailed(err.Error())
	case errors.Is(err, exporter.ErrQuota):
		return later(untilMidnight(time.Now()), err.Error())
	case errors.Is(err, control.ErrBusy):
		return later(busyFor, err.Error())
	case errors.As(err, &fault), errors.Is(err, control.ErrRefused), errors.Is(err, integrity.ErrNothing), errors.Is(err, deadletter.ErrUnfit):
		return huma.Error422UnprocessableEntity(err.Error())
	case errors.Is(err, control.ErrNobody), errors.Is(err, producers.ErrStreamFull):
		return huma.Error503ServiceUnavailable(err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return huma.Error503ServiceUnavailable("the question took too long: ask for less, or again later")
	}
	return huma.Error500InternalServerError("this could not be answered; the log says why")
}
