package turns

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// A group that asks for much waits for its own turns; another group has the next one.
func TestTurnsGoToTheGroupThatRunsTheFewest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := New(2, 3, 10)
		var releases []func()
		for range 2 {
			release, err := turns.Take(t.Context(), "loud")
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		var order []string
		wait := func(group string) {
			go func() {
				release, err := turns.Take(t.Context(), group)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, group)
				release()
			}()
			synctest.Wait()
		}
		for range 5 {
			wait("loud") // a third would be beyond its bound
		}
		wait("quiet") // has the turn that is left, at once
		if !slices.Equal(order, []string{"quiet"}) {
			t.Errorf("before any has ended: %v", order)
		}
		other, err := turns.Take(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		wait("quiet")
		releases[0]()
		synctest.Wait()
		if len(order) < 2 || order[1] != "quiet" {
			t.Errorf("the next turn: %v", order)
		}
		releases[1]()
		other()
		synctest.Wait()
		if len(order) != 7 || turns.total != 0 || len(turns.groups) != 0 || len(turns.waiting) != 0 {
			t.Errorf("%v, %d run", order, turns.total)
		}
	})
}

func TestTurnsBoundTheQueueOfAGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := New(1, 2, 1)
		release, err := turns.Take(t.Context(), "loud")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := turns.Take(ctx, "loud")
			gone <- err
		}()
		synctest.Wait()
		if _, err := turns.Take(t.Context(), "loud"); !errors.Is(err, ErrWaiting) {
			t.Errorf("beyond the queue: %v", err)
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("one whose client has gone: %v", err)
		}
		release()
		if release, err = turns.Take(t.Context(), "loud"); err != nil {
			t.Fatal(err)
		}
		release()
	})
}
