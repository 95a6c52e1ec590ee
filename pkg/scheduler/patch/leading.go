package patch

import (
	"sync"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// whenLeading calls start when the scheduler begins to schedule: when it has the lease and its informers have synced,
// or at once, if it needs no lease. Until then it never calls NextPod, and then it calls it even if there is no pod. So
// the first call is the one sign that works with and without leader election, and whenever the informers are started.
// The lock of the lease would show the lead earlier, but the other cases would need signs of their own.
//
// There is no sign of the end. A scheduler that loses its lease exits. It gives up renewing it (renewDeadline, 10s)
// early enough to be gone when another one may have it (leaseDuration, 15s).
func (i internals) whenLeading(start func()) {
	var once sync.Once
	next := *i.nextPod
	*i.nextPod = func(logger klog.Logger) (*framework.QueuedPodInfo, error) {
		once.Do(start)
		return next(logger)
	}
}
