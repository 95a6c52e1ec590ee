package patch

import (
	"fmt"
	"testing"

	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// BenchmarkEvents is the cost of one event for the queue, which is locked meanwhile, with 10,000 pods that wait for
// disk space: with the patch and without. docs/understand/scheduling.md quotes it.
func BenchmarkEvents(b *testing.B) {
	const waiting = 10_000
	plain, disk := boundPods()
	for _, event := range []struct {
		name     string
		event    fwk.ClusterEvent
		old, obj any
	}{
		{"a pod is bound", framework.EventAssignedPodAdd, nil, plain},
		{"a plain pod ends", framework.EventAssignedPodDelete, plain, nil},
		{"a pod with a volume ends", framework.EventAssignedPodDelete, disk, nil},
	} {
		for _, patched := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/patched=%t", event.name, patched), func(b *testing.B) {
				q := newQueued(b)
				q.logger = klog.Background() // that of tests keeps every line
				if patched {
					q.filtered()
				}
				for i := range waiting {
					q.reject(waitingPod("berth", fmt.Sprintf("waits-%d", i)), diskcapacity.Name)
				}
				for b.Loop() {
					q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, event.event, event.old, event.obj, nil)
				}
				if have := len(q.waiting()); have != waiting {
					b.Fatalf("%d pods wait, want %d", have, waiting)
				}
			})
		}
	}
}
