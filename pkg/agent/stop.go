package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// stopTimeout is how long the agent waits at its end, within the 30 seconds that the DaemonSet gives it.
const stopTimeout = 10 * time.Second

// waitWithTimeout waits for the group, but no longer than timeout once ctx is done. Work that a hanging disk blocks
// never ends. The disks must be closed before the process is killed: until the hanging disk answers, the kernel keeps
// the process with all its descriptors.
func waitWithTimeout(ctx context.Context, group *errgroup.Group, timeout time.Duration) error {
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
	case <-time.After(timeout):
		return fmt.Errorf("something has not ended %s after the agent was stopped: a disk that hangs, as a rule; the other disks are closed", timeout)
	}
}
