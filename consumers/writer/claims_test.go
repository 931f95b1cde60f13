package writer_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// An insert waits for another one that has some of its ids in hand, and for no other.
func TestClaims(t *testing.T) {
	t.Parallel()
	var c writer.Claims
	a, b := uuid.New(), uuid.New()
	releaseA, err := c.Take(t.Context(), []uuid.UUID{a})
	if err != nil {
		t.Fatal(err)
	}
	releaseB, err := c.Take(t.Context(), []uuid.UUID{b})
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Take(ended, []uuid.UUID{b, a}); !errors.Is(err, context.Canceled) {
		t.Errorf("ids that are claimed: %v", err)
	}
	got := make(chan error)
	go func() {
		release, err := c.Take(t.Context(), []uuid.UUID{a, b})
		if err == nil {
			release()
		}
		got <- err
	}()
	releaseB()
	releaseA()
	if err := await.Receive(t, await.Limit, "the ids to be claimed", got); err != nil {
		t.Error(err)
	}
}
