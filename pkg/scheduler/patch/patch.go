// Package patch changes kube-scheduler where the framework has no extension point. All of it is optional: without it
// pods get the same places, and what it costs to leave it out is in docs/scheduling.md.
//
//   - queue.go: pods that wait are not asked about events that cannot help them.
//   - event.go: the event Scheduled names the places of the pod's volumes.
//   - leading.go: Berth's controllers start when this process leads, and not with its first pod.
//
// What is changed is in seam: the build breaks here, and in no other package, when kube-scheduler changes it.
package patch

import (
	"context"

	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// seam is what is changed of a scheduler that was built and does not run yet.
type seam struct {
	// queue is replaced by one that passes on each call, and says beforehand which pods an event concerns.
	queue *queue.SchedulingQueue
	// nextPod is replaced by one that tells when it is called first.
	nextPod *func(klog.Logger) (*framework.QueuedPodInfo, error)
	// profiles are replaced one by one, for another recorder of events.
	profiles profile.Map
}

func seamOf(s *scheduler.Scheduler) seam { return seam{&s.SchedulingQueue, &s.NextPod, s.Profiles} }

// What takes the place of kube-scheduler's own, and what it asks our plugin.
var (
	_ queue.SchedulingQueue = (*filteredQueue)(nil)
	_ framework.Framework   = placesTeller{}
	_ eventFilter           = (*diskcapacity.Plugin)(nil)
)

// eventFilter is a plugin that knows of an event that it helps none of the pods that it has rejected.
type eventFilter interface {
	fwk.EnqueueExtensions
	Irrelevant(logger klog.Logger, old, obj any) bool
}

// Apply changes a scheduler before its informers start. shared is nil if no profile has the plugin DiskCapacity.
func Apply(ctx context.Context, sched *scheduler.Scheduler, shared *diskcapacity.Shared) error {
	s := seamOf(sched)
	if err := s.filterEvents(ctx); err != nil {
		return err
	}
	if shared != nil {
		s.tellPlaces(shared)
		s.whenLeading(shared.Schedules)
	}
	return nil
}
