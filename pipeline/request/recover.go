package request

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync/atomic"
)

var panics atomic.Uint64

// Panics counts those that were caught in this process.
func Panics() uint64 { return panics.Load() }

// Caught logs and counts what recover returned, and returns it as an error; nil if there was no panic. It panics again with
// http.ErrAbortHandler, which ends a response on purpose.
func Caught(ctx context.Context, log *slog.Logger, what string, v any) error {
	if v == nil {
		return nil
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	panics.Add(1)
	log.ErrorContext(ctx, "a panic was caught: this is a fault of the program, please report it", slog.String("in", what), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	return fmt.Errorf("%s: a fault of the program: %v", what, v)
}
