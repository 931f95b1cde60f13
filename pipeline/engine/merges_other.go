//go:build !linux

package engine

import (
	"context"
	"log/slog"
)

// yieldMerges does nothing: threads have no priorities of their own here that we know to set.
func yieldMerges(context.Context, *slog.Logger) {}

// mayYield tells whether queries may lower the priority of their threads.
func mayYield() bool { return false }
