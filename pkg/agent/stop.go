package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// stopPatience is how long the end of what goes on is waited for, within the 30 seconds that
// the DaemonSet gives the agent.
const stopPatience = 10 * time.Second

// ended waits for all that goes on, but once ctx is done no longer than patience. What a disk that
// hangs holds up never ends, and the disks must be closed before the process is killed: until the
// hanging disk answers, the kernel keeps the process with all its descriptors.
func ended(ctx context.Context, group *errgroup.Group, patience time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("something has not ended %s after the agent was stopped: a disk that hangs, as a rule; the other disks are closed", patience)
	}
}
