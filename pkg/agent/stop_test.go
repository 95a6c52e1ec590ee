package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestWaitWithTimeout asserts that the agent's end waits for its work, but not for ever.
func TestWaitWithTimeout(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	group, _ := errgroup.WithContext(ctx)
	want := errors.New("the first error")
	group.Go(func() error { return want })
	if err := waitWithTimeout(ctx, group, time.Hour); !errors.Is(err, want) {
		t.Errorf("when all has ended: %v", err)
	}
	group, _ = errgroup.WithContext(ctx)
	group.Go(func() error { <-ctx.Done(); return want })
	cancel()
	if err := waitWithTimeout(ctx, group, time.Hour); !errors.Is(err, want) {
		t.Errorf("when all ends after the agent was stopped: %v", err)
	}
	hung := make(chan struct{})
	defer close(hung)
	group, _ = errgroup.WithContext(ctx)
	group.Go(func() error { <-hung; return nil })
	if err := waitWithTimeout(ctx, group, time.Millisecond); err == nil {
		t.Error("what hangs has ended")
	}
}
