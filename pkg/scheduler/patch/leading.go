package patch

import (
	"sync"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// whenLeading calls start when the scheduler begins to schedule, which it does when it
// has the lease and its informers are synced; at once, if it needs no lease. Until then
// it never asks for a pod, and then it asks even if there is none: so its asking is the
// one sign that holds with and without leader election, and whenever the informers are
// started. The lock of the lease would show the lead earlier, but needs the other cases
// distinguished.
//
// There is no sign of the end. A scheduler that loses its lease exits; it gives up trying
// to renew it (renewDeadline, 10s) early enough to be gone when another may have it
// (leaseDuration, 15s).
func (s seam) whenLeading(start func()) {
	var once sync.Once
	next := *s.nextPod
	*s.nextPod = func(logger klog.Logger) (*framework.QueuedPodInfo, error) {
		once.Do(start)
		return next(logger)
	}
}
