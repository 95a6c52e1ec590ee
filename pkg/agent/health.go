package agent

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Steps that an agent takes before it is ready, in their order. The value is what Ready says while the step is not
// taken.
const (
	stepLock      = "another agent serves this node, or has not ended yet"
	stepSynced    = "the API server has not shown the node's objects yet"
	stepPublished = "the node's disks are not published yet"
	stepDriver    = "the kubelet has not registered the driver"
)

var readySteps = []string{stepLock, stepSynced, stepPublished, stepDriver}

// Loops that Alive checks. The value names the loop in messages.
const (
	loopRescan  = "the scan of the block devices"
	loopPublish = "the publication of the disks"
)

// stallLimit is how long one pass of a loop may take. Devices and requests have shorter time limits, so a pass that
// takes longer will not end by itself.
const stallLimit = 10 * time.Minute

// Health records whether the agent makes progress, and whether it serves. One disk that hangs affects neither.
type Health struct {
	now func() time.Time
	// published is closed after the first publication.
	published chan struct{}

	mu sync.Mutex
	// taken are the steps that the agent has taken.
	taken map[string]bool
	// passBegan is when the present pass of a loop began.
	passBegan map[string]time.Time
	// unpublishedSince is when the first pass of the publication began of those that failed one after the other. It is
	// zero if the last one did not fail.
	unpublishedSince time.Time
}

// NewHealth returns the Health of an agent that has not started: alive, not ready.
func NewHealth() *Health {
	return &Health{now: time.Now, published: make(chan struct{}), taken: map[string]bool{}, passBegan: map[string]time.Time{}}
}

// Alive returns an error if a loop makes no progress, so that only a restart helps.
func (h *Health) Alive() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, loop := range []string{loopRescan, loopPublish} {
		if began, busy := h.passBegan[loop]; busy {
			if took := h.now().Sub(began); took > stallLimit {
				return fmt.Errorf("%s has made no progress for %s", loop, took.Round(time.Second))
			}
		}
	}
	return nil
}

// Ready returns an error that says what the agent waits for before it serves.
func (h *Health) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, step := range readySteps {
		if !h.taken[step] {
			return fmt.Errorf("not ready: %s", step)
		}
	}
	return nil
}

// set records whether a step is taken.
func (h *Health) set(step string, taken bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken[step] = taken
}

// recordPublished records that the disks are published. Only the first call closes published.
func (h *Health) recordPublished() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unpublishedSince = time.Time{}
	if !h.taken[stepPublished] {
		h.taken[stepPublished] = true
		close(h.published)
	}
}

// recordUnpublished records that a pass of the publication failed, which began then.
func (h *Health) recordUnpublished(began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unpublishedSince.IsZero() {
		h.unpublishedSince = began
	}
}

// awaitPublished returns after the first publication, after timeout, or when the context ends.
func (h *Health) awaitPublished(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-h.published:
	}
}

// beginPass records that a pass of a loop begins; the caller calls done at its end.
func (h *Health) beginPass(loop string) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.passBegan[loop] = h.now()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.passBegan, loop)
	}
}

// publishProgress reports the publisher's passes to Health.
type publishProgress struct{ *Health }

// Pass implements publish.Progress.
func (p publishProgress) Pass() (done func(err error)) {
	end, began := p.beginPass(loopPublish), p.now()
	return func(err error) {
		end()
		if err == nil {
			p.recordPublished()
		} else {
			p.recordUnpublished(began)
		}
	}
}
