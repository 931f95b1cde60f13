package api

import (
	"context"
	"time"

	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/request"
)

// refusals delays the answers to clients whose requests are refused again and again. A client that ignores Retry-After and waits for
// nothing but the answer would otherwise keep the server busy with refusing.
type refusals struct {
	often   *rate.Limiter // by network
	waiting chan struct{}
}

const (
	// refusalsPerSecond of one network are answered at once, and ten times as many after a pause.
	refusalsPerSecond = 10
	// refusalDelay is how long the others wait for their answer.
	refusalDelay = time.Second
	// refusalsWaiting bounds the answers that wait. Beyond it, they do not wait: each holds a connection and its memory.
	refusalsWaiting = 1024
)

func newRefusals(now func() time.Time) *refusals {
	return &refusals{often: rate.New(refusalsPerSecond, time.Second, 10*refusalsPerSecond, now), waiting: make(chan struct{}, refusalsWaiting)}
}

// wait returns when a refusal may be answered.
func (r *refusals) wait(ctx context.Context) {
	if early, _ := r.often.Take(rate.Network(request.From(ctx).IP)); early == 0 {
		return
	}
	select {
	case r.waiting <- struct{}{}:
	default:
		return
	}
	defer func() { <-r.waiting }()
	delay := time.NewTimer(refusalDelay)
	defer delay.Stop()
	select {
	case <-ctx.Done():
	case <-delay.C:
	}
}
