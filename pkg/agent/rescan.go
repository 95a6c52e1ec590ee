package agent

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
)

// disksChanged is called on every change of a disk.
func (a *agent) disksChanged() {
	a.publisher.Trigger()
	a.manager.DisksChanged()
	select {
	case a.diskChanges <- struct{}{}:
	default:
	}
	if a.inventory.Failing() {
		select {
		case a.diskFailures <- struct{}{}:
		default:
		}
	}
}

func (a *agent) requestRescan() {
	select {
	case a.rescanRequests <- struct{}{}:
	default:
	}
}

// rescan forgets disks on request and scans the devices. It reports whether to try again without an event.
func (a *agent) rescan(ctx context.Context) (retry bool) {
	defer a.options.Health.beginPass(loopRescan)()
	forgetAgain := a.forgetDisks(ctx)
	retry, err := a.inventory.Rescan(ctx)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Block devices could not be scanned")
	}
	return retry || forgetAgain
}

// rescanRate and rescanBurst bound the rescans, per second.
const rescanRate, rescanBurst = 0.2, 10

// rescanOnDemand rescans the devices after each event. No event announces that a busy or failing device can be used.
// While there is one, it rescans by itself, with growing pauses. It also rescans when a new device has waited long
// enough.
func (a *agent) rescanOnDemand(ctx context.Context, retry bool) {
	retries := newRetries()
	timer, waited := newTimer(), newTimer()
	defer timer.Stop()
	defer waited.Stop()
	// Where udev runs, every rescan that fails to open a device may cause an event, and so the next rescan.
	limiter := flowcontrol.NewTokenBucketRateLimiter(rescanRate, rescanBurst)
	for {
		waited.set(a.inventory.RecheckAfter())
		if after, change := retries.next(retry); change {
			timer.set(after, retry)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.diskFailures:
			retry = true
			continue
		case <-a.rescanRequests:
		case <-timer.C:
			retries.fired()
		case <-waited.C:
		}
		if limiter.Wait(ctx) != nil {
			return
		}
		retry = a.rescan(ctx)
	}
}

// retries decides when to rescan without an event.
type retries struct {
	backoff   wait.Backoff
	scheduled bool // a retry is scheduled
}

func newRetries() *retries { return &retries{backoff: firstRetries()} }

func firstRetries() wait.Backoff {
	return wait.Backoff{Duration: 10 * time.Second, Factor: 2, Steps: 6, Cap: 5 * time.Minute}
}

// next schedules a retry if one is wanted and none is scheduled, and cancels one that is not wanted any more. An event
// in between neither delays a retry nor makes the next ones rarer.
func (r *retries) next(wanted bool) (after time.Duration, change bool) {
	switch {
	case !wanted:
		*r = *newRetries()
		return 0, true
	case r.scheduled:
		return 0, false
	}
	r.scheduled = true
	return r.backoff.Step(), true
}

// fired is called when the retry's time has come.
func (r *retries) fired() { r.scheduled = false }

// resettableTimer is a timer that can be set and canceled.
type resettableTimer struct {
	*time.Timer
}

func newTimer() resettableTimer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return resettableTimer{t}
}

func (t resettableTimer) set(after time.Duration, wanted bool) {
	if t.Stop(); wanted {
		t.Reset(after)
	}
}
